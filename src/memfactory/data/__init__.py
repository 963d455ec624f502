"""Datasets: loaders, converters and generators. Rows in, rows out; no torch."""
