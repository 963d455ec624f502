"""Messages of several processes on one terminal: every error once, with its rank."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from memfactory.environment import process_count, process_rank


def speaker() -> str:
    """The prefix of an error that names the process; empty for a single process."""
    return f"rank {process_rank()}: " if process_count() > 1 else ""


def first_to_say(text: str) -> bool:
    """Whether this process is the first of the run on this machine to print `text`; the call claims it.

    A mistake in a configuration meets all processes. Without a shared folder each of them prints it.
    """
    folder = _shared_folder()
    if folder is None:
        return True
    claim = folder / f"memfactory-{blake2b(text.encode(errors='replace'), digest_size=16).hexdigest()}"
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _shared_folder() -> Path | None:
    """The folder that torchrun creates for this start of the processes."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if process_count() == 1 or not error_file:
        return None
    # .../attempt_N/RANK/error.json
    folder = Path(error_file).parent.parent
    return folder if folder.is_dir() else None
