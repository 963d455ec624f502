"""Addresses of endpoints: their checks, and their forms in messages and records."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from urllib.parse import SplitResult, quote, urlsplit

from memfactory.errors import ConfigError
from memfactory.redaction import redacted_message

OPENAI = "https://api.openai.com/v1"
_REQUESTED = ("/chat/completions", "/completions", "/responses", "/embeddings")


def address_problem(address: str) -> str | None:
    """The reason why `address` cannot be used; None if it can."""
    shown = repr(shown_address(address))
    if not address.startswith(("http://", "https://")):
        return f"{shown} is not an address; it begins with http:// or https://"
    if re.search(r"[\s\x00-\x20\x7f]", address):
        return f"{shown} is not an address: it holds white space or a control character"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        return f"{shown} is not an address: {redacted_message(str(error))}"
    if not parts.hostname:
        return f"{shown} is not an address: it names no host"
    if port == 0:
        return f"{shown} is not an address: there is no port 0"
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        return f"{shown} is not an address: its host is not a name that can be looked up"
    if not parts.path.isascii():
        return f"{shown} is not an address: write its path in percent signs, as {quote(parts.path)!r}"
    if parts.query or parts.fragment:
        return f"{shown} is not an endpoint's address: requests are sent to paths below it, so it ends without ? and #"
    path = parts.path.rstrip("/")
    ending = next((ending for ending in _REQUESTED if path.endswith(ending)), None)
    if ending is not None:
        base = parts._replace(path=path.removesuffix(ending)).geturl()
        return f"{shown} is a request's address: {ending} is added to it; write {shown_address(base)}"
    return None


def checked_address(configured: str | None, key: str) -> str:
    """`configured`, else OPENAI_BASE_URL, else OpenAI's own. Raises ConfigError for an invalid address."""
    for address, name in (
        (configured, key),
        (os.environ.get("OPENAI_BASE_URL"), "the environment variable OPENAI_BASE_URL"),
    ):
        if address:
            problem = address_problem(address)
            if problem:
                raise ConfigError(f"{name}: {problem}")
            return address.rstrip("/")
    return OPENAI


def named_address(configured: str | None) -> str | None:
    """The endpoint's address as records name it; None for OpenAI's own by default."""
    address = configured or os.environ.get("OPENAI_BASE_URL")
    return None if not address else public_address(address)


def shown_address(address: str) -> str:
    """`address` without secrets."""
    return redacted_message(address)[:300]


def public_address(address: str) -> str:
    """`address` without user, password and query: the name of an endpoint on disk."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def origin(address: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of `address`: they name one server."""
    try:
        parts: SplitResult = urlsplit(address)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None


def is_on_this_machine(address: str) -> bool:
    """Whether `address` names this machine: `localhost` or a loopback address."""
    try:
        host = urlsplit(address).hostname or ""
    except ValueError:
        return False
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
