"""Benchmarks that anyone can run: `python -m benchmarks.step`, `benchmarks.engine`, `benchmarks.context` and others."""
