"""Modules: the skills of memory agents, one file each; none imports another."""
