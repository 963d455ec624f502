"""The sentences and word tokens of `bleu1`: those of nltk 3.9, which the published values used.

The rules stand here because the library changes them: nltk 3.10 splits an opening quote from its word. All texts are in
lower case. Every pass is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CLOSERS = re.escape(")\";}]*:@'({[")
"""Signs after a full stop that let it end a sentence, as a space does."""
STOP_OR_BREAK = re.compile(rf"\.(?=[\s{CLOSERS}])|[\s,{CLOSERS}]")
BELONGING = re.compile(r"[\"')\]}]+(?=\s|--|$)")
"""Signs that belong to the sentence whose full stop they follow."""
NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*")
ABBREVIATION = re.compile(r"mr|mrs|ms|dr|prof|st|jr|sr|vs|inc|corp|co|ltd|[a-z](?:\.[a-z])*")

OPENING_SIGNS = re.compile(r"[«“‘„]|`+")
OPENING_QUOTE = re.compile(r"(?<=[ (\[{<])(?:\"|'')")
QUOTED_LETTER = re.compile(r"'(?![smtdn]\b)(?=\w\b)")
AFTER_LAST_STOP = ")]}>\"'»”’ \n\t\r"
SIGNS = re.compile(r"\.{2,}|--|''|[;@#$%&?!*\[\](){}<>»”’\u2012-\u2015]|[:,](?!\d)")
CLITICS = (re.compile(r"(?<=[^'])'$"), re.compile(r"(?<=[^'])'[smd]$"), re.compile(r"(?<=[^'])(?:'ll|'re|'ve|n't)$"))
HALVES = {
    "cannot": "can not",
    "d'ye": "d 'ye",
    "gimme": "gim me",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "more'n": "more 'n",
    "wanna": "wan na",
    "'tis": "'t is",
    "'twas": "'t was",
}
JOINED = re.compile(r"\b(?:cannot|d'ye|gimme|gonna|gotta|lemme|more'n)\b|\bwanna$|^'t(?:is|was)\b")


def sentences(text: str) -> list[str]:
    """`text` split after each full stop that ends a sentence; the space between sentences is dropped.

    A full stop does so before a space or a sign of CLOSERS, but not after an abbreviation or an initial, nor after a
    number that a word follows ("1. apples"), nor as the last of several. nltk's model, which has to be downloaded,
    knows more abbreviations.
    """
    complete: list[str] = []
    begin = word = 0
    for match in STOP_OR_BREAK.finditer(text):
        place = match.start()
        if match.group() != ".":
            word = match.end()
        elif place >= begin and _ends_sentence(text, word, place):
            belonging = BELONGING.match(text, place + 1)
            end = belonging.end() if belonging else place + 1
            complete.append(text[begin:end])
            begin = word = _after_space(text, end)
    return [*complete, text[begin:]] if begin < len(text) or not complete else complete


def words(text: str) -> list[str]:
    """The word tokens of `text`, sentence by sentence: "i'm home." is i, 'm, home and a full stop."""
    return [token for sentence in sentences(text) for token in _words(sentence)]


def _ends_sentence(text: str, word: int, stop: int) -> bool:
    """Whether the full stop at `stop`, after the word that begins at `word`, ends a sentence."""
    if text[stop - 1 : stop] == "." or ABBREVIATION.fullmatch(text, word, stop):
        return False
    place = _after_space(text, stop + 1)
    follower = text[place : place + 1]
    return not (NUMBER.fullmatch(text, word, stop) and (follower.islower() or follower in ";:,.!?"))


def _after_space(text: str, place: int) -> int:
    """The first place from `place` on without a space."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _words(sentence: str) -> Iterator[str]:
    text = OPENING_SIGNS.sub(r" \g<0> ", sentence)
    text = f" `` {text[1:]}" if text.startswith('"') else text
    text = QUOTED_LETTER.sub("' ", OPENING_QUOTE.sub(" `` ", text))
    body = text.rstrip(AFTER_LAST_STOP)
    if len(body) > 1 and body[-1] == "." and body[-2] != ".":
        text = f"{body[:-1]} . {text[len(body) :]}"
    text = SIGNS.sub(r" \g<0> ", text).replace('"', " '' ")
    for word in text.split():
        yield from _parts(word)


def _parts(word: str) -> Iterator[str]:
    """The tokens of a word between spaces: clitics ('s, n't) and the halves of "cannot" are tokens of their own."""
    ends: list[str] = []
    for clitic in CLITICS:
        if match := clitic.search(word):
            ends.insert(0, match.group())
            word = word[: match.start()]
    for part in (word, *ends):
        yield from JOINED.sub(lambda match: f" {HALVES[match.group()]} ", part).split()
