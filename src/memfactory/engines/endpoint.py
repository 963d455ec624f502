"""Requests to one HTTP endpoint, each within bounds of time and size. It does not know what is asked.

Every answer is bytes, an error with the server's words, or TryAgain: whatever a server sends, and however slowly.
"""

from __future__ import annotations

import json
import selectors
import threading
import time
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from typing import Any
from urllib.parse import urljoin, urlsplit

from memfactory.engines.addresses import origin, shown_address
from memfactory.engines.connection import Connection, connect
from memfactory.engines.pool import TryAgain
from memfactory.engines.server_words import asked_wait, server_words
from memfactory.errors import EngineError
from memfactory.redaction import redacted_message

RETRIED_STATUS = (408, 409, 425, 429)
TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error")
"""What servers call a prompt that does not fit their context."""
FINAL_CODES = ("insufficient_quota", *TOO_LONG_CODES)
"""Reasons that are the same at the next try, whatever the status says."""
REDIRECTS = (307, 308)
"""Redirects that keep method and body; they are followed on the same server, so many times at most."""
MOST_REDIRECTS = 3
RESETS = (0.02, 0.1, None)
"""Seconds before a connection that was reset is opened anew; None: that it was is told."""
MIB = 2**20
PIECE = 2**16


class Refused(EngineError):
    """The server understood and said no: `status` is its HTTP status, `code` its own name for the reason."""

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _NotComplete(TimeoutError):
    """The time was over when the answer had begun."""


@dataclass(frozen=True)
class Answer:
    """The body of an answer that is no error, and its content type."""

    body: bytes
    kind: str


class Endpoint:
    """The server at `address`, called `name` in messages.

    A request ends within `timeout` seconds, from the look-up of the host's name to the last byte; an answer of more
    than `largest` bytes is refused. Connections are kept, one a thread. `near`: no proxy lies between.
    """

    def __init__(
        self, address: str, *, name: str, key: str | None, timeout: float, largest: int = 64 * MIB, near: bool = False
    ) -> None:
        self.address, self.name, self.timeout, self.largest = address.rstrip("/"), name, timeout, largest
        parts = urlsplit(self.address)
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "memfactory",
        }
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._parts = parts
        self._proxy = None if near else _proxy_for(parts.scheme, parts.hostname or "")
        self._kept = threading.local()

    def get(self, path: str) -> Answer:
        return self.request("GET", path, None, self.timeout)

    def post(self, path: str, body: object, timeout: float | None = None) -> Answer:
        """What the server answers to `body`, sent as JSON.

        Raises TryAgain where another try may go better, Refused where the server says no.
        """
        return self.request("POST", path, json.dumps(body).encode(), timeout or self.timeout)

    def request(self, method: str, path: str, data: bytes | None, timeout: float) -> Answer:
        deadline = time.monotonic() + timeout
        target = self.address + path
        for _ in range(1 + MOST_REDIRECTS):
            try:
                status, headers, body = self._exchange(method, target, data, deadline)
            except _NotComplete as error:
                raise TryAgain(f"the answer was not complete after {timeout:g} seconds") from error
            except TimeoutError as error:
                raise TryAgain(f"no answer within {timeout:g} seconds") from error
            except (OSError, HTTPException, ValueError) as error:
                raise TryAgain(f"the connection broke off ({_told(error)})") from error
            if not 300 <= status < 400:
                break
            target = self._redirected(status, target, headers.get("location", ""))
        else:
            raise Refused(f"{self.name} redirects in circles", status)
        if 200 <= status < 300:
            return Answer(body, headers.get("content-type", "").partition(";")[0].strip().lower())
        raise self._failure(status, headers, body)

    def close(self) -> None:
        """Drop the connection of this thread; those of others end with their threads."""
        kept: Connection | None = getattr(self._kept, "connection", None)
        self._kept.connection = None
        if kept is not None:
            kept.close()

    def _failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        said, code = server_words(body, status)
        words = f"HTTP {status}: {said}"
        if code not in FINAL_CODES and (status >= 500 or status in RETRIED_STATUS):
            return TryAgain(words, asked_wait(headers))
        return Refused(f"{self.name} refuses the request with {words}", status, code)

    def _redirected(self, status: int, asked: str, location: str) -> str:
        """Where an answer points, on the same server; Refused for what would hand prompts and key to another."""
        try:
            target = urljoin(asked, location) if location else ""
        except ValueError:
            target = ""
        if status not in REDIRECTS or origin(target) != origin(asked):
            where = f"to {shown_address(target)}" if target else "without an address"
            raise Refused(
                f"{self.name} redirects the request (HTTP {status}) {where}, which is not followed: prompts and key "
                "would go there. If that is the endpoint, write it as the address",
                status,
            )
        return target

    def _exchange(
        self, method: str, target: str, data: bytes | None, deadline: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers by their lower-case names, and the whole body."""
        connection, response = self._begun(method, target, data, deadline)
        try:
            headers = {name.lower(): value for name, value in response.getheaders()}
            try:
                body = self._read(response, headers, deadline)
            except TimeoutError as error:
                raise _NotComplete from error
            response.close()
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._kept.connection = connection
        return response.status, headers, body

    def _begun(self, method: str, target: str, data: bytes | None, deadline: float) -> tuple[Connection, HTTPResponse]:
        """A connection on which an answer has begun.

        One that is reset before that was not taken in: the server's queue was full, or it had just closed the
        connection. So it is opened anew, a few times.
        """
        for pause in RESETS:
            connection = self._connection(deadline)
            try:
                return connection, connection.ask(method, target, data, self._headers, deadline)
            except BaseException as error:
                connection.close()
                if pause is None or not isinstance(error, ConnectionError) or isinstance(error, RemoteDisconnected):
                    raise
                time.sleep(pause)
        raise AssertionError

    def _connection(self, deadline: float) -> Connection:
        kept: Connection | None = getattr(self._kept, "connection", None)
        # A connection that has something to read before anything was asked was closed by the server.
        self._kept.connection = None
        if kept is not None and not _has_something(kept):
            return kept
        if kept is not None:
            kept.close()
        try:
            return connect(self._parts, self._proxy, deadline)
        except TimeoutError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            raise TryAgain(f"the connection failed ({_told(error)})") from error

    def _read(self, response: HTTPResponse, headers: Mapping[str, str], deadline: float) -> bytes:
        """The body, whole and unpacked. EngineError where it is too large."""
        body = bytearray()
        if (response.length or 0) > self.largest:
            raise self._too_large()
        while piece := response.read1(PIECE):
            body += piece
            if len(body) > self.largest:
                raise self._too_large()
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:
            raise HTTPException(f"{response.length} bytes of the answer are missing")
        encoding = headers.get("content-encoding", "identity").strip()
        return bytes(body) if encoding.lower() in ("", "identity") else self._unpacked(bytes(body), encoding)

    def _unpacked(self, body: bytes, encoding: str) -> bytes:
        """Some servers compress what was asked for as it is."""
        if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
            # A key is known as it was read: never cut or in lower case.
            shown = repr(redacted_message(encoding)[:20])
            raise TryAgain(f"the answer is packed in a way ({shown}) that was not asked for")
        for window in (47, -15):  # With the header of gzip or zlib; without any, as some servers deflate.
            unpacker = zlib.decompressobj(window)
            try:
                text = unpacker.decompress(body, self.largest + 1)
            except zlib.error:
                continue
            if len(text) > self.largest:
                raise self._too_large()
            if unpacker.eof:
                return text
        raise TryAgain(f"the answer is no whole {encoding}")

    def _too_large(self) -> EngineError:
        return Refused(f"{self.name} sends an answer of more than {self.largest / MIB:g} MiB, which is not read", 200)


def _has_something(connection: Connection) -> bool:
    """Whether something came in that was not read: bytes, or the end."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


def parsed_json(body: bytes) -> Any:
    """The value in `body`, which is JSON in UTF-8. Raises ValueError for anything else."""
    try:
        return json.loads(body.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def shown_body(body: bytes) -> str:
    """The beginning of a body as messages quote it."""
    return repr(redacted_message(body[:4000].decode(errors="replace"))[:200])


def _told(error: Exception) -> str:
    return redacted_message(f"{type(error).__name__}: {error}")[:300]


def _proxy_for(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for `host`."""
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all")
