"""Evaluation: avg@k over datasets with clustered standard errors, per-sample records that resume, tables."""
