"""Whether the Hugging Face hub can be reached: one short check instead of a minute of retries. No torch."""

from __future__ import annotations

import errno
import os
import socket
import time
from functools import lru_cache

TRIES = 2
PAUSE = 1.0
TIMEOUT = 10.0
"""Seconds that a connection may take to be made; a network that needs longer carries no model either."""
REMEMBERED = 60.0
"""Seconds for which an answer holds."""
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


def hub_away() -> str | None:
    """Why the hub cannot be reached; None if it can, or if that cannot be known in a short time.

    In offline mode the libraries do not connect, and there is nothing to check.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _proxy_of_another_kind():
        return None
    return _away(constants.ENDPOINT, int(time.monotonic() // REMEMBERED))


@lru_cache(maxsize=1)
def _away(endpoint: str, _period: int) -> str | None:
    """Why no connection to `endpoint` can be made, in this period of time."""
    reason: str | None = None
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE)
        reason = _obstacle(endpoint)
        if reason is None:
            return None
    return f"{endpoint}: {reason}"


def _obstacle(endpoint: str) -> str | None:
    """Why no connection to `endpoint` was made. An answer of any kind, and a slow one, is none."""
    # Configs are read with this file, and most of them never ask.
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=TIMEOUT):
            return None
    except HTTPError:
        return None
    except URLError as error:
        reason = error.reason
        refused = isinstance(reason, socket.gaierror | ConnectionRefusedError | TimeoutError)
        if refused or (isinstance(reason, OSError) and reason.errno in _NO_WAY):
            return str(getattr(reason, "strerror", None) or reason)
        return None
    except (OSError, ValueError):
        # A connection was made.
        return None


def _proxy_of_another_kind() -> bool:
    """Whether the libraries go through a proxy that this check cannot use."""
    from urllib.request import getproxies

    names = ("ALL_PROXY", "all_proxy")
    return any(os.environ.get(name) for name in names) or any("socks" in address for address in getproxies().values())


def looks_local(path: str) -> bool:
    """Whether `path` can only be meant as a place on this machine: a hub id is `name` or `owner/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith("/")
