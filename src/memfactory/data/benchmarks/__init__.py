"""Published benchmarks: readers of their files, and converters to our rows."""
