"""The trusted plugins and endpoints of this user, by SHA-256: those of runs that they started or marked with --trust.

They stand in a file of the user: $MEMFACTORY_TRUSTED, else trusted.json in memfactory/ under $XDG_STATE_HOME
(~/.local/state).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from memfactory.errors import MemFactoryError
from memfactory.files.atomic import set_aside, write_json
from memfactory.files.locks import InUseError, file_lock
from memfactory.files.places import expanded

log = logging.getLogger("memfactory")
_TRIES, _PAUSE = 50, 0.1


def trust_file() -> Path:
    """The file of digests; it need not exist."""
    named = os.environ.get("MEMFACTORY_TRUSTED")
    if named:
        return expanded(named)
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return expanded(state) / "memfactory" / "trusted.json"


def trusted() -> frozenset[str]:
    """The digests of all that this user trusts; none if the file is missing or damaged."""
    return frozenset(_read(trust_file()))


def trust(names: Mapping[str, str]) -> None:
    """Trust the items of `names` from now on: readable names by digest.

    If the file cannot be written, a warning says so and nothing is remembered.
    """
    path = trust_file()
    if names.keys() <= _read(path).keys():
        return
    try:
        for number in range(_TRIES):
            try:
                with file_lock(path):
                    _add(path, names)
                return
            except InUseError:
                if number == _TRIES - 1:
                    raise
                time.sleep(_PAUSE)
    except (OSError, MemFactoryError) as error:
        log.warning("your trust in %s could not be saved: %s", ", ".join(names.values()), error)


def _add(path: Path, names: Mapping[str, str]) -> None:
    known = _read(path)
    if not known and path.is_file() and path.stat().st_size:
        log.warning("%s is damaged; it was moved to %s", path, set_aside(path))
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    known |= {digest: {"name": name, "since": since} for digest, name in names.items() if digest not in known}
    write_json(path, {"sha256": known})


def _read(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    digests = value.get("sha256") if isinstance(value, dict) else None
    return dict(digests) if isinstance(digests, dict) else {}
