"""A connection to an HTTP server whose reads and writes end by a deadline, also if bytes come one by one."""

from __future__ import annotations

import base64
import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit


class TimedSocket:
    """The part of a socket that the HTTP library needs; each operation ends by `deadline`."""

    def __init__(self, raw: socket.socket, deadline: float) -> None:
        self.raw, self.deadline = raw, deadline

    def sendall(self, data: bytes) -> None:
        """Send before the deadline."""
        self.arm()
        self.raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """A file whose reads count against the deadline."""
        return io.BufferedReader(_Reader(self))

    def arm(self) -> None:
        """Set the remaining time as timeout. Raises TimeoutError if none remains."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.raw.settimeout(left)

    def close(self) -> None:
        """Nothing: the HTTP library closes sockets that it still reads from; see Connection.close."""


class _Reader(io.RawIOBase):
    """The bytes that come in at a TimedSocket."""

    def __init__(self, timed: TimedSocket) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._timed.arm()
        return self._timed.raw.recv_into(buffer)


class Connection:
    """An open connection. `through_proxy`: requests name the whole address."""

    def __init__(self, timed: TimedSocket, parts: SplitResult, headers: Mapping[str, str], through_proxy: bool) -> None:
        self._timed, self._through_proxy, self._headers = timed, through_proxy, headers
        host = (parts.hostname or "").encode("idna").decode()
        self._http = HTTPConnection(host, parts.port or 80)
        self._host = (f"[{host}]" if ":" in host else host) + (f":{parts.port}" if parts.port else "")
        self._user = _basic(parts)
        self._http.sock = timed

    def request(
        self, method: str, target: str, data: bytes | None, headers: Mapping[str, str], deadline: float
    ) -> HTTPResponse:
        """The beginning of the answer; its body is read by `deadline` too."""
        self._timed.deadline = deadline
        parts = urlsplit(target)
        path = parts._replace(scheme="", netloc="", path=parts.path or "/", fragment="").geturl()
        requested = parts._replace(netloc=self._host, fragment="").geturl() if self._through_proxy else path
        user = {} if self._user is None or "Authorization" in headers else {"Authorization": self._user}
        self._http.request(method, requested, data, {"Host": self._host, **headers, **user, **self._headers})
        return self._http.getresponse()

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self._timed.raw.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._http.close()
        self._timed.raw.close()


def connect(parts: SplitResult, proxy: str | None, deadline: float) -> Connection:
    """A connection to the server of the address `parts`, through `proxy`, if any."""
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    headers: dict[str, str] = {}
    if proxy is None:
        timed = TimedSocket(_dialled(host, port, deadline), deadline)
    else:
        at = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if at.scheme not in ("http", "https"):
            raise OSError(f"a proxy of the kind {at.scheme!r}, which the environment names, is not supported")
        timed = TimedSocket(_dialled(at.hostname or "", at.port or 8080, deadline), deadline)
        user = _basic(at)
        headers = {} if user is None else {"Proxy-Authorization": user}
    try:
        if secure:
            if proxy is not None:
                _tunnel(timed, host, port, headers)
                headers = {}
            timed.arm()
            timed.raw = _tls().wrap_socket(timed.raw, server_hostname=host)
    except BaseException:
        timed.raw.close()
        raise
    return Connection(timed, parts, headers, proxy is not None and not secure)


def _dialled(host: str, port: int, deadline: float) -> socket.socket:
    """A socket that is connected, to the first of the host's addresses that answers."""
    failure: OSError = OSError(f"the host {host!r} has no address")
    for family, kind, protocol, place in _looked_up(host, port, deadline):
        raw = socket.socket(family, kind, protocol)
        try:
            TimedSocket(raw, deadline).arm()
            raw.connect(place)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raw.close()
            failure = error
        else:
            return raw
    raise failure


def _looked_up(host: str, port: int, deadline: float) -> list[tuple[int, int, int, Any]]:
    """The addresses of `host`. The system's look-up knows no deadline, so a thread waits for it."""
    addresses: list[tuple[int, int, int, Any]] = []
    failures: list[OSError | UnicodeError] = []

    def look_up() -> None:
        try:
            for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                addresses.append((family, kind, protocol, place))
        except (OSError, UnicodeError) as failure:
            failures.append(failure)

    thread = threading.Thread(target=look_up, name="look-up", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive():
        raise TimeoutError
    if failures:
        raise failures[0]
    return addresses


def _tunnel(timed: TimedSocket, host: str, port: int, headers: Mapping[str, str]) -> None:
    """Have the proxy at the other end connect to `host`."""
    lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}", *(f"{n}: {v}" for n, v in headers.items())]
    timed.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    # The standard library's types know no socket but its own.
    sock: Any = timed
    response = HTTPResponse(sock, method="CONNECT")
    response.begin()
    if response.status != 200:
        raise OSError(f"the proxy refuses to connect to {host} (HTTP {response.status})")


def _basic(parts: SplitResult) -> str | None:
    """The credentials in an address as a header holds them."""
    if parts.username is None:
        return None
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@cache
def _tls() -> ssl.SSLContext:
    """The system's certificates, or those that come with Python's packages if it has none."""
    context = ssl.create_default_context()
    if not context.get_ca_certs():
        with suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context
