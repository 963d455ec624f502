"""Files that the authors of a benchmark publish: where to get one, and an error for a file of another form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memfactory.data.base import Row
from memfactory.data.fields import described
from memfactory.data.rows import find_file, read_rows
from memfactory.errors import DataError


@dataclass(frozen=True)
class Published:
    """The files of the benchmark `name`: their form in words, and where to get them.

    Their rows are `unit` ("questions"); a row that has none of `fields` is one of another form.
    """

    name: str
    form: str
    where: str
    unit: str
    fields: frozenset[str]

    def expected(self, actual: str) -> str:
        """The end of a message about a file of another form; `actual` describes it."""
        return (
            f"expected {self.name}'s form, {self.form}, got {actual}. {self.where}. Rows of your own are read by the "
            "dataset `file`"
        )


def find_published(name: str, base_dir: Path, where: str) -> Path:
    """`find_file` for a file that the authors of a benchmark publish; its DataError says `where` to get the file."""
    try:
        return find_file(name, base_dir)
    except DataError as error:
        raise DataError(f"{error}\n{where}") from None


def read_published(path: Path, name: str, published: Published) -> list[Row]:
    """The rows of the file at `path`, which messages call `name`.

    Raises DataError with the expected form and the given one if the file has no rows or is of another form. A single
    row that does not fit is left to the reader.
    """
    try:
        rows = read_rows(path, name)
    except DataError as error:
        raise DataError(f"{error}. {published.name}'s form is {published.form}. {published.where}") from None
    if not rows:
        raise DataError(f"{name} has no {published.unit}. {published.where}")
    if not any(published.fields & row.values.keys() for row in rows):
        raise DataError(f"{name}: {published.expected(form_of(rows, name))}")
    return rows


def form_of(rows: Sequence[Row], name: str) -> str:
    """The form of the file `name` in a few words, by its first row."""
    first = rows[0]
    place = first.source.removeprefix(f"{name} ")
    if first.problem is not None:
        return f"a file whose {place} is no row ({first.problem})"
    return f"rows of which the first ({place}) is {described(dict(first.values))}"
