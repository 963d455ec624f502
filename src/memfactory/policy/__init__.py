"""The model in training: forward passes, losses, advantages, optimizer and weights."""
