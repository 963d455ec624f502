"""A memory bank in a folder, from one command to the next: `infer --bank` reads it before and writes it after."""

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
from memfactory.formats.render import utterances_of
from memfactory.memory.bank import BankSource, MemoryBank
from memfactory.memory.persistence import MANIFEST
from memfactory.registry import AGENTS
from memfactory.types import MemoryItem, Task


class BankFolder:
    """The bank in `folder`, locked for this process while it is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._items: tuple[MemoryItem, ...] = ()

    @staticmethod
    @contextmanager
    def open(folder: Path, agent: AgentSpec) -> Iterator[BankFolder]:
        """The bank in `folder`; a new one if the folder does not exist or is empty.

        Raises ConfigError for an agent without a memory bank, DataError for a folder of other files, InUseError if
        another process has it open.
        """
        if not AGENTS.get(agent.name).keeps_bank:
            agents = ", ".join(name for name in AGENTS.names() if AGENTS.get(name).keeps_bank)
            raise ConfigError(f"--bank: the agent {agent.name!r} has no memory bank; these have one: {agents}")
        with folder_lock(folder, name=f"--bank {folder}"):
            bank = BankFolder(folder)
            others = [path.name for path in folder.iterdir() if path.name != LOCK]
            if others and not bank.exists:
                raise DataError(
                    f"--bank {folder} holds no memory bank, but other files: {', '.join(sorted(others)[:5])}"
                )
            yield bank

    @property
    def exists(self) -> bool:
        """Whether the folder holds a bank."""
        return (self.folder / MANIFEST).is_file()

    def bind_tasks(
        self, tasks: Sequence[Task], fingerprint: Mapping[str, str | None], *, of_rows: bool
    ) -> tuple[tuple[Task, ...], Mapping[str, str | None]]:
        """The tasks and their fingerprint for this state of the bank, so that it can be asked a question again.

        A single question gets an id of its own for each state; for rows (`of_rows`) the fingerprint names the state.
        Rows cannot write into the bank, because they are answered side by side. Raises ConfigError for rows with a text
        to read, for tasks with a memory of their own, and for a question to an empty bank.
        """
        own = next((task.id for task in tasks if task.memory), None)
        if own is not None:
            raise ConfigError(f"{own} has a memory of its own, and --bank is another; leave one of them out")
        reading = next((task.id for task in tasks if utterances_of(task)), None)
        if of_rows and reading is not None:
            raise ConfigError(
                f"--bank: {reading} has a text to read, and rows are answered side by side. Read texts one at a time "
                "(--conversation or --document); rows can then ask about the items of the bank"
            )
        if reading is None and not self.exists:
            raise ConfigError(f"--bank {self.folder} is empty, and nothing is read: give --conversation or --document")
        state = sha256((self.folder / MANIFEST).read_bytes()).hexdigest()[:12] if self.exists else None
        if of_rows:
            return tuple(tasks), {**fingerprint, "bank": state}
        return tuple(replace(task, id=f"question-{digest([task.id, state])}") for task in tasks), fingerprint

    def load(self, banks: BankSource) -> tuple[MemoryItem, ...]:
        """The items of the bank; `banks` opens a bank of these with their history."""
        self._items = tuple(banks.load(self.folder).list()) if self.exists else ()
        return self._items

    def save(self, bank: MemoryBank | None) -> None:
        """Write `bank` to the folder atomically, unless its items are those that were loaded."""
        if bank is not None and (not self.exists or tuple(bank.list()) != self._items):
            bank.save(self.folder)
