"""Advantage estimators, one a file; `base.py` says what an estimator is."""
