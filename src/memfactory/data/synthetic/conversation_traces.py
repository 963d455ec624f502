"""The dataset `conversation_traces`: prompts of memory-bank modules and their replies, right or careless.

A row is `{"messages": [...]}`: one step of one module about a story of `conversations`. Row number i depends only on
the options and i.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from memfactory.data.base import DatasetOptions
from memfactory.data.synthetic.conversation_world import TOPICS, State, draw_chat, draw_state
from memfactory.data.synthetic.conversations import ConversationOptions, Remark, Story, draw_story
from memfactory.data.synthetic.fact_traces import DRILL_PROMPT
from memfactory.data.synthetic.generated import GeneratedDataset, TracesOptions, WorldOptions
from memfactory.errors import ConfigError
from memfactory.files.atomic import json_text
from memfactory.formats.answers import in_form
from memfactory.formats.render import bracketed_list, bullet_list, numbered_list, render_conversation
from memfactory.registry import DATASETS, MODULES
from memfactory.text import after_marker, fill
from memfactory.types import AnswerForm, Candidate, Utterance

Step = Literal["extract", "update", "rerank", "answer", "cite", "drill", "quiz"]
READERS: dict[Step, str] = {
    "extract": "naive_extractor",
    "update": "naive_updater",
    "rerank": "rerank_retriever",
    "answer": "answer",
    "cite": "citing_answer",
}
QUIZ_PROMPT = "Ask about the memories and answer.\n\n<memory>\n{memory}\n</memory>"
QUESTIONS = 10
"""The largest number of questions in a quiz."""
UNKNOWN = "unknown"
NO_CITE = "NO_CITE"


class ConversationTracesOptions(TracesOptions, WorldOptions, DatasetOptions):
    """Options of `conversation_traces`."""

    steps: dict[Step, float] = Field(default_factory=lambda: dict.fromkeys(READERS, 1.0))
    """Relative number of rows for each step: extract, update, rerank, answer, cite, and two exercises without a module:
    drill (memories to be repeated in another order) and quiz (questions about memories)."""
    items: int = Field(8, ge=1, le=2 * len(TOPICS))
    """The largest number of memories in the prompts of updates and answers."""
    min_candidates: int = Field(1, ge=1)
    """The smallest number of memories that a reranker chooses from."""
    max_candidates: int = Field(20, ge=1, le=2 * len(TOPICS))
    """The largest number of memories that a reranker chooses from."""
    keep: int = Field(5, ge=1)
    """The number of memories that a reranker chooses."""
    changes: float = Field(0.6, ge=0, le=1)
    """Probability that a new entry changes a known one."""
    paraphrased: float = Field(0.5, ge=0, le=1)
    """Fraction of questions that are paraphrases: only the person's name also occurs in the fact."""
    absent: float = Field(0.1, ge=0, le=1)
    """Probability that the memory with the answer is missing."""
    careless_extract: float = Field(0.0, ge=0, le=1)
    """Probability that an extraction notes chit-chat or a wrong value instead of the stated fact."""
    careless_update: float = Field(0.0, ge=0, le=1)
    """Probability that an update leaves out a new entry, or keeps an outdated one; half of it: deletes a good one."""
    careless_rerank: float = Field(0.0, ge=0, le=1)
    """Probability that a reranker chooses at random."""
    modules: dict[Step, dict[str, object]] = Field(default_factory=dict)
    """Options of the modules whose prompts the conversations use, such as `prompt`."""

    @model_validator(mode="after")
    def _a_step_is_shown(self) -> ConversationTracesOptions:
        if self.min_candidates > self.max_candidates:
            raise ValueError(
                f"min_candidates is {self.min_candidates}, more than max_candidates, which is {self.max_candidates}"
            )
        if min(self.steps.values(), default=0) < 0 or not sum(self.steps.values()):
            raise ValueError(f"steps should name at least one step with a weight above 0, got {self.steps}")
        return self


@DATASETS.register("conversation_traces")
class ConversationTracesDataset(GeneratedDataset[ConversationTracesOptions]):
    """Generated conversations that demonstrate the modules of memory banks, for supervised fine-tuning."""

    def __init__(self, options: ConversationTracesOptions, base_dir: Path) -> None:
        super().__init__(options, base_dir)
        readers = {step: _reader(step, options.modules.get(step, {})) for step in READERS}
        self.prompts: dict[Step, str] = {
            step: reader.wording if step == "update" else reader.prompt for step, reader in readers.items()
        }
        self.answer_form: AnswerForm = readers["answer"].requested_form
        self.prompts |= {"drill": DRILL_PROMPT, "quiz": QUIZ_PROMPT}

    @property
    def source(self) -> str:
        return f"conversation_traces ({self.options.split})"

    def values(self, index: int) -> dict[str, object]:
        options = self.options
        random = Random(f"conversation trace {options.seed} {options.split} {index}")
        (step,) = random.choices(list(options.steps), list(options.steps.values()))
        values, reply = EXAMPLES[step](random, options)
        if step == "answer" and self.answer_form != "marker":
            reply = in_form(after_marker(reply) or UNKNOWN, self.answer_form)
        messages = [
            {"role": "user", "content": fill(self.prompts[step], values)},
            {"role": "assistant", "content": reply},
        ]
        return {"messages": messages, "step": step}


Example = tuple[dict[str, str], str]
"""The values for the placeholders of a module's prompt, and the reply."""


def extract(random: Random, options: ConversationTracesOptions) -> Example:
    """A session, and the facts that it states."""
    utterances = random.randint(1, 4)
    facts = random.randint(1, min(3, utterances))
    form = ConversationOptions(items=random.randint(0, 5), sessions=1, utterances=utterances, facts=facts)
    story = _story(random, options, form)
    session = story.sessions[0]
    turns = [Utterance(remark.speaker, remark.text, remark.id) for remark in session]
    entries = [
        {"key": remark.speaker, "value": _noted(random, options, session, remark.state)}
        for remark in session
        if remark.state is not None
    ]
    return {"conversation": render_conversation(turns)}, json.dumps({"memory_list": entries})


def _noted(random: Random, options: ConversationTracesOptions, session: Sequence[Remark], state: State) -> str:
    """The note of an extraction for a stated `state`."""
    if random.random() >= options.careless_extract:
        return state.sentence
    chat = [remark.text for remark in session if remark.state is None]
    if chat and random.random() < 0.5:
        return random.choice(chat)
    return draw_state(random, state.person, state.topic, options.split, state.value).sentence


def update(random: Random, options: ConversationTracesOptions) -> Example:
    """Items of a bank and new entries, and an operation for each."""
    facts = random.choice([1, 1, 2])
    form = ConversationOptions(
        items=random.randint(0, options.items),
        sessions=1,
        facts=facts,
        changes=options.changes,
        people=random.choice([2, 2, 3]),
    )
    story = _story(random, options, form)
    states = [remark.state for remark in story.sessions[0] if remark.state is not None]
    news = [Candidate(state.sentence, state.person) for state in states]
    chat = random.random() < 0.1
    if chat:
        news[-1] = Candidate(draw_chat(random), random.choice(states).person)
        states.pop()
    changed = {(state.person, state.topic) for state in states}
    slip = options.careless_update
    operations = []
    for known in story.bank:
        outdated = (known.state.person, known.state.topic) in changed
        wrong = random.random() < (slip if outdated else slip / 2)
        operations.append("DEL" if outdated != wrong else "NONE")
    for place in range(len(news)):
        wrong = random.random() < slip
        operations.append("ADD" if (place < len(states)) != wrong else "NONE")
    if options.modules.get("update", {}).get("format") == "mem0":
        return _as_mem0([known.state for known in story.bank], states, [new.text for new in news], operations)
    lines = [known.state.sentence for known in story.bank]
    values = {
        "memory": numbered_list(lines),
        "candidates": numbered_list([candidate.text for candidate in news], len(lines) + 1),
    }
    entries = [{"id": number, "op": operation} for number, operation in enumerate(operations, 1)]
    return values, json.dumps({"operations": entries})


def _as_mem0(bank: Sequence[State], states: Sequence[State], news: Sequence[str], operations: Sequence[str]) -> Example:
    """An update in the form of mem0: one entry for each item, its correction in its place, then the other new ones.

    `states` are those of the first of `news`; `operations` decide about the items of `bank`, then about `news`.
    """
    added = {place: new for place, new in enumerate(news) if operations[len(bank) + place] == "ADD"}
    places = {(state.person, state.topic): place for place, state in enumerate(states) if place in added}
    entries = []
    for number, (state, operation) in enumerate(zip(bank, operations, strict=False)):
        entry = {"id": str(number), "text": state.sentence, "event": "NONE"}
        place = places.pop((state.person, state.topic), None) if operation == "DEL" else None
        if place is not None:
            entry |= {"text": added.pop(place), "event": "UPDATE", "old_memory": state.sentence}
        elif operation == "DEL":
            entry["event"] = "DELETE"
        entries.append(entry)
    new_entries = [{"id": str(n), "text": new, "event": "ADD"} for n, new in enumerate(added.values(), len(bank))]
    memory = [{"id": str(number), "text": state.sentence} for number, state in enumerate(bank)]
    values = {"memory": json_text(memory), "candidates": json_text(list(news))}
    return values, json_text({"memory": entries + new_entries})


def rerank(random: Random, options: ConversationTracesOptions) -> Example:
    """Memories retrieved for a question, and the numbers of some: the one with the answer first, then any others."""
    story, states = _bank_only(random, options, random.randint(options.min_candidates, options.max_candidates))
    numbers = list(range(1, len(states) + 1))
    random.shuffle(numbers)
    if random.random() >= options.careless_rerank:
        right = states.index(story.target) + 1
        numbers.remove(right)
        numbers.insert(0, right)
    memory = numbered_list([state.sentence for state in states])
    return {"question": story.question, "memory": memory, "limit": str(options.keep)}, json.dumps(
        numbers[: options.keep]
    )


def answer(random: Random, options: ConversationTracesOptions) -> Example:
    """Memories retrieved for a question, and the memory with the answer, then the answer behind its marker."""
    story, states, lines = _retrieved(random, options)
    reply = f"**Answer:** {UNKNOWN}"
    if story.target in states:
        reply = f"- {story.target.sentence}\n**Answer:** {story.target.value}"
    return {"question": story.question, "memory": bullet_list(lines)}, reply


def cite(random: Random, options: ConversationTracesOptions) -> Example:
    """Memories retrieved for a question, and the answer with the number of its memory."""
    story, states, lines = _retrieved(random, options)
    reply = f"{UNKNOWN} [{NO_CITE}]"
    if story.target in states:
        reply = f"{story.target.value} [{lines.index(story.target.sentence)}]"
    return {"question": story.question, "memory": bracketed_list(lines)}, reply


def drill(random: Random, options: ConversationTracesOptions) -> Example:
    """Memories of a few people, and the same memories in another order."""
    _, states = _bank_only(random, options, random.randint(2, options.items))
    listed = " ".join(state.sentence for state in states)
    random.shuffle(states)
    return {"section": " " + listed}, bullet_list([state.sentence for state in states])


def quiz(random: Random, options: ConversationTracesOptions) -> Example:
    """Memories, and questions about them, each with the answer or with the number of its memory."""
    _, states = _bank_only(random, options, random.randint(2, options.max_candidates))
    number, lines = random.choice([numbered_list, bracketed_list]), [state.sentence for state in states]
    values = random.random() < 0.5
    first = 1 if number is numbered_list else 0
    replies = []
    for place in random.sample(range(len(states)), min(QUESTIONS, len(states))):
        question = states[place].question(random.random() < options.paraphrased)
        replies.append(f"{question} {states[place].value if values else place + first}")
    return {"memory": number(lines)}, "\n".join(replies)


EXAMPLES = {
    "extract": extract,
    "update": update,
    "rerank": rerank,
    "answer": answer,
    "cite": cite,
    "drill": drill,
    "quiz": quiz,
}


def _reader(step: Step, values: dict[str, object]) -> Any:
    """The options of the module of `step`. Raises ConfigError if `values` are not options of it."""
    try:
        return MODULES.options(READERS[step]).model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"conversation_traces: the options of {READERS[step]} are wrong: {error}") from None


def _story(random: Random, options: ConversationTracesOptions, form: ConversationOptions) -> Story:
    """A story of `form`, with the split and the paraphrases of `options`."""
    update = {"split": options.split, "paraphrased": options.paraphrased}
    return draw_story(form.model_copy(update=update), random)


def _bank_only(random: Random, options: ConversationTracesOptions, items: int) -> tuple[Story, list[State]]:
    """A story without a conversation, and the states of its bank."""
    people = random.choice([2, 2, 3])
    story = _story(random, options, ConversationOptions(items=items, sessions=0, people=people))
    return story, [known.state for known in story.bank]


def _retrieved(random: Random, options: ConversationTracesOptions) -> tuple[Story, list[State], list[str]]:
    """A story, the states retrieved for its question, and their lines, sometimes with chit-chat among them."""
    story, states = _bank_only(random, options, random.randint(1, options.items))
    if random.random() < options.absent:
        states.remove(story.target)
    lines = [state.sentence for state in states]
    if random.random() < 0.15:
        entry = Candidate(draw_chat(random), story.target.person)
        lines.insert(random.randint(0, len(lines)), entry.text)
    return story, states, lines
