"""Makes text that is not ours harmless to a terminal, and standard streams that never end finished work.

Control sequences can rewrite the screen, set the clipboard or answer into the shell's input, and
bidirectional overrides show other words than are there. Such characters are shown as escapes; newline and tab stay.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO

from memfactory.redaction import redacted

# C0 without tab and newline, DEL, C1, line and paragraph separators, bidirectional embeddings, overrides and isolates,
# format characters that are drawn as nothing, byte order mark, tags, lone surrogates.
_UNSAFE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff"
_HARMFUL = re.compile(f"[{_UNSAFE}]")
# Sequences that libraries for bars and colours need; nothing of it outlives the line that it stands in.
_OURS = re.compile(r"\r\n?|\x1b\[[0-9;:]{0,40}m|\x1b\[[0-9]{0,4}[ABCDGJK]|\x1b\[\?25[hl]")
_PARTS = re.compile(f"({_OURS.pattern})|[{_UNSAFE}]")
# Signs of our own tables and messages in an encoding that lacks them.
_PLAIN = {"±": "+-", "–": "-", "—": "-", "…": "...", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "•": "*", "−": "-"} | {
    sign: "'" for sign in "‘’"
}
DEGRADE = "memfactory.degrade"


def harmless(text: str) -> str:
    """`text` with every control character but newline and tab as JSON writes it (`\\u001b`, `\\u202e`).

    A carriage return before a newline goes.
    """
    if text.isascii() and text.isprintable():
        return text
    return _HARMFUL.sub(_escape, text.replace("\r\n", "\n"))


def harmless_json(text: str) -> str:
    """The JSON `text` with every control character inside its strings as an escape; it says the same."""
    return _HARMFUL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match.group())[1:-1]


def _degraded(error: UnicodeError) -> tuple[str | bytes, int]:
    """Each character that an encoding lacks as a like one of ASCII, or a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign, "?") for sign in missing), error.end


codecs.register_error(DEGRADE, _degraded)


class GuardedStream(io.TextIOBase):
    """A standard stream through which no secret and no harmful sequence goes, and whose end ends nothing.

    Colours and the movements of progress bars pass; code that prints foreign text applies `harmless` first. A
    closed pipe (`| head`) is not an error: later output is dropped. Everything else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_closed = False

    def write(self, text: str) -> int:
        if not self.is_closed:
            with self._while_read():
                self._stream.write(_guarded(redacted(text)))
        return len(text)

    def flush(self) -> None:
        if not self.is_closed:
            with self._while_read():
                self._stream.flush()

    @contextmanager
    def _while_read(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not _nobody_reads(error):
                raise
            self.is_closed = True
            discard(self._stream)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Standard streams stay open."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)  # Writing to it would bypass the guard.
        return getattr(self._stream, name)


def _guarded(text: str) -> str:
    """`text` with every sequence but colours and the movements of progress bars as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return _PARTS.sub(lambda match: match.group() if match.group(1) else _escape(match), text)


def _nobody_reads(error: OSError) -> bool:
    return error.errno in (errno.EPIPE, errno.ESHUTDOWN) or isinstance(error, BrokenPipeError)


def discard(stream: IO[str]) -> None:
    """Drop buffered output of a closed pipe, so that the interpreter ends quietly."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Stdout and stderr guarded, and able to write every character in some form. A process may lack either."""
    before: tuple[TextIO | None, TextIO | None] = (sys.stdout, sys.stderr)
    errors = [_tolerant(stream) for stream in before]
    out, err = (None if stream is None else GuardedStream(stream) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        for guarded in (out, err):
            if guarded is not None:
                guarded.flush()
        sys.stdout, sys.stderr = before
        for stream, old in zip(before, errors, strict=True):
            if old is not None and isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=old)


def _tolerant(stream: TextIO | None) -> str | None:
    """Let `stream` replace characters that its encoding lacks; its former way to handle them."""
    if not isinstance(stream, io.TextIOWrapper):
        return None
    before = stream.errors
    stream.reconfigure(errors=DEGRADE)
    return before
