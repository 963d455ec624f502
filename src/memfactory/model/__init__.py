"""A causal language model with its tokenizer: loading, chat template, tree attention, fused layers."""
