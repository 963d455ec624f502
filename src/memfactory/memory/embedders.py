"""Embedders by kind; the libraries of a kind are imported when one is built. No torch."""

from __future__ import annotations

from memfactory.memory.embedder import Embedder
from memfactory.memory.options import EmbedderConfig


def build_embedder(config: EmbedderConfig) -> Embedder:
    """The embedder that `config` describes."""
    if config.kind == "hf":
        from memfactory.memory.hf_embedder import HfEmbedder

        return HfEmbedder(config)
    if config.kind == "openai":
        from memfactory.memory.openai_embedder import OpenAIEmbedder

        return OpenAIEmbedder(config)
    from memfactory.memory.lexical_embedder import LexicalEmbedder

    return LexicalEmbedder(config)
