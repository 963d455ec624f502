"""Datasets that are generated from a seed: small worlds of facts and conversations, with perfect demonstrations."""
