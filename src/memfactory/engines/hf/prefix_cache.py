"""Prefixes of prompts with their keys and values: a radix tree of segments, each stored once.

    system s, then chunk a or b          Prefix s (tokens, layers, holders 2)
    prompts  s a,  s b                     +-- Prefix a (holders 1)
                                           +-- Prefix b (holders 1)

Unreferenced prefixes stay cached (LRU) within a token budget. It knows which conversations hold a segment, not how keys
and values are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from memfactory.engines.hf.cache import LayerStates
from memfactory.model.prefix_tree import shared_length

# A shorter segment is repeated and not shared: each costs attention calls of its own in every decoding step.
LEAST_SHARED = 32


# Compared by identity: two equal segments under different parents have different keys, as positions and context differ.
@dataclass(eq=False)
class Prefix:
    """A segment of tokens and, through `parent`, all tokens before it.

    `layers`: keys and values of these tokens by layer, each [1, heads, tokens, head dimension]; None until they are
    prefilled. `holders`: the number of conversations whose prompt has it; `used`: the time at which it last lost one.
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
    """A tree of prefixes. One without holders stays cached for later prompts until `evict` needs its room."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens in the tree."""
        self.held = 0
        """Tokens with at least one holder."""
        self._roots: list[Prefix] = []
        # Counts events and no seconds: eviction must not depend on the speed of a machine.
        self._clock = 0

    def cost(self, prompt: Sequence[int]) -> int:
        """The growth of `held`, in tokens, that `hold(prompt)` would cause. The tree does not change."""
        known, depth, partial = self._find(tuple(prompt))
        # Cached tokens without a holder count as well: once held they can no longer be evicted.
        free = sum(len(prefix.tokens) for prefix in ([] if known is None else known.path()) if not prefix.holders)
        if partial is not None:
            prefix, length = partial
            depth += length
            free += 0 if prefix.holders else length
        return free + len(prompt) - depth

    def hold(self, prompt: Sequence[int]) -> Prefix | None:
        """Add a holder to the prefix that ends with `prompt`, and return the prefix; None for an empty prompt.

        Tokens that are not in the tree are added without keys and values.
        """
        prompt = tuple(prompt)
        known, depth, partial = self._find(prompt)
        if partial is not None:
            known = self._split(*partial)
            depth += partial[1]
        if depth < len(prompt):
            known = self._add(prompt[depth:], known)
        # A holder of a prefix holds its whole path, so that a parent never has fewer holders than a child.
        for prefix in [] if known is None else known.path():
            self.held += 0 if prefix.holders else len(prefix.tokens)
            prefix.holders += 1
        return known

    def release(self, prefix: Prefix | None, below: Prefix | None = None) -> None:
        """Remove a holder from the path to `prefix`, except from the path to `below`, an ancestor."""
        self._clock += 1
        path, still_held = ([] if end is None else end.path() for end in (prefix, below))
        for released in path[len(still_held) :]:
            released.holders -= 1
            released.used = self._clock
            self.held -= 0 if released.holders else len(released.tokens)

    def evict(self, room: int) -> None:
        """Drop prefixes without a holder, least recently used first, until at most `room` tokens are left."""
        while self.tokens > room:
            # Leaves only: a child's keys are worth nothing without the tokens before them. Each round can free parents.
            leaves = [prefix for prefix in self.all() if not prefix.holders and not prefix.children]
            if not leaves:
                return
            for prefix in sorted(leaves, key=lambda prefix: prefix.used):
                if self.tokens <= room:
                    return
                self._siblings(prefix).remove(prefix)
                self.tokens -= len(prefix.tokens)

    def clear(self) -> None:
        """Drop every prefix."""
        # Parents and children name each other: their memory would wait for Python to look for such circles.
        for prefix in list(self.all()):
            prefix.layers, prefix.parent = None, None
        self._roots.clear()
        self.tokens = self.held = 0

    def all(self) -> Iterator[Prefix]:
        """Every prefix, a parent before its children, depth first: the order in which prefilling packs them."""
        waiting = self._roots[::-1]
        while waiting:
            prefix = waiting.pop()
            yield prefix
            waiting += prefix.children[::-1]

    def _find(self, prompt: tuple[int, ...]) -> tuple[Prefix | None, int, tuple[Prefix, int] | None]:
        """The longest cached prefix of `prompt`: its last whole segment, the number of tokens up to its end, and the
        child that matches further, with the number of tokens that match."""
        known: Prefix | None = None
        depth = 0
        while True:
            children = self._roots if known is None else known.children
            left = prompt[depth:]
            best, length = None, 0
            # Siblings can share a prefix too: one below LEAST_SHARED is repeated in each. So all are compared,
            # by their first token before anything longer.
            for child in children:
                if left and child.tokens[0] == left[0] and (match := shared_length(child.tokens, left)) > length:
                    best, length = child, match
            if best is None or (length < len(best.tokens) and length < LEAST_SHARED):
                return known, depth, None
            if length < len(best.tokens):
                return known, depth, (best, length)
            known, depth = best, depth + length

    def _add(self, tokens: tuple[int, ...], parent: Prefix | None) -> Prefix:
        self._clock += 1
        prefix = Prefix(tokens, parent, used=self._clock)
        self._siblings(prefix).append(prefix)
        self.tokens += len(tokens)
        return prefix

    def _split(self, prefix: Prefix, length: int) -> Prefix:
        """The first `length` tokens of `prefix` as its new parent, with the same holders.

        `prefix` itself becomes the lower half, so that the conversations that point to it keep their path.
        """
        upper = Prefix(prefix.tokens[:length], prefix.parent, holders=prefix.holders, used=prefix.used)
        siblings = self._siblings(prefix)
        siblings[siblings.index(prefix)] = upper
        upper.children.append(prefix)
        prefix.tokens, prefix.parent = prefix.tokens[length:], upper
        if prefix.layers is not None:
            # Copies and no views: a view of the lower half would keep the whole memory alive after it is evicted.
            upper.layers = [
                (keys[:, :, :length].clone(), values[:, :, :length].clone()) for keys, values in prefix.layers
            ]
            prefix.layers = [
                (keys[:, :, length:].clone(), values[:, :, length:].clone()) for keys, values in prefix.layers
            ]
        return upper

    def _siblings(self, prefix: Prefix) -> list[Prefix]:
        return self._roots if prefix.parent is None else prefix.parent.children
