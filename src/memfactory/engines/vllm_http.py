"""Requests to a vLLM server: JSON there and mostly back, and what each way to fail means. No torch."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from typing import Any

from memfactory.engines.options import VllmServerConfig
from memfactory.engines.pool import TryAgain
from memfactory.errors import ConfigError, EngineError

RETRIED_STATUS = (408, 409, 429)


class Refused(EngineError):
    """The server understood and said no: `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class VllmServer:
    """The server at `config.url`.

    Raises ConfigError for an address that is none and for a key whose environment variable is not set.
    """

    def __init__(self, config: VllmServerConfig) -> None:
        if not config.url.startswith(("http://", "https://")):
            raise ConfigError(f"engine.url: {config.url!r} is no address; it begins with http:// or https://")
        self.url = config.url.rstrip("/").removesuffix("/v1")
        self.name = f"the vLLM server at {self.url}"
        self.timeout = config.timeout
        self._headers = {"Content-Type": "application/json"}
        if config.api_key_env:
            key = os.environ.get(config.api_key_env, "").strip()
            if not key:
                raise ConfigError(
                    f"engine.api_key_env: {self.name} needs a key in the environment variable {config.api_key_env}, "
                    "which is not set"
                )
            self._headers["Authorization"] = f"Bearer {key}"
        # The server is near; a proxy that the environment names is for what is far.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> Any:
        return self._answer(urllib.request.Request(self.url + path, headers=self._headers), self.timeout)

    def post(self, path: str, body: object, timeout: float | None = None) -> Any:
        """What the server answers: JSON's value, or the text where it is no JSON.

        Raises TryAgain where another try may go better, Refused where the server says no.
        """
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self._headers, method="POST")
        return self._answer(request, timeout or self.timeout)

    def _answer(self, request: urllib.request.Request, timeout: float) -> Any:
        try:
            with self._opener.open(request, timeout=timeout) as response:
                body, kind = response.read(), response.headers.get_content_type()
        except urllib.error.HTTPError as error:
            with error:
                words = f"HTTP {error.code}: {_message(error.read())}"
            if error.code < 500 and error.code not in RETRIED_STATUS:
                raise Refused(f"{self.name} refuses the request with {words}", error.code) from error
            raise TryAgain(words) from error
        except TimeoutError as error:
            raise TryAgain(f"no answer within {timeout:g} seconds") from error
        except urllib.error.URLError as error:
            slow = isinstance(error.reason, TimeoutError)
            raise TryAgain(f"no answer within {timeout:g} seconds" if slow else str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise TryAgain(f"the connection broke off ({type(error).__name__}: {error})") from error
        if kind != "application/json":
            return body.decode(errors="replace")
        try:
            return json.loads(body)
        except ValueError as error:
            raise TryAgain(f"the answer is no JSON: {body[:200].decode(errors='replace')!r}") from error


def _message(body: bytes) -> str:
    """The server's own words in the body of an error."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
        return str(found["error"]["message"] if "error" in found else found["detail"])[:500]
    except (ValueError, LookupError, TypeError):
        return text[:500]
