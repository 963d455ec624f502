"""`memfactory data fwe` and `vt`: tasks with RULER's statistics (arXiv 2404.06654), rows in MemAgent's form.

    build_ruler(RulerSet("fwe", length=16384, rows=128, seed=42), output, count_tokens=...) -> Report

A row has `index`, `input` (the question), `context`, `outputs`, `answer_prefix` and `length` (tokens of the text and of
the longest answer). The text is as long as `length` allows, in tokens by `count_tokens`. Each row has its own random
stream; RULER shuffles many rows by one stream. The wording of the questions is ours, not RULER's.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from memfactory.data.writing import CountTokens, GeneratedRow, OnProgress, Report, write_rows
from memfactory.errors import ConfigError, unknown

ZETA_2 = math.pi**2 / 6
NOISE_WORD = "..."
NOISE_LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
FWE_QUESTION = (
    "The text consists of coded words. Which three coded words occur most often in it? "
    f"The dots '{NOISE_WORD}' are not a word. Answer with the three words and no explanation."
)
VT_QUESTION = (
    "The text assigns values to variables, some of them through other variables. "
    "Which variables have the value {value}? Answer with all their names."
)
VARIABLES = 5


@dataclass(frozen=True)
class Sample:
    """A text with its question, gold answers and the prefix of an answer."""

    context: str
    question: str
    outputs: tuple[str, ...]
    answer_prefix: str


@dataclass(frozen=True)
class RulerTask:
    """One of RULER's tasks: `make(random, size, length)` makes a sample of `size` words or lines for `length` tokens.

    The sizes to try are `first(length)`, then steps of `step(length)`. RULER reserves `answer_tokens` for the answer;
    with `counted` they count against `length`.
    """

    make: Callable[[Random, int, int], Sample]
    first: Callable[[int], int]
    step: Callable[[int], int]
    answer_tokens: int
    counted: bool


def fwe_counts(words: int, vocabulary: int) -> list[int]:
    """The number of occurrences of each rank k: floor(words / (k^2 zeta(2))), a Zeta distribution with alpha 2."""
    return [int(words / (rank**2 * ZETA_2)) for rank in range(1, vocabulary + 1)]


def make_fwe(random: Random, words: int, length: int) -> Sample:
    """Frequent words extraction: coded words by their Zeta counts, rank 1 is noise, ranks 2 to 4 are the answer.

    The vocabulary is length // 50 random words of six letters. Raises ConfigError if the text is so short that ranks 4
    and 5 are equally frequent.
    """
    counts = fwe_counts(words, length // 50)
    if len(counts) < 5 or counts[3] <= counts[4]:
        raise ConfigError(f"length: {length} tokens are too few for the three most frequent words to be distinct")
    coded: dict[str, None] = {}
    while len(coded) < len(counts):
        coded["".join(random.choices(string.ascii_lowercase, k=6))] = None
    ranked = [NOISE_WORD, *list(coded)[1:]]
    listed = [word for word, count in zip(ranked, counts, strict=True) for _ in range(count)]
    random.shuffle(listed)
    prefix = " Answer: The three words that occur most often are:"
    return Sample(" ".join(listed), FWE_QUESTION, tuple(ranked[1:4]), prefix)


def make_vt(random: Random, lines: int, length: int) -> Sample:
    """Variable tracking: one chain of five variables, its four hops in order, among lines of noise."""
    if lines < VARIABLES:
        raise ConfigError(f"length: {length} tokens are too few for a chain of {VARIABLES} variables")
    names: dict[str, None] = {}
    while len(names) < VARIABLES:
        names["".join(random.choices(string.ascii_uppercase, k=5))] = None
    chain = list(names)
    value = str(random.randint(10000, 99999))
    assignments = [
        f"VAR {name} = {source}" for name, source in zip(chain, [value, *(f"VAR {n}" for n in chain)], strict=False)
    ]
    text = [NOISE_LINE] * lines
    for shift, (place, line) in enumerate(
        zip(sorted(random.sample(range(lines), VARIABLES)), assignments, strict=True)
    ):
        text.insert(place + shift, line)
    prefix = f" Answer: The {VARIABLES} variables that have the value {value} are:"
    return Sample("\n".join(text), VT_QUESTION.format(value=value), tuple(chain), prefix)


TASKS: Mapping[str, RulerTask] = {
    "fwe": RulerTask(make_fwe, lambda n: n // 6, lambda n: n // 32, answer_tokens=50, counted=False),
    "vt": RulerTask(make_vt, lambda n: 5, lambda n: 5, answer_tokens=30, counted=True),
}


@dataclass(frozen=True)
class RulerSet:
    """A set of rows to make: `length` is the longest text in tokens. Raises ConfigError for impossible values."""

    task: str
    length: int = 16384
    rows: int = 128
    seed: int = 42

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(unknown("RULER task", self.task, TASKS))
        if self.rows < 1:
            raise ConfigError(f"rows: expected at least 1, got {self.rows}")
        if self.length < 256:
            raise ConfigError(f"length: expected at least 256 tokens, got {self.length}")


def build_ruler(
    chosen: RulerSet, output: Path, *, count_tokens: CountTokens, on_progress: OnProgress | None = None
) -> Report:
    """Write `eval_<task>_<length>.json` into the folder `output`. Raises ConfigError if the length is too short."""
    path = output / f"eval_{chosen.task}_{chosen.length}.json"
    return Report((write_rows(path, ruler_rows(chosen, count_tokens), chosen.rows, on_progress=on_progress),))


def ruler_rows(chosen: RulerSet, count_tokens: CountTokens) -> Iterator[GeneratedRow]:
    """The rows of a set, each as long as its length in tokens allows."""
    task, length = TASKS[chosen.task], chosen.length
    room = length - task.answer_tokens if task.counted else length
    step = task.step(length)

    def sample(index: int, size: int) -> tuple[Sample, int]:
        random = Random(f"{chosen.task}/{length}/{chosen.seed}/{index}")
        made = task.make(random, size, length)
        return made, count_tokens(made.context)

    largest = _largest(task.first(length), step, lambda size: sample(0, size)[1] <= room)
    for index in range(chosen.rows):
        size = largest
        made, tokens = sample(index, size)
        while tokens > room:
            size -= step
            made, tokens = sample(index, size)
        yield {
            "index": index,
            "input": made.question,
            "context": made.context,
            "outputs": list(made.outputs),
            "answer_prefix": made.answer_prefix,
            "length": tokens + task.answer_tokens,
        }


def _largest(first: int, step: int, fits: Callable[[int], bool]) -> int:
    """The largest of first, first + step, first + 2 step, ... that fits; `first` if none does.

    A larger size is never shorter, so bisection finds it: few texts are measured.
    """
    if not fits(first):
        return first
    low, high = 0, 1
    while fits(first + high * step):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(first + middle * step) else (low, middle)
    return first + low * step
