"""Engines: who speaks. One protocol, four kinds: hf, vllm, openai, scripted."""
