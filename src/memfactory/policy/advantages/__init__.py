"""Advantage estimators, one a file; `base.py` defines an estimator."""
