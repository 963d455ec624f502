"""Vectors from any OpenAI-compatible embeddings endpoint. An outage is an EngineError, never a made-up vector."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy

from memfactory.engines.addresses import checked_address, public_address, shown_address
from memfactory.engines.endpoint import MIB, Endpoint, Refused, parsed_json, shown_body
from memfactory.engines.endpoint_hints import missing_hint
from memfactory.engines.pool import RetryPolicy, TryAgain, Waiting
from memfactory.errors import EngineError
from memfactory.memory.embedder import Vectors, identity_of
from memfactory.memory.options import OpenAIEmbedderConfig
from memfactory.redaction import read_key


class OpenAIEmbedder:
    """Embeddings of `config.model`. Queries and texts are embedded alike.

    It retries after 408, 409, 429, 5xx, a timeout or a broken connection. Raises ConfigError if the key's environment
    variable is unset or holds no key, or the address is invalid.
    """

    def __init__(self, config: OpenAIEmbedderConfig) -> None:
        key = read_key(config.api_key_env, f"the embeddings endpoint of {config.model!r}")
        address = checked_address(config.base_url, "base_url")
        self.config = config
        self._where = f"{config.model!r} at {shown_address(address)}"
        # A vector of 16,384 numbers of 20 characters for every text.
        largest = (1 + config.batch_size) * MIB // 2
        self._endpoint = Endpoint(address, name=self._where, key=key, timeout=config.timeout, largest=largest)
        self._retry_policy = RetryPolicy(config.retries, config.backoff, config.max_retry_wait)
        # It names vectors on disk; earlier versions wrote the address with a slash.
        self.identity = identity_of(kind=config.kind, model=config.model, endpoint=public_address(address) + "/")

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), d]. Raises EngineError after the last retry, or for a malformed answer."""
        size = self.config.batch_size
        batches = [self._batch(texts[start : start + size]) for start in range(0, len(texts), size)]
        lengths = {len(vector) for batch in batches for vector in batch}
        if len(lengths) > 1:
            raise EngineError(f"{self._where} gave vectors of different lengths: {sorted(lengths)}")
        return numpy.array([vector for batch in batches for vector in batch], numpy.float32)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self.embed(texts)

    def _batch(self, texts: Sequence[str]) -> list[list[float]]:
        # As numbers: not every compatible server supports a packed form.
        fields: dict[str, object] = {"model": self.config.model, "input": list(texts), "encoding_format": "float"}
        try:
            return Waiting(0, threading.Event()).repeat(lambda: self._vectors(fields, len(texts)), self._retry_policy)
        except TryAgain as failure:
            raise EngineError(f"{self._where} gave no embeddings: {failure}") from failure
        except Refused as refusal:
            hint = missing_hint(self._endpoint, self.config.model, refusal)
            raise EngineError(f"{self._where} gave no embeddings: {refusal}{hint}") from refusal

    def _vectors(self, fields: dict[str, object], count: int) -> list[list[float]]:
        """The vectors of an answer, ordered by its indices."""
        answer = self._endpoint.post("/embeddings", fields)
        try:
            body = parsed_json(answer.body)
        except ValueError as error:
            raise EngineError(f"{self._where} gave no embeddings: the answer is not JSON in UTF-8") from error
        try:
            vectors = {row["index"]: [_number(value) for value in row["embedding"]] for row in body["data"]}
            return [vectors[place] for place in range(count)]
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise EngineError(
                f"{self._where} gave no embeddings for {count} text(s): the answer is {shown_body(answer.body)}"
            ) from error


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)
