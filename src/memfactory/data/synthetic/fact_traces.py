"""The dataset `fact_traces`: conversations that demonstrate reading the texts of `facts`, well or carelessly.

A row is `{"messages": [...]}`: one update of the memory, one answer, or a drill in repeating facts. Row number i
depends only on the options and i.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field, ValidationError, model_validator

from memfactory.data.synthetic.fact_world import MENTOR, NAMES, RELATIONS, Fact, draw_fact
from memfactory.data.synthetic.facts import Document, DocumentOptions, draw_document
from memfactory.data.synthetic.generated import GeneratedDataset, TracesOptions
from memfactory.errors import ConfigError
from memfactory.formats.answers import in_form
from memfactory.registry import DATASETS, MODULES
from memfactory.text import fill

READER = "recurrent_memory"
NOTHING = "- {}: nothing yet"
UNKNOWN = "unknown"
DRILL_PROMPT = "Repeat the facts in another order.\n\n<section>\n{section}\n</section>"


class FactTracesOptions(TracesOptions, DocumentOptions):
    """Options of `fact_traces`."""

    distraction: float = Field(0.0, ge=0, le=1)
    """Probability that an update notes a random other fact of the chunk instead of a new relevant one."""
    forgetting: float = Field(0.0, ge=0, le=1)
    """Probability that an update overwrites a memory that should stay with a random fact of the chunk."""
    drills: float = Field(0.0, ge=0, le=1)
    """Fraction of rows that are drills: a list of facts, to be repeated in another order."""
    drill_facts: int = Field(8, ge=2, le=len(NAMES))
    """The largest number of facts in a drill."""
    reader: dict[str, object] = Field(default_factory=dict)
    """Options of the module recurrent_memory whose prompts the conversations use, such as `prompts`."""

    @model_validator(mode="after")
    def _others_to_choose_from(self) -> FactTracesOptions:
        if self.facts_per_chunk < 2 and (self.distraction or self.forgetting):
            raise ValueError("distraction and forgetting need at least 2 facts_per_chunk: they write another fact")
        return self


@DATASETS.register("fact_traces")
class FactTracesDataset(GeneratedDataset[FactTracesOptions]):
    """Generated conversations that demonstrate reading the texts of `facts`, for supervised fine-tuning."""

    def __init__(self, options: FactTracesOptions, base_dir: Path) -> None:
        super().__init__(options, base_dir)
        try:
            self.reader: Any = MODULES.options(READER).model_validate(options.reader)
        except ValidationError as error:
            raise ConfigError(f"fact_traces: the options of `reader` are wrong: {error}") from None

    @property
    def source(self) -> str:
        return f"fact_traces ({self.options.split})"

    def values(self, index: int) -> dict[str, object]:
        random = Random(f"trace {self.options.seed} {self.options.split} {index}")
        if random.random() < self.options.drills:
            user, assistant = drill(random, self.options)
        else:
            user, assistant = self._exchange(random, index)
        return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}

    def _exchange(self, random: Random, index: int) -> tuple[str, str]:
        """One conversation of an episode: the update at a random chunk, or the answer after the last."""
        options, reader = self.options, self.reader
        document = draw_document(options, index)
        step = random.randrange(options.chunks + 1)
        memories = [reader.empty_memory, *read(random, document, options.distraction, options.forgetting)]
        values = {"question": document.question, "prompt": document.question, "memory": memories[step]}
        if step < options.chunks:
            values |= {"section": document.chunks[step], "chunk": document.chunks[step]}
            return fill(reader.prompts.update, values), memories[step + 1]
        return fill(reader.prompts.answer, values), in_form(answer_from(memories[step]), reader.requested_form)


def answer_from(memory: str) -> str:
    """A reader's answer: the value of the last fact in the memory, right or wrong; UNKNOWN if it has none."""
    return memory.rpartition(" ")[2].removesuffix(".") if memory.endswith(".") else UNKNOWN


def drill(random: Random, options: FactTracesOptions) -> tuple[str, str]:
    """A list of facts and the same list in another order. Half of the drills are about one relation only.

    Facts of one relation differ by the person alone, so that only recall helps.
    """
    people = random.sample(NAMES, random.randint(2, options.drill_facts))
    relation = random.choice(list(RELATIONS)) if random.random() < 0.5 else None
    facts = [draw_fact(random, person, options.split, relation) for person in people]
    listed = " ".join(fact.sentence for fact in facts)
    random.shuffle(facts)
    return fill(DRILL_PROMPT, {"section": " " + listed}), "\n".join(f"- {fact.sentence}" for fact in facts)


def read(random: Random, document: Document, distraction: float, forgetting: float) -> list[str]:
    """The memory after each chunk, of a reader that makes mistakes with these probabilities."""
    known: dict[str, Fact] = {}
    memories = []
    for statements in document.statements:
        relevant = _relevant([statement.fact for statement in statements], document.hops, known)
        others = [statement.fact for statement in statements if statement.fact not in relevant.values()]
        changed = relevant != known
        if others and random.random() < (distraction if changed or not known else forgetting):
            known = {}
            memories.append(f"- {random.choice(others).sentence}")
        else:
            known = relevant
            memories.append(
                "\n".join(f"- {fact.sentence}" for fact in known.values()) or NOTHING.format(document.hops[0])
            )
    return memories


def _relevant(facts: Sequence[Fact], hops: Sequence[str], known: dict[str, Fact]) -> dict[str, Fact]:
    """The known facts about the people in `hops` after reading `facts`, up to the first person without one."""
    newest = {fact.person: fact for fact in facts}
    relevant: dict[str, Fact] = {}
    for person in hops:
        fact = newest.get(person, known.get(person))
        if fact is None:
            break
        relevant[person] = fact
        if fact.relation != MENTOR:
            break
    return relevant
