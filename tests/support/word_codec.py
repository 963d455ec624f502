"""Tokenizers for tests of modules: one to which a token is a word, and one that is never asked."""

import re


class WordCodec:
    """A token is what stands between spaces."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\S+", text)]


class NoCodec:
    """No text is measured here."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        raise AssertionError
