"""A memory bank in a folder that goes on from one command to the next: read before it, written after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from memfactory.config.schema import AgentSpec
from memfactory.errors import ConfigError, DataError
from memfactory.evaluation.fingerprint import digest
from memfactory.files.locks import LOCK, folder_lock
from memfactory.formats.render import told
from memfactory.memory.bank import BankSource, MemoryBank
from memfactory.memory.persistence import MANIFEST
from memfactory.registry import AGENTS
from memfactory.types import MemoryItem, Task


class BankFolder:
    """The bank in `folder`, which is this process's alone while it is `held`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._items: tuple[MemoryItem, ...] = ()

    @staticmethod
    @contextmanager
    def open(folder: Path, agent: AgentSpec) -> Iterator[BankFolder]:
        """The bank in `folder`, or a new one where there is no folder yet, or an empty one.

        Raises ConfigError for an agent without a memory bank, DataError for a folder of something else, InUseError
        where another process holds it.
        """
        if not AGENTS.get(agent.name).keeps_bank:
            keeping = ", ".join(name for name in AGENTS.names() if AGENTS.get(name).keeps_bank)
            raise ConfigError(f"--bank: the agent {agent.name!r} has no memory bank; these have one: {keeping}")
        with folder_lock(folder, name=f"--bank {folder}"):
            kept = BankFolder(folder)
            others = [path.name for path in folder.iterdir() if path.name != LOCK]
            if others and not kept.is_there:
                raise DataError(
                    f"--bank {folder} holds no memory bank, but other files: {', '.join(sorted(others)[:5])}"
                )
            yield kept

    @property
    def is_there(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    def bind_tasks(
        self, tasks: Sequence[Task], fingerprint: Mapping[str, str | None], *, of_rows: bool
    ) -> tuple[tuple[Task, ...], Mapping[str, str | None]]:
        """The tasks and what their answers depend on, with the bank among it: a question may be asked of it again.

        Rows (`of_rows`) only ask: what each of them would write into the bank is not defined. Raises ConfigError for
        rows and conversations that bring a memory of their own, or for a question to a bank that is not there.
        """
        own = next((task.id for task in tasks if task.memory), None)
        if own is not None:
            raise ConfigError(f"{own} brings a memory of its own, and --bank is another; leave one of them out")
        reading = next((task.id for task in tasks if told(task)), None)
        if of_rows and reading is not None:
            raise ConfigError(
                f"--bank: {reading} has a text to read, and rows are answered side by side. Read texts one at a time "
                "(--conversation or --document); rows can then ask of what the bank holds"
            )
        if reading is None and not self.is_there:
            raise ConfigError(f"--bank {self.folder} is empty, and nothing is read: give --conversation or --document")
        state = sha256((self.folder / MANIFEST).read_bytes()).hexdigest()[:12] if self.is_there else None
        if of_rows:
            return tuple(tasks), {**fingerprint, "bank": state}
        return tuple(replace(task, id=f"question-{digest([task.id, state])}") for task in tasks), fingerprint

    def load(self, banks: BankSource) -> tuple[MemoryItem, ...]:
        """The items that the bank begins with; `banks` opens a bank of these with their history."""
        self._items = tuple(banks.load(self.folder).list()) if self.is_there else ()
        return self._items

    def save(self, bank: MemoryBank | None) -> None:
        """Write what the bank has become, whole or not at all; one that nothing has changed is left alone."""
        if bank is not None and (not self.is_there or tuple(bank.list()) != self._items):
            bank.save(self.folder)
