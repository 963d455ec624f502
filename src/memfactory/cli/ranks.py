"""What several processes of one run say on one terminal: every error once, with the rank that met it."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from memfactory.environment import process_count, process_rank


def speaker() -> str:
    """What stands before an error, so that it is known which process met it; empty for a process on its own."""
    return f"rank {process_rank()}: " if process_count() > 1 else ""


def first_to_say(text: str) -> bool:
    """Whether no other process of this run on this machine has said `text` yet; from now on one has.

    Mistakes in a configuration are found by all of them. Where they share no folder each says what it has to say.
    """
    folder = _shared_folder()
    if folder is None:
        return True
    said = folder / f"memfactory-{blake2b(text.encode(errors='replace'), digest_size=16).hexdigest()}"
    try:
        said.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _shared_folder() -> Path | None:
    """The folder that torchrun makes for this start of all processes."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if process_count() == 1 or not error_file:
        return None
    # .../attempt_N/RANK/error.json
    folder = Path(error_file).parent.parent
    return folder if folder.is_dir() else None
