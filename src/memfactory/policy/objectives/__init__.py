"""Per-token objectives of policy optimization, one per file; `base.py` defines an objective."""
