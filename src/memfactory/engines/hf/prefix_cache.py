"""The beginnings of prompts whose keys and values are kept: a tree of stretches of tokens, each stored once.

It knows who needs a stretch and for how long, not how keys and values are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from memfactory.engines.hf.cache import LayerStates
from memfactory.model.prefix_tree import shared_length

# A stretch below this is repeated and not shared: each costs attention calls of its own in every decoding step.
LEAST_SHARED = 32


@dataclass(eq=False)
class Prefix:
    """A stretch of tokens and, through `parent`, what comes before it.

    `layers`: keys and values of these tokens by layer, each [1, heads, tokens, head dimension]; None until they are
    prefilled. `holders`: how many conversations begin so; `used`: when it last lost one.
    """

    tokens: tuple[int, ...]
    parent: Prefix | None
    layers: list[LayerStates] | None = None
    children: list[Prefix] = field(default_factory=list)
    holders: int = 0
    used: int = 0

    def path(self) -> list[Prefix]:
        """From the root of its tree to itself."""
        path = [self]
        while path[-1].parent is not None:
            path.append(path[-1].parent)
        return path[::-1]


class Prefixes:
    """A tree of prefixes. What nobody holds is kept for those who may come, until `forget` needs its room."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens that are kept."""
        self.held = 0
        """Tokens that somebody holds."""
        self._roots: list[Prefix] = []
        self._clock = 0

    def cost(self, prompt: Sequence[int]) -> int:
        """By how many tokens `held` would grow with `hold(prompt)`."""
        known, depth, part = self._find(tuple(prompt))
        free = sum(len(prefix.tokens) for prefix in ([] if known is None else known.path()) if not prefix.holders)
        if part is not None:
            prefix, length = part
            depth += length
            free += 0 if prefix.holders else length
        return free + len(prompt) - depth

    def hold(self, prompt: Sequence[int]) -> Prefix | None:
        """The prefix that ends with `prompt`, from now on with one more holder; None for an empty one.

        What of it is not known yet is added without keys and values.
        """
        prompt = tuple(prompt)
        known, depth, part = self._find(prompt)
        if part is not None:
            known = self._split(*part)
            depth += part[1]
        if depth < len(prompt):
            known = self._add(prompt[depth:], known)
        for prefix in [] if known is None else known.path():
            self.held += 0 if prefix.holders else len(prefix.tokens)
            prefix.holders += 1
        return known

    def release(self, prefix: Prefix | None, below: Prefix | None = None) -> None:
        """One holder of what ends with `prefix` is gone; what ends with `below`, a part of that, it still holds."""
        self._clock += 1
        path, kept = ([] if one is None else one.path() for one in (prefix, below))
        for one in path[len(kept) :]:
            one.holders -= 1
            one.used = self._clock
            self.held -= 0 if one.holders else len(one.tokens)

    def forget(self, room: int) -> None:
        """Drop what nobody holds, the longest unused first, until at most `room` tokens are kept."""
        while self.tokens > room:
            ends = [prefix for prefix in self.all() if not prefix.holders and not prefix.children]
            if not ends:
                return
            for prefix in sorted(ends, key=lambda prefix: prefix.used):
                if self.tokens <= room:
                    return
                self._siblings(prefix).remove(prefix)
                self.tokens -= len(prefix.tokens)

    def clear(self) -> None:
        # Parents and children name each other: their memory would wait for Python to look for such circles.
        for prefix in list(self.all()):
            prefix.layers, prefix.parent = None, None
        self._roots.clear()
        self.tokens = self.held = 0

    def all(self) -> Iterator[Prefix]:
        """Every prefix, a parent before its children, depth first."""
        waiting = self._roots[::-1]
        while waiting:
            prefix = waiting.pop()
            yield prefix
            waiting += prefix.children[::-1]

    def _find(self, prompt: tuple[int, ...]) -> tuple[Prefix | None, int, tuple[Prefix, int] | None]:
        """The longest known beginning: the last whole prefix, the tokens up to its end, and of what part follows."""
        known: Prefix | None = None
        depth = 0
        while True:
            children = self._roots if known is None else known.children
            rest = prompt[depth:]
            likest, length = None, 0
            for child in children:
                if rest and child.tokens[0] == rest[0] and (alike := shared_length(child.tokens, rest)) > length:
                    likest, length = child, alike
            if likest is None or (length < len(likest.tokens) and length < LEAST_SHARED):
                return known, depth, None
            if length < len(likest.tokens):
                return known, depth, (likest, length)
            known, depth = likest, depth + length

    def _add(self, tokens: tuple[int, ...], parent: Prefix | None) -> Prefix:
        self._clock += 1
        prefix = Prefix(tokens, parent, used=self._clock)
        self._siblings(prefix).append(prefix)
        self.tokens += len(tokens)
        return prefix

    def _split(self, prefix: Prefix, length: int) -> Prefix:
        """The first `length` tokens of `prefix` as its parent."""
        upper = Prefix(prefix.tokens[:length], prefix.parent, holders=prefix.holders, used=prefix.used)
        siblings = self._siblings(prefix)
        siblings[siblings.index(prefix)] = upper
        upper.children.append(prefix)
        prefix.tokens, prefix.parent = prefix.tokens[length:], upper
        if prefix.layers is not None:
            # Copies, so that the lower half's memory is free once it is dropped.
            upper.layers = [
                (keys[:, :, :length].clone(), values[:, :, :length].clone()) for keys, values in prefix.layers
            ]
            prefix.layers = [
                (keys[:, :, length:].clone(), values[:, :, length:].clone()) for keys, values in prefix.layers
            ]
        return upper

    def _siblings(self, prefix: Prefix) -> list[Prefix]:
        return self._roots if prefix.parent is None else prefix.parent.children
