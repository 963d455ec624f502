"""Requests to one HTTP endpoint, each within bounds of time and size. It does not know the contents of requests.

Every outcome is bytes, an error with the server's words, or TryAgain, for any answer at any speed.
"""

from __future__ import annotations

import json
import selectors
import ssl
import threading
import time
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from typing import Any
from urllib.parse import urljoin, urlsplit

from memfactory.engines.addresses import origin, shown_address
from memfactory.engines.connection import Connection, connect
from memfactory.engines.pool import TryAgain
from memfactory.engines.server_words import requested_wait, server_words
from memfactory.errors import EngineError
from memfactory.redaction import redacted_message

RETRIED_STATUS = (408, 409, 425, 429)
TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error")
"""Servers' codes for a prompt beyond their context."""
FINAL_CODES = ("insufficient_quota", *TOO_LONG_CODES)
"""Codes that a retry cannot change, with any status."""
REDIRECTS = (307, 308)
"""Redirects that keep method and body; they are followed on the same server, up to MOST_REDIRECTS times."""
MOST_REDIRECTS = 3
RESETS = (0.02, 0.1, None)
"""Seconds before each new connection after a reset; None: the reset is an error."""
MIB = 2**20
READ_BYTES = 2**16


class Refused(EngineError):
    """The server understood the request and refused it: `status` is its HTTP status, `code` its own name for the
    reason."""

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _NotComplete(TimeoutError):
    """The deadline passed after the answer had begun."""


@dataclass(frozen=True)
class Answer:
    """The body of an answer that is not an error, and its content type."""

    body: bytes
    kind: str


class Endpoint:
    """The server at `address`, called `name` in messages.

    A request ends within `timeout` seconds, from the look-up of the host's name to the last byte; an answer of more
    than `largest` bytes is refused. Each thread keeps one connection. `near`: no proxy lies between.
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
        self._local = threading.local()

    def get(self, path: str) -> Answer:
        """Send a GET request and return the answer."""
        return self.request("GET", path, None, self.timeout)

    def post(self, path: str, body: object, timeout: float | None = None) -> Answer:
        """The server's answer to `body`, sent as JSON.

        Raises TryAgain if a retry may succeed, Refused if the server refuses the request.
        """
        return self.request("POST", path, json.dumps(body).encode(), timeout or self.timeout)

    def post_once(self, path: str, body: object, timeout: float) -> Answer:
        """As `post`, for a request with an effect: on a new connection, and never sent again after a reset."""
        self.close()
        return self.request("POST", path, json.dumps(body).encode(), timeout, resets=(None,))

    def request(
        self, method: str, path: str, data: bytes | None, timeout: float, resets: Sequence[float | None] = RESETS
    ) -> Answer:
        """Send one request and return the answer."""
        deadline = time.monotonic() + timeout
        target = self.address + path
        for _ in range(1 + MOST_REDIRECTS):
            try:
                status, headers, body = self._exchange(method, target, data, deadline, resets)
            except _NotComplete as error:
                raise TryAgain(f"the answer was not complete after {timeout:g} seconds") from error
            except TimeoutError as error:
                raise TryAgain(f"no answer within {timeout:g} seconds") from error
            except (OSError, HTTPException, ValueError) as error:
                raise TryAgain(f"the connection broke off ({_shown_error(error)})") from error
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
        open_connection: Connection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if open_connection is not None:
            open_connection.close()

    def _failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        reason, code = server_words(body, status)
        words = f"HTTP {status}: {reason}"
        if code not in FINAL_CODES and (status >= 500 or status in RETRIED_STATUS):
            return TryAgain(words, requested_wait(headers))
        return Refused(f"{self.name} refuses the request with {words}", status, code)

    def _redirected(self, status: int, requested: str, location: str) -> str:
        """The address of a redirect on the same server; Refused for another server, which would see prompts and key."""
        try:
            target = urljoin(requested, location) if location else ""
        except ValueError:
            target = ""
        if status not in REDIRECTS or origin(target) != origin(requested):
            where = f"to {shown_address(target)}" if target else "without an address"
            raise Refused(
                f"{self.name} redirects the request (HTTP {status}) {where}, which is not followed: prompts and key "
                "would go there. If that is the endpoint, write it as the address",
                status,
            )
        return target

    def _exchange(
        self, method: str, target: str, data: bytes | None, deadline: float, resets: Sequence[float | None]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers by their lower-case names, and the whole body."""
        connection, response = self._begun(method, target, data, deadline, resets)
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
            self._local.connection = connection
        return response.status, headers, body

    def _begun(
        self, method: str, target: str, data: bytes | None, deadline: float, resets: Sequence[float | None]
    ) -> tuple[Connection, HTTPResponse]:
        """A connection on which an answer has begun.

        A request whose connection is reset before an answer is sent again on a new connection, a few times: the
        server's queue was full, or it had just closed the connection.
        """
        for pause in resets:
            connection = self._connection(deadline)
            try:
                return connection, connection.request(method, target, data, self._headers, deadline)
            except BaseException as error:
                connection.close()
                if pause is None or not isinstance(error, ConnectionError) or isinstance(error, RemoteDisconnected):
                    raise
                time.sleep(pause)
        raise AssertionError

    def _connection(self, deadline: float) -> Connection:
        reused: Connection | None = getattr(self._local, "connection", None)
        # The server has closed a connection that has bytes to read before a request.
        self._local.connection = None
        if reused is not None and not _is_readable(reused):
            return reused
        if reused is not None:
            reused.close()
        try:
            return connect(self._parts, self._proxy, deadline)
        except TimeoutError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            raise TryAgain(f"the connection failed ({_shown_error(error)})") from error

    def _read(self, response: HTTPResponse, headers: Mapping[str, str], deadline: float) -> bytes:
        """The body, whole and decompressed. Raises EngineError if it is too large."""
        body = bytearray()
        if (response.length or 0) > self.largest:
            raise self._too_large()
        while read := response.read1(READ_BYTES):
            body += read
            if len(body) > self.largest:
                raise self._too_large()
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:
            raise HTTPException(f"{response.length} bytes of the answer are missing")
        encoding = headers.get("content-encoding", "identity").strip()
        return bytes(body) if encoding.lower() in ("", "identity") else self._unpacked(bytes(body), encoding)

    def _unpacked(self, body: bytes, encoding: str) -> bytes:
        """The body of a server that compresses answers unasked."""
        if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
            # Redaction knows a key as it was read: never cut or in lower case.
            shown = repr(redacted_message(encoding)[:20])
            raise TryAgain(f"the answer has a content encoding ({shown}) that the request does not accept")
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
        raise TryAgain(f"the answer is not complete {encoding}")

    def _too_large(self) -> EngineError:
        return Refused(f"{self.name} sends an answer of more than {self.largest / MIB:g} MiB, which is not read", 200)


def _is_readable(connection: Connection) -> bool:
    """Whether unread bytes, or the end of the stream, have come in."""
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


def _shown_error(error: Exception) -> str:
    without_tls = isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
    hint = "; the server answers without TLS: write http://" if without_tls else ""
    return redacted_message(f"{type(error).__name__}: {error}")[:300] + hint


def _proxy_for(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for `host`."""
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all")
