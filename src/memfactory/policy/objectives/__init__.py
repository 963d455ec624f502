"""Per-token objectives of policy optimization, one a file; `base.py` says what an objective is."""
