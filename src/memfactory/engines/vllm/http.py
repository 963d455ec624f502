"""Requests to a vLLM server: JSON there and mostly back. No torch."""

from __future__ import annotations

from typing import Any

from memfactory.engines.addresses import address_problem, shown_address
from memfactory.engines.endpoint import MIB, Answer, Endpoint, parsed_json, shown_body
from memfactory.engines.options import VllmServerConfig
from memfactory.engines.pool import TryAgain
from memfactory.errors import ConfigError
from memfactory.redaction import read_key

LARGEST = 512 * MIB
"""Bytes of an answer: a million tokens come back with their ids and log-probabilities."""


class VllmServer:
    """The server at `url`, under the options of `config`.

    Raises ConfigError for an address that cannot be used, and for a key whose environment variable is unset or
    malformed.
    """

    def __init__(self, config: VllmServerConfig, url: str) -> None:
        problem = address_problem(url)
        if problem:
            raise ConfigError(f"engine.url: {problem}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.name = f"the vLLM server at {shown_address(self.url)}"
        self.timeout = config.timeout
        key = read_key(config.api_key_env, self.name)
        # The server is near; the environment's proxy is for distant servers.
        self._endpoint = Endpoint(self.url, name=self.name, key=key, timeout=config.timeout, largest=LARGEST, near=True)

    def get(self, path: str) -> Any:
        """Send a GET request and return the parsed body."""
        return _value(self._endpoint.get(path))

    def post(self, path: str, body: object, timeout: float | None = None) -> Any:
        """The server's answer: the value of JSON, or else its text.

        Raises TryAgain if a retry may succeed, Refused if the server refuses the request.
        """
        return _value(self._endpoint.post(path, body, timeout))

    def post_once(self, path: str, body: object, timeout: float) -> Any:
        """As `post`, for a request with an effect: it is never sent again."""
        return _value(self._endpoint.post_once(path, body, timeout))


def _value(answer: Answer) -> Any:
    if answer.kind != "application/json":
        return answer.body.decode(errors="replace")
    try:
        return parsed_json(answer.body)
    except ValueError as error:
        raise TryAgain(f"the answer is no JSON: {shown_body(answer.body)}") from error
