"""Engines: they generate replies. One protocol, five kinds: hf, vllm, vllm_server, openai, scripted."""
