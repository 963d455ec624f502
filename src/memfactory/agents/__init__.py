"""Agents: compositions of modules, one file each."""
