"""Options of memory banks: embedder, search and index. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from memfactory.registry import Options

Search = Literal["dense", "bm25", "hybrid"]


class LexicalEmbedderConfig(Options):
    """Hashed words and character n-grams: deterministic, no model, no network."""

    kind: Literal["lexical"] = "lexical"
    """The kind of the embedder."""
    dimensions: int = Field(1024, ge=8)
    """Length of a vector."""
    ngrams: tuple[int, ...] = (3, 4)
    """Lengths of the character n-grams beside whole words; empty: words alone."""
    ngram_weight: float = Field(1.0, ge=0)
    """The weight of all n-grams of a word together; the word itself has weight 1."""
    padding: float = Field(4.0, ge=0)
    """Words added to the length of every text, so that short texts do not match for being short."""


class HfEmbedderConfig(Options):
    """Any Hugging Face encoder."""

    kind: Literal["hf"] = "hf"
    """The kind of the embedder."""
    path: str
    """A hub id or a local folder."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """Pooling of token vectors: their mean, the first token (cls) or the last."""
    query_prefix: str = ""
    """A prefix of every query (some encoders need "query: ")."""
    text_prefix: str = ""
    """A prefix of every text (some encoders need "passage: ")."""
    max_tokens: int = Field(512, ge=1)
    """A longer text is cut."""
    batch_size: int = Field(32, ge=1)
    """Texts per batch."""
    device: str = "auto"
    """auto: CUDA if available, else the CPU."""


class OpenAIEmbedderConfig(Options):
    """Any OpenAI-compatible embeddings endpoint. The key is named by environment variable and never written."""

    kind: Literal["openai"] = "openai"
    """The kind of the embedder."""
    model: str
    """The model's name at the endpoint."""
    base_url: str | None = None
    """The endpoint; null: OPENAI_BASE_URL or OpenAI's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The environment variable of the key; null or empty: no key."""
    batch_size: int = Field(64, ge=1)
    """Texts per request."""
    timeout: float = Field(60.0, gt=0)
    """Timeout of a request in seconds, from the first connection to the last byte of the answer."""
    retries: int = Field(4, ge=0)
    """Retries after 429, 5xx, a timeout or a broken connection, with exponential backoff and jitter."""
    backoff: float = Field(0.5, gt=0)
    """Seconds before the first retry; doubled each time."""
    max_retry_wait: float = Field(20.0, ge=0)
    """Longest pause between retries in seconds, also if Retry-After asks for more."""


EmbedderConfig = Annotated[LexicalEmbedderConfig | HfEmbedderConfig | OpenAIEmbedderConfig, Field(discriminator="kind")]


class MemoryConfig(Options):
    """How the memory banks of a run embed and search texts.

    >>> MemoryConfig(search="hybrid").embedder.kind
    'lexical'
    """

    embedder: EmbedderConfig = LexicalEmbedderConfig()
    """The embedder of texts and queries."""
    search: Search = "dense"
    """The default search of modules: by vectors, by BM25, or by both."""
    index: Literal["auto", "numpy", "faiss"] = "auto"
    """The exact index of vectors; auto: faiss for large banks, else numpy."""
    cache: str | None = None
    """A folder that caches vectors between runs, by embedder and text; null: no cache. Lexical vectors are never
    cached: computing them is faster than a lookup."""
