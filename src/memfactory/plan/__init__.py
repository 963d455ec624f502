"""What a run will take, before any weight is loaded: lengths, memory and floating-point operations."""
