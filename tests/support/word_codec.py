"""A tokenizer for tests of modules: a token is a word."""

import re


class WordCodec:
    """A token is what stands between spaces."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\S+", text)]
