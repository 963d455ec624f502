"""The policy's own weights as an engine, through transformers: continuous batching and prefix sharing."""
