"""Vectors from any OpenAI-compatible embeddings endpoint. An outage is an EngineError, never a made-up vector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy

from memfactory.errors import ConfigError, EngineError
from memfactory.memory.embedders import Vectors, identity_of
from memfactory.memory.options import OpenAIEmbedderConfig


class OpenAIEmbedder:
    """Embeddings of `config.model`. Queries and texts are embedded alike.

    The client itself tries again after 408, 409, 429, 5xx, a timeout or a broken connection. Raises ConfigError where
    the key's environment variable is not set or the address is none.
    """

    def __init__(self, config: OpenAIEmbedderConfig) -> None:
        from openai import OpenAI

        key = os.environ.get(config.api_key_env, "").strip() if config.api_key_env else "none"
        if not key:
            raise ConfigError(
                f"the embeddings endpoint of {config.model!r} needs a key in the environment variable "
                f"{config.api_key_env}, which is not set; write api_key_env: null for an endpoint without keys"
            )
        address = config.base_url or os.environ.get("OPENAI_BASE_URL") or None
        if address is not None and not address.startswith(("http://", "https://")):
            raise ConfigError(f"base_url: {address!r} is no address; it begins with http:// or https://")
        self.config = config
        self._client = OpenAI(api_key=key, base_url=address, timeout=config.timeout, max_retries=config.retries)
        self._where = f"{config.model!r} at {self._client.base_url}"
        self.identity = identity_of(kind=config.kind, model=config.model, endpoint=str(self._client.base_url))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), d]. Raises EngineError once the retries are used up, or for what is no embedding."""
        size = self.config.batch_size
        batches = [self._batch(texts[start : start + size]) for start in range(0, len(texts), size)]
        lengths = {len(vector) for batch in batches for vector in batch}
        if len(lengths) > 1:
            raise EngineError(f"{self._where} gave vectors of different lengths: {sorted(lengths)}")
        return numpy.array([vector for batch in batches for vector in batch], numpy.float32)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self.embed(texts)

    def _batch(self, texts: Sequence[str]) -> list[list[float]]:
        import openai

        try:
            # As numbers: not every compatible server knows the packed form that the client asks for by default.
            answer = self._client.embeddings.with_raw_response.create(
                model=self.config.model, input=list(texts), encoding_format="float"
            )
            body: Any = answer.http_response.json()
        except openai.APIStatusError as error:
            raise EngineError(
                f"{self._where} gave no embeddings: HTTP {error.status_code}: {error.message[:500]}"
            ) from error
        except openai.APITimeoutError as error:
            raise EngineError(
                f"{self._where} gave no embeddings: no answer within {self.config.timeout:g} seconds"
            ) from error
        except openai.APIConnectionError as error:
            raise EngineError(
                f"{self._where} gave no embeddings: the connection failed ({error.__cause__ or error})"
            ) from error
        except ValueError as error:
            raise EngineError(f"{self._where} gave no embeddings: the answer is not JSON") from error
        return self._in_order(body, len(texts))

    def _in_order(self, body: Any, count: int) -> list[list[float]]:
        """The vectors of an answer, by the places that it gives them."""
        try:
            found = {row["index"]: [float(value) for value in row["embedding"]] for row in body["data"]}
            return [found[place] for place in range(count)]
        except (LookupError, TypeError, ValueError) as error:
            raise EngineError(
                f"{self._where} gave no embeddings for {count} text(s): the answer is {str(body)[:200]!r}"
            ) from error
