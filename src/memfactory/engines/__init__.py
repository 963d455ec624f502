"""Engines: who speaks. One protocol, five kinds: hf, vllm, vllm_server, openai, scripted."""
