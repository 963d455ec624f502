"""MemFactory: train, evaluate and run memory agents from YAML."""
