"""Trackers: where metrics go. None of them can stop a run."""
