"""Pure text functions: chunks, boxed answers, think tags, prompt templates."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import Literal
from unicodedata import category, normalize

Spans = list[tuple[int, int]]
"""Half-open character spans of consecutive tokens."""
Offsets = Callable[[str], Spans]
"""A tokenizer: the spans of a text's tokens, in order."""
Unit = Literal["sentences", "paragraphs"]
"""The units of a text that a chunk can end with."""
# Each run of white space, marks or quotes is looked at once: a text of blanks or dots takes no longer than another.
LINE_END = re.compile(r"(?P<space>(?<!\s)[^\S\n]*\n\s+)")
"""The white space around a line break and more of it behind: the end of a paragraph if it has an empty line."""
SENTENCE_END = re.compile(
    LINE_END.pattern + r"|(?P<mark>(?<![.!?\u2026])[.!?\u2026]+)[\"')\]\u201d\u2019\u00bb]*\s+"
    r"|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d]*\s*"
)
"""A possible end of a sentence with the white space behind it; the ideographic full stop needs none."""
ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        "mr mrs ms dr st prof gen col sgt capt lt rep sen gov jr sr vs etc inc ltd co corp no vol pp fig al cf ca e.g "
        "i.e approx est dept",
    )
)
"""Words whose full stop ends no sentence."""
BRACE = re.compile(r"\\(?:text|textbf|textit|textrm|emph|mathrm|mathbf|mathit)\s*\{|[{}]")
"""A brace, the one that opens `\\text{...}` or its like with that command before it."""


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each `{name}` of `values` replaced; every other brace (`\\boxed{}`) stays as it is.

    Values are never searched for placeholders themselves.
    """
    pattern = re.compile("|".join(re.escape("{" + name + "}") for name in values))
    return pattern.sub(lambda match: values[match.group()[1:-1]], template) if values else template


def placeholders(template: str) -> set[str]:
    """The names in `{name}` form that occur in `template`."""
    return set(re.findall(r"\{([a-z_]+)\}", template))


def token_spans(text: str, offsets: Offsets, window: int = 32768, margin: int = 1024) -> Iterator[Spans]:
    """The spans of the tokens of `text` in order, a bounded part of them at a time: joined, they are `offsets(text)`.

    Windows of `window` characters are tokenised, each beginning 2 x `margin` characters before the last one ends. They
    are joined behind a word, where the two agree on every token around it, so that neither the end of the one nor the
    beginning of the other shows. Where they do not agree (one word longer than the margin, say), the window grows until
    it meets its successor, at the worst to the whole text.
    """
    begin, end, joint = 0, min(window, len(text)), 0
    spans = _window(text, offsets, begin, end)
    while end < len(text):
        overlap = max(end - 2 * margin, 0)
        next_end = min(overlap + window, len(text))
        following = _window(text, offsets, overlap, next_end)
        meeting = _meeting(text, spans, following, overlap + margin // 2, end - margin // 2)
        if meeting is None:
            end = min(begin + 2 * (end - begin), len(text))
            spans = _window(text, offsets, begin, end)
            continue
        yield spans[_first_from(spans, joint) : _first_from(spans, meeting)]
        begin, end, joint, spans = overlap, next_end, meeting, following
    yield spans[_first_from(spans, joint) :]


def token_counter(offsets: Offsets) -> Callable[[str], int]:
    """Counts the tokens of a text, and remembers the last few texts: many questions share one conversation."""
    return lru_cache(maxsize=16)(lambda text: sum(len(spans) for spans in token_spans(text, offsets)))


def _window(text: str, offsets: Offsets, begin: int, end: int) -> Spans:
    """The spans of `text[begin:end]` as places in `text`."""
    spans = offsets(text[begin:end])
    return [(start + begin, stop + begin) for start, stop in spans] if begin else spans


def _first_from(spans: Spans, place: int) -> int:
    """The number of the first span that starts at `place` or behind it."""
    return bisect_left(spans, place, key=itemgetter(0))


def _meeting(text: str, left: Spans, right: Spans, low: int, high: int) -> int | None:
    """Where a token starts behind a word, in a stretch [low, high) in which both have the same tokens; None: nowhere.

    The words of every usual tokenizer end there, after any text.
    """
    shared = left[_first_from(left, low) : _first_from(left, high)]
    if shared != right[_first_from(right, low) : _first_from(right, high)]:
        return None
    return next((b[0] for a, b in pairwise(shared) if a[1] <= b[0] and _ends_word(text, a[1])), None)


def _ends_word(text: str, place: int) -> bool:
    """Whether a letter or digit precedes `place`, and a space or punctuation other than an apostrophe is there."""
    after = text[place]
    return text[place - 1].isalnum() and after not in "'\u2019" and (after.isspace() or category(after)[0] == "P")


def chunk_cuts(text: str, spans: Iterable[Spans], size: int) -> tuple[list[int], int]:
    """The places at which to cut `text` into consecutive chunks of `size` tokens, 0 and its end included; and how many
    tokens it has.

    `spans` are the character spans of the tokens in order, in parts. A chunk never ends inside a character that several
    tokens share, so a chunk can hold a few tokens more.
    """
    if size < 1:
        raise ValueError(f"a chunk must hold at least 1 token, got {size}")
    cuts, tokens = [0], 0
    for part in spans:
        for index in range(-tokens % size if tokens else size, len(part), size):
            start = part[index][0]
            if cuts[-1] < start < len(text):
                cuts.append(start)
        tokens += len(part)
    return [*cuts, len(text)] if text else cuts, tokens


def unit_ends(text: str, unit: Unit) -> list[int]:
    """The places behind each sentence or paragraph of `text` and the white space after it; the last is its end."""
    if unit == "paragraphs":
        ends = [match.end() for match in LINE_END.finditer(text) if _ends_paragraph(match[0])]
    else:
        ends = [match.end() for match in SENTENCE_END.finditer(text) if _ends_sentence(text, match)]
    ends = [end for end in ends if 0 < end < len(text)]
    return [*ends, len(text)] if text else ends


def _ends_paragraph(space: str) -> bool:
    """Whether white space has an empty line."""
    return space.count("\n") > 1


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    """Whether a mark ends its sentence: no abbreviation or initial precedes it, and no small letter follows; without
    a mark, whether its paragraph ends."""
    if match["space"] is not None:
        return _ends_paragraph(match["space"])
    if match["mark"] is None:
        return True
    if text[match.end() : match.end() + 1].islower():
        return False
    if match["mark"] != ".":
        return True
    before = text[max(match.start() - 12, 0) : match.start()].split()
    word = before[-1].lstrip("\"'([\u201c\u2018") if before else ""
    return word.lower() not in ABBREVIATIONS and not re.fullmatch(r"(?:[A-Za-z]\.)*[A-Z]", word)


def sentences(text: str) -> list[str]:
    """The sentences of `text`, without the white space around them."""
    stripped = (text[start:end].strip() for start, end in pairwise([0, *unit_ends(text, "sentences")]))
    return [sentence for sentence in stripped if sentence]


def unit_cuts(text: str, spans: Iterable[Spans], size: int, ends: Sequence[int]) -> tuple[list[int], list[int]]:
    """The places at which to cut `text` into chunks of at most `size` tokens, each at the last of `ends` that fits, 0
    and its end included; and for each place the number of tokens that begin before it.

    A unit of more than `size` tokens is cut by tokens, as `chunk_cuts` does. A token that lies across a cut counts for
    both chunks.
    """
    if size < 1:
        raise ValueError(f"a chunk must hold at least 1 token, got {size}")
    starts = array("q", (start for part in spans for start, _ in part))
    cuts, before = [0], [0]
    while cuts[-1] < len(text):
        first = bisect_left(starts, cuts[-1])
        if first > 0 and (first == len(starts) or starts[first] > cuts[-1]):
            first -= 1  # The token before may lie across the cut.
        limit = first + size
        while limit < len(starts) and starts[limit] <= cuts[-1]:
            limit += 1  # Tokens that share a character stay together.
        place = starts[limit] if limit < len(starts) else len(text)
        last = ends[bisect_right(ends, place) - 1] if ends and ends[0] <= place else 0
        cuts.append(last if last > cuts[-1] else place)
        before.append(bisect_left(starts, cuts[-1]) if cuts[-1] < len(text) else len(starts))
    return cuts, before


def keep_ends(text: str, spans: Iterable[Spans], tokens: int) -> str:
    """The first and the last `tokens` / 2 tokens of `text` (all of it if it is short): centre truncation.

    `spans` are the character spans of the tokens in order, in parts.
    """
    tail = tokens // 2
    head = tokens - tail
    last: Spans = []
    count = end = 0
    for part in spans:
        if count < head <= count + len(part):
            end = part[head - 1 - count][1]
        count += len(part)
        last = [*last, *part][-tail:] if tail else []
    if count <= tokens:
        return text
    return text[:end] + text[max(last[0][0] if tail else len(text), end) :]


def closing_braces(text: str) -> dict[int, int]:
    """The place at which each `{` of `text` is closed; an unclosed one is left out."""
    closings: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"[{}]", text):
        if match.group() == "{":
            opened.append(match.start())
        elif opened:
            closings[opened.pop()] = match.start()
    return closings


def boxes(text: str, command: str = "boxed") -> list[tuple[int, int | None]]:
    r"""The places of the content of each `\boxed{...}` (or another `command`); the end is None if it never closes."""
    if f"\\{command}" not in text:
        return []
    closings = closing_braces(text)
    starts = [match.end() for match in re.finditer(rf"\\{command}\s*\{{", text)]
    return [(start, closings.get(start - 1)) for start in starts]


def last_boxed(text: str) -> str | None:
    r"""The content of the last closed `\boxed{...}`, else of `\boxed x`, else of `\fbox{...}`; None without any."""
    for content in (_last_closed(text, "boxed"), _last_bare(text), _last_closed(text, "fbox")):
        if content is not None:
            return content
    return None


def _last_closed(text: str, command: str) -> str | None:
    closed = [(start, end) for start, end in boxes(text, command) if end is not None]
    return text[slice(*closed[-1])] if closed else None


def _last_bare(text: str) -> str | None:
    bare = re.findall(r"\\boxed ([^\s$]+)", text)
    return bare[-1] if bare else None


def without_latex_text(text: str) -> str:
    r"""`text` with `\text{...}` and its like replaced by their contents, if those hold no other braces.

    One pass: nested as deep as the text is long, they take no longer than it.
    """
    opened: list[list[int]] = []
    dropped: list[tuple[int, int]] = []
    for match in BRACE.finditer(text):
        if match.group() != "}":
            opened.append([*match.span(), len(match.group()) > 1])
        elif opened:
            start, end, plain = opened.pop()
            if plain:
                dropped += [(start, end), match.span()]
            elif opened:
                opened[-1][2] = False
    cuts = [0, *(place for span in sorted(dropped) for place in span), len(text)]
    return "".join(text[start:end] for start, end in zip(cuts[::2], cuts[1::2], strict=True))


def after_thinking(text: str, close: str = "</think>", open_tag: str = "<think>") -> str | None:
    """The text after the last `</think>`; the text itself if it has no think tag; None if the last thinking, or the
    only one, never ended."""
    rest = text.rpartition(close)[2]
    if open_tag in rest:
        return None
    return rest.strip() if close in text else text


def is_unfinished_thinking(text: str) -> bool | None:
    """Whether thinking in a reply never ended; None for a reply without thinking.

    >>> is_unfinished_thinking("<think>Rome or"), is_unfinished_thinking("<think>Rome</think> Rome")
    (True, False)
    """
    return after_thinking(text) is None if "<think>" in text or "</think>" in text else None


def unfinished_share(states: Sequence[bool | None]) -> float | None:
    """The fraction of replies whose thinking never ended, from `is_unfinished_thinking` of each; None if no reply
    thinks.

    >>> unfinished_share([True, None]), unfinished_share([None])
    (0.5, None)
    """
    return None if all(state is None for state in states) else sum(map(bool, states)) / len(states)


def after_marker(text: str, marker: str = "**Answer:**") -> str | None:
    """The first line after the last `marker`, once thinking is dropped; None without a marker or words after it."""
    reply = after_thinking(text)
    if reply is None or marker not in reply:
        return None
    rest = reply.rpartition(marker)[2].strip()
    return rest.splitlines()[0].strip() if rest else None


def listed_numbers(entries: str, allowed: range) -> tuple[tuple[int, ...], int]:
    """The distinct numbers of `allowed` in a comma-separated list, in its order, and how many entries the list has."""
    parts = [entry.strip() for entry in entries.split(",")] if entries.strip() else []
    numbers = [int(entry) for entry in parts if re.fullmatch(r"[0-9]{1,9}", entry)]
    return tuple(dict.fromkeys(number for number in numbers if number in allowed)), len(parts)


def composed(text: str) -> str:
    """`text` in one of its equal spellings (NFC): an accent that stands apart joins its letter."""
    return text if text.isascii() else normalize("NFC", text)


def writable(text: str) -> str:
    """`text` with halves of surrogate pairs, which no file or request can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
