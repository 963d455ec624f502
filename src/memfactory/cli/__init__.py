"""The command line: it parses, calls and prints. No logic."""

from memfactory.cli.app import main

__all__ = ["main"]
