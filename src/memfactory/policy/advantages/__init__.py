"""Advantage estimators, one per file; `base.py` defines an estimator."""
