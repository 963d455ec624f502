"""Memory banks: items with provenance and history, operations on them, and search."""
