"""Pure text functions: chunks, boxed answers, think tags, prompt templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with each `{name}` of `values` replaced; every other brace (`\\boxed{}`) stays as it is.

    Values are never searched for placeholders themselves.
    """
    pattern = re.compile("|".join(re.escape("{" + name + "}") for name in values))
    return pattern.sub(lambda match: values[match.group()[1:-1]], template) if values else template


def placeholders(template: str) -> set[str]:
    """The names in `{name}` form that occur in `template`."""
    return set(re.findall(r"\{([a-z_]+)\}", template))


def split_chunks(text: str, offsets: Sequence[tuple[int, int]], size: int) -> list[str]:
    """`text` cut into consecutive pieces of `size` tokens; joined, the pieces are `text` again.

    `offsets` are the character spans of the tokens in order. A piece never ends inside a character that several
    tokens share, so a piece can hold a few tokens more.
    """
    if size < 1:
        raise ValueError(f"a chunk must hold at least 1 token, got {size}")
    if not text:
        return []
    cuts = [0]
    for index in range(size, len(offsets), size):
        start = offsets[index][0]
        if cuts[-1] < start < len(text):
            cuts.append(start)
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def keep_ends(text: str, offsets: Sequence[tuple[int, int]], tokens: int) -> str:
    """The first and the last `tokens` / 2 tokens of `text` (all of it when it is short): centre truncation."""
    if len(offsets) <= tokens:
        return text
    head = tokens - tokens // 2
    end, start = offsets[head - 1][1], offsets[len(offsets) - tokens // 2][0] if tokens > 1 else len(text)
    return text[:end] + text[max(start, end) :]


def closing_braces(text: str) -> dict[int, int]:
    """Where each `{` of `text` is closed; one that never is, is not there."""
    closings: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"[{}]", text):
        if match.group() == "{":
            opened.append(match.start())
        elif opened:
            closings[opened.pop()] = match.start()
    return closings


def boxed(text: str) -> list[str | None]:
    """The content of every `\\boxed{...}` or `\\fbox{...}` in order; None for one whose brace is never closed."""
    closings = closing_braces(text)
    openings = [match.end() - 1 for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]
    return [text[start + 1 : closings[start]] if start in closings else None for start in openings]


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` or `\\fbox{...}` with balanced braces, or of `\\boxed x`; else None."""
    closed = [content for content in boxed(text) if content is not None]
    if closed:
        return closed[-1]
    bare = re.findall(r"\\boxed ([^\s$]+)", text)
    return bare[-1] if bare else None


def after_thinking(text: str, close: str = "</think>", open_tag: str = "<think>") -> str | None:
    """What follows the last `</think>`; the text itself when it has no think tag; None when thinking never ended."""
    if close in text:
        return text.rpartition(close)[2].strip()
    return None if open_tag in text else text


def after_marker(text: str, marker: str = "**Answer:**") -> str | None:
    """The first line after the last `marker`, once thinking is dropped; None without a marker or words after it."""
    said = after_thinking(text)
    if said is None or marker not in said:
        return None
    rest = said.rpartition(marker)[2].strip()
    return rest.splitlines()[0].strip() if rest else None


def listed_numbers(entries: str, allowed: range) -> tuple[tuple[int, ...], int]:
    """The distinct numbers of `allowed` in a comma-separated list, in its order, and how many entries the list has."""
    given = [entry.strip() for entry in entries.split(",")] if entries.strip() else []
    numbers = [int(entry) for entry in given if re.fullmatch(r"[0-9]{1,9}", entry)]
    return tuple(dict.fromkeys(number for number in numbers if number in allowed)), len(given)


def writable(text: str) -> str:
    """`text` with halves of surrogate pairs, which no file or request can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
