"""What a memory bank can be told: how texts are embedded and found. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from memfactory.registry import Options

Search = Literal["dense", "bm25", "hybrid"]


class LexicalEmbedderConfig(Options):
    """Hashed words and character n-grams: deterministic, no model, no network."""

    kind: Literal["lexical"] = "lexical"
    dimensions: int = Field(1024, ge=8)
    """Length of a vector."""
    ngrams: tuple[int, ...] = (3, 4)
    """Lengths of the character n-grams that count beside whole words; empty: words alone."""
    ngram_weight: float = Field(1.0, ge=0)
    """What the n-grams of a word count together; the word itself counts 1."""
    padding: float = Field(4.0, ge=0)
    """Every text counts as this many words longer than it is, so that short ones do not match for being short."""


class HfEmbedderConfig(Options):
    """Any Hugging Face encoder."""

    kind: Literal["hf"] = "hf"
    path: str
    """A hub id or a local folder."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """How token vectors become one: their mean, the first token's or the last one's."""
    query_prefix: str = ""
    """Put before a question (some encoders want "query: ")."""
    text_prefix: str = ""
    """Put before a text (some encoders want "passage: ")."""
    max_tokens: int = Field(512, ge=1)
    """A longer text is cut."""
    batch_size: int = Field(32, ge=1)
    """Texts encoded at one time."""
    device: str = "auto"
    """auto: CUDA where there is one, else the CPU."""


class OpenAIEmbedderConfig(Options):
    """Any OpenAI-compatible embeddings endpoint. The key is named by environment variable and never written."""

    kind: Literal["openai"] = "openai"
    model: str
    """The model's name at the endpoint."""
    base_url: str | None = None
    """The endpoint; null: OPENAI_BASE_URL or OpenAI's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The environment variable that holds the key; null or empty: the endpoint needs none."""
    batch_size: int = Field(64, ge=1)
    """Texts in one request."""
    timeout: float = Field(60.0, gt=0)
    """Seconds until a request counts as failed, from the first connection to the last byte of the answer."""
    retries: int = Field(4, ge=0)
    """Further tries after 429, 5xx, a timeout or a broken connection, with exponential backoff and jitter."""
    backoff: float = Field(0.5, gt=0)
    """Seconds before the first further try; doubled each time."""
    max_retry_wait: float = Field(20.0, ge=0)
    """Seconds of the longest pause between two tries, whatever the server asks for by Retry-After."""


EmbedderConfig = Annotated[LexicalEmbedderConfig | HfEmbedderConfig | OpenAIEmbedderConfig, Field(discriminator="kind")]


class MemoryConfig(Options):
    """How the memory banks of a run embed and find texts.

    >>> MemoryConfig(search="hybrid").embedder.kind
    'lexical'
    """

    embedder: EmbedderConfig = LexicalEmbedderConfig()
    """What turns a text into a vector."""
    search: Search = "dense"
    """How items are found where a module does not say: by vectors, by BM25, or by both."""
    index: Literal["auto", "numpy", "faiss"] = "auto"
    """What searches the vectors, always exactly; auto: faiss for large banks, else numpy."""
    cache: str | None = None
    """A folder that keeps vectors between runs, by embedder and text; null: none is kept. Lexical ones never are: to
    compute them takes less time than to look them up."""
