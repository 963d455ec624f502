"""Environments: rows to tasks, episodes to rewards."""
