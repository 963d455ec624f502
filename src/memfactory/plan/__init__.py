"""The cost of a run before any weights are loaded: lengths, memory and floating-point operations."""
