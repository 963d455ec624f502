"""Per-token objectives of policy optimization, one a file; `base.py` defines an objective."""
