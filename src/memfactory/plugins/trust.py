"""What this user trusts: the SHA-256 of each plugin and endpoint that he started a run with, or said --trust to.

They stand in a file of his own: $MEMFACTORY_TRUSTED, else trusted.json in memfactory/ under $XDG_STATE_HOME
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

log = logging.getLogger("memfactory")
_TRIES, _PAUSE = 50, 0.1


def trust_file() -> Path:
    """Where the digests stand; it need not be there."""
    named = os.environ.get("MEMFACTORY_TRUSTED")
    if named:
        return Path(named).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "memfactory" / "trusted.json"


def trusted() -> frozenset[str]:
    """The digests of all that this user trusts; none where the file is not there or is not what was written."""
    return frozenset(_read(trust_file()))


def trust(names: Mapping[str, str]) -> None:
    """Trust what is named from now on: its name (to be read by people) by its digest.

    Where the file cannot be written, a warning says so and nothing is remembered.
    """
    path = trust_file()
    if names.keys() <= _read(path).keys():
        return
    try:
        for attempt in range(_TRIES):
            try:
                with file_lock(path):
                    _add(path, names)
                return
            except InUseError:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(_PAUSE)
    except (OSError, MemFactoryError) as error:
        log.warning("that you trust %s could not be kept: %s", ", ".join(names.values()), error)


def _add(path: Path, names: Mapping[str, str]) -> None:
    known = _read(path)
    if not known and path.is_file() and path.stat().st_size:
        log.warning("%s is not what was written; it is now %s", path, set_aside(path))
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    known |= {digest: {"name": name, "since": since} for digest, name in names.items() if digest not in known}
    write_json(path, {"sha256": known})


def _read(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    found = value.get("sha256") if isinstance(value, dict) else None
    return dict(found) if isinstance(found, dict) else {}
