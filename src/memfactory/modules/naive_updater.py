"""The module `naive_updater`: which new entries join the memory bank, and which old ones they change or replace."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from memfactory.dialogue import Asking, Module, ModuleOptions
from memfactory.registry import MODULES
from memfactory.types import Episode

UPDATE_PROMPT = """\
Bring the memory up to date. Give one operation for each number.
Memory: NONE keeps an entry, DEL deletes one that a new entry contradicts.
New: ADD takes up an entry, UPDATE takes it up with a better key and value, NONE leaves it out.

<memory>
{memory}
</memory>

<new>
{candidates}
</new>

Reply with JSON: {"operations": [{"id": 1, "op": "NONE"}]}"""


class NaiveUpdaterOptions(ModuleOptions):
    """Options of `naive_updater`."""

    format: Literal["operations", "mem0"] = "operations"
    """The reply's shape: operations by temporary id, or the list `memory` of mem0 and Memory-R1."""
    prompt: str | None = None
    """The wording; {memory} and {candidates} are filled in. null: that of the format."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply, in tokens."""
    related: int = Field(3, ge=0)
    """Items of the bank that are looked up for each new entry."""
    shown: int = Field(16, ge=0)
    """The most items of the bank that are shown in all."""


@MODULES.register("naive_updater")
class NaiveUpdater(Module):
    """Decides for new entries and the items they touch: ADD, DEL, UPDATE or NONE."""

    Options: ClassVar[type[NaiveUpdaterOptions]] = NaiveUpdaterOptions
    options: NaiveUpdaterOptions
    steps = ("update",)

    def dialogue(self, episode: Episode) -> Asking:
        raise NotImplementedError
        yield
