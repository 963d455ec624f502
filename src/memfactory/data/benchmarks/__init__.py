"""Published benchmarks: their rows as they are distributed, read and written as rows of ours."""
