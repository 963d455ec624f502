"""`memfactory data fwe` and `vt`: tasks with RULER's statistics (arXiv 2404.06654), rows in MemAgent's form.

    build_ruler(task, output, length=16384, rows=128, seed=42, count_tokens=...) -> Report

A row has `index`, `input` (the question), `context`, `outputs`, `answer_prefix` and `length` (tokens of the text and of
the longest answer). The text is as long as fits into `length` tokens of the tokenizer that `count_tokens` stands for.
Each row is drawn from its own seed; RULER shuffles many rows by one. The questions are worded by us, not by RULER.
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
    """A text with its question, the gold answers and how an answer begins."""

    context: str
    question: str
    outputs: tuple[str, ...]
    answer_prefix: str


@dataclass(frozen=True)
class RulerTask:
    """One of RULER's tasks: `make(random, size, length)` draws a sample of `size` parts for texts of `length` tokens.

    `first` and `step` (of `length`) are the sizes that are tried; `answer_tokens` is the room RULER leaves to answer;
    `counted` says whether that room counts against `length`.
    """

    make: Callable[[Random, int, int], Sample]
    first: Callable[[int], int]
    step: Callable[[int], int]
    answer_tokens: int
    counted: bool


def fwe_counts(words: int, vocabulary: int) -> list[int]:
    """How often the word of each rank k occurs: floor(words / (k^2 zeta(2))), the Zeta distribution with alpha 2."""
    return [int(words / (rank**2 * ZETA_2)) for rank in range(1, vocabulary + 1)]


def make_fwe(random: Random, words: int, length: int) -> Sample:
    """Frequent words extraction: coded words by their Zeta counts, rank 1 is noise, ranks 2 to 4 are the answer.

    The vocabulary is length // 50 random words of six letters. Raises ConfigError where a text this short would not
    tell rank 4 from rank 5.
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
    said = [
        f"VAR {name} = {source}" for name, source in zip(chain, [value, *(f"VAR {n}" for n in chain)], strict=False)
    ]
    text = [NOISE_LINE] * lines
    for shift, (place, line) in enumerate(zip(sorted(random.sample(range(lines), VARIABLES)), said, strict=True)):
        text.insert(place + shift, line)
    prefix = f" Answer: The {VARIABLES} variables that have the value {value} are:"
    return Sample("\n".join(text), VT_QUESTION.format(value=value), tuple(chain), prefix)


TASKS: Mapping[str, RulerTask] = {
    "fwe": RulerTask(make_fwe, lambda n: n // 6, lambda n: n // 32, answer_tokens=50, counted=False),
    "vt": RulerTask(make_vt, lambda n: 5, lambda n: 5, answer_tokens=30, counted=True),
}


def build_ruler(
    task: str,
    output: Path,
    *,
    count_tokens: CountTokens,
    length: int = 16384,
    rows: int = 128,
    seed: int = 42,
    on_progress: OnProgress | None = None,
) -> Report:
    """Write `eval_<task>_<length>.json` into the folder `output`.

    Raises ConfigError for an unknown task or a length that is too short for it.
    """
    if task not in TASKS:
        raise ConfigError(unknown("RULER task", task, TASKS))
    if rows < 1:
        raise ConfigError(f"rows: expected at least 1, got {rows}")
    if length < 256:
        raise ConfigError(f"length: expected at least 256 tokens, got {length}")
    path = output / f"eval_{task}_{length}.json"
    made = ruler_rows(task, length, rows, seed, count_tokens)
    return Report((write_rows(path, made, rows, on_progress=on_progress),))


def ruler_rows(task: str, length: int, rows: int, seed: int, count_tokens: CountTokens) -> Iterator[GeneratedRow]:
    """The rows of a task, each as long as fits into `length` tokens."""
    kind = TASKS[task]
    room = length - kind.answer_tokens if kind.counted else length
    step = kind.step(length)

    def sample(index: int, size: int) -> tuple[Sample, int]:
        made = kind.make(Random(f"{task}/{length}/{seed}/{index}"), size, length)
        return made, count_tokens(made.context)

    size = _largest(kind.first(length), step, lambda tried: sample(0, tried)[1] <= room)
    for index in range(rows):
        fitted = size
        made, tokens = sample(index, fitted)
        while tokens > room:
            fitted -= step
            made, tokens = sample(index, fitted)
        yield {
            "index": index,
            "input": made.question,
            "context": made.context,
            "outputs": list(made.outputs),
            "answer_prefix": made.answer_prefix,
            "length": tokens + kind.answer_tokens,
        }


def _largest(first: int, step: int, fits: Callable[[int], bool]) -> int:
    """The largest of first, first + step, first + 2 step, ... that fits; `first` where none does.

    More is never shorter, so the steps are doubled and then halved: few texts are measured.
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
