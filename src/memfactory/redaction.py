"""Keeps secrets out of all output: by the value of every key that is read, and by the usual forms of keys.

Its list of keys belongs to the process, like the environment that keys come from: code that prints cannot receive a
list first.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

from memfactory.errors import ConfigError

REDACTED = "[redacted]"
SHORTEST = 8
"""Characters of the shortest value that is looked for: a key such as `EMPTY` stands in ordinary texts."""
SHORTEST_NUMBER = 12
"""The same for values of digits alone, which are looked for among numbers too."""
LIBRARIES_READ = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SWANLAB_API_KEY", "OPENAI_API_KEY")
"""Variables of keys that are read without our doing."""

# Names of secrets, in snake case.
_SECRET_NAME = re.compile(
    r"(?:.*_)?(?:api_?keys?|password|passwd|passphrase|passcode|pwd|secrets?|credentials?|cookies?|auth|authorization"
    r"|authentication|bearer|jwt|connection_string|dsn"
    r"|(?:access|secret|private|signing|encryption|subscription|account|shared|master|hmac|client|ssh|consumer|license"
    r"|licence|session|auth|function|functions|service|admin|deploy|storage)_?key(?:_id)?)"
    r"|(?:.*_)?(?:auth|access|api|hf|hub|hugging_?face|git|github|gitlab|gh|bearer|refresh|session|secret|security|bot|user"
    r"|deploy|personal|private|service|csrf|slack|npm|pypi|vault|registry|client|oauth|x|sas|sts)_?token|token|pass|pat"
)
_SECRET_VARIABLE = re.compile(
    r"(?:.*_)?(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|PWD|PAT|CREDENTIALS?|AUTH|DSN)", re.IGNORECASE
)
_PARAMETER = r"(?:[\w-]*[_-])?(?:api[_-]?key|key|token|auth|secret|password|passwd|pwd|sig|signature|credential|sas)"
_LOOKS = (
    # Userinfo in an address, secret parameters of its query.
    (re.compile(r"(?<=://)[^/\s@'\"?#]{0,200}:[^/\s@'\"]{1,400}@|(?<=://)[^/\s@:'\"?#]{8,400}@"), f"{REDACTED}@"),
    (re.compile(rf"([?&;]{_PARAMETER}=)(?!\[redacted\])[^&\s'\"#;]+", re.IGNORECASE), rf"\1{REDACTED}"),
    # A header's credentials.
    (
        re.compile(
            r"(\bAuthorization[\"']?\s*[:=]\s*[\"']?(?:(?:Bearer|Basic|Token)\s+)?)(?!\[redacted\])[^\s\"',]{6,}", re.I
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"\b(Bearer|Basic)\s+(?=\S*[0-9=])[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    # Formats of well-known issuers.
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{6,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
            r"|hf_[A-Za-z0-9]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|AKIA[0-9A-Z]{16}"
            r"|ASIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{30,}|gsk_[A-Za-z0-9]{20,}|pypi-[A-Za-z0-9_-]{20,}|npm_[A-Za-z0-9]{30,}"
            r"|r8_[A-Za-z0-9]{30,}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*|nvapi-[A-Za-z0-9_-]{20,})"
        ),
        REDACTED,
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), REDACTED),
)
_ASSIGNED = re.compile(
    r"""(?<![\w.$-])([A-Za-z][\w.-]*)(\s*=\s*|["']\s*:\s*(?=["']))("[^"\n]*"|'[^'\n]*'|[^\s,;&}"']+)"""
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Invisible characters inside a key: colours, control characters and format characters of no width.
_UNSEEN = re.compile(
    "\x1b\\[[0-9;:?]*[A-Za-z]|[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)

_values: frozenset[str] = frozenset()
_forms: tuple[str, ...] = ()
_pattern: re.Pattern[str] | None = None


def keep_secret(value: str) -> None:
    """Redact `value`, each of its lines and their usual encodings from now on."""
    global _values, _forms, _pattern
    lines = {value.strip(), *(line.strip() for line in value.splitlines())}
    new = {line for line in lines if _is_worth_hiding(line)} - _values
    if not new:
        return
    _values = _values | new
    _forms = tuple(sorted({form for known in _values for form in _encoded(known)}, key=len, reverse=True))
    _pattern = re.compile("|".join(_bounded(form) for form in _forms))


def keep_environment_secrets(environment: Mapping[str, str] = os.environ) -> None:
    """Redact the keys that libraries read by themselves.

    Of other variables whose names say that they are secrets, those that look random too: `DB_PASSWORD=postgres` is a
    word of ordinary texts.
    """
    for name, value in environment.items():
        if name in LIBRARIES_READ or (is_secret_variable(name) and is_random(value)):
            keep_secret(value)


def read_key(variable: str | None, owner: str) -> str | None:
    """The key in the environment variable `variable`, redacted from now on; None if no variable is named.

    Raises ConfigError, which names the variable and never the value, if it is not set or cannot be a key.
    """
    if not variable:
        return None
    named = shown_variable(variable)
    value = environment_value(variable)
    keep_secret(value)
    key = value.strip()
    if not key:
        raise ConfigError(
            f"{owner} needs a key in the environment variable {named}, which is not set; write api_key_env: null for "
            "an endpoint without keys"
        )
    place, wrong = next(((i, c) for i, c in enumerate(key, start=1) if not "!" <= c <= "~"), (0, ""))
    if wrong:
        raise ConfigError(
            f"the key of {owner} in the environment variable {named} holds U+{ord(wrong):04X} at place {place} of "
            f"{len(key)}; a key is printable ASCII without white space, so it was not copied as it is"
        )
    return key


def environment_value(variable: str) -> str:
    """The value of an environment variable; empty if there is none, or if no variable can have this name."""
    try:
        return os.environ.get(variable, "")
    except UnicodeEncodeError:
        return ""


def shown_variable(name: str) -> str:
    """The name of an environment variable as messages show it; hidden if it may be the key itself."""
    usual = _VARIABLE.fullmatch(name) and not looks_secret(name) and (name in os.environ or not is_random(name))
    return name if usual else "(its name is not shown: it may be the key itself)"


def names_a_variable(text: str) -> bool:
    """Whether `text` can be the name of an environment variable, and does not look like a key."""
    if not _VARIABLE.fullmatch(text):
        return False
    return text in os.environ or (not looks_secret(text) and not is_random(text))


def redacted(text: str) -> str:
    """`text` without the values of the keys that were read, as they are and as they are usually encoded.

    If invisible characters, such as those of no width, hide a key, they are left out too.
    """
    if _pattern is None:
        return text
    if _holds_form(text):
        text = _pattern.sub(REDACTED, text)
    seen = _UNSEEN.sub("", text) if _UNSEEN.search(text) else text
    return _pattern.sub(REDACTED, seen) if seen is not text and _pattern.search(seen) else text


def holds_secret(text: str) -> bool:
    """Whether `text` holds the value of a key that was read."""
    return bool(_forms) and (_holds_form(text) or _holds_form(_UNSEEN.sub("", text)))


def _holds_form(text: str) -> bool:
    return any(form in text for form in _forms)


def redacted_message(text: str) -> str:
    """`redacted`, for a message: also without texts in the form of secrets (`key=...`, addresses, well-known
    tokens)."""
    text = redacted(text)
    for pattern, instead in _LOOKS:
        text = pattern.sub(instead, text)
    return _ASSIGNED.sub(_without_value, text)


def redacted_command(words: Sequence[str]) -> str:
    """A command line of `memfactory` as it may be written down."""
    shown: list[str] = []
    for word in words:
        option = bool(shown) and shown[-1].startswith("--") and is_secret(shown[-1].lstrip("-"))
        shown.append(REDACTED if option else redacted_message(word))
    return shlex.join(["memfactory", *shown])


def redacted_tree(value: Any) -> Any:
    """Nested plain values with every text in them `redacted`, keys too."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {redacted(key) if isinstance(key, str) else key: redacted_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_tree(inner) for inner in value]
    return value


def looks_secret(text: str) -> bool:
    """Whether `text` holds a secret, by its form or by its value."""
    if holds_secret(text):
        return True
    matches = (match.group() for pattern, _ in _LOOKS for match in pattern.finditer(text))
    # A short name may begin with "sk-" too; in a message it is hidden, but nothing is refused for it.
    return any(not match.startswith("sk-") or len(match) >= 16 for match in matches)


def is_secret(name: object) -> bool:
    """Whether a value under `name` would be a secret (`api_key_env`, `memory_tokens`, `eos_token` are not)."""
    if not isinstance(name, str):
        return False
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    snake = re.sub(r"[^A-Za-z0-9]+", "_", snake).strip("_").lower()
    return _SECRET_NAME.fullmatch(snake) is not None


def is_secret_variable(name: str) -> bool:
    """Whether the environment variable `name` holds a secret, as its name says."""
    return is_secret(name) or _SECRET_VARIABLE.fullmatch(name) is not None


def is_random(text: str) -> bool:
    """Whether `text` may be a key by its looks alone: long, in one word, letters and digits mixed."""
    words = re.findall(r"[A-Za-z0-9]{16,}", text)
    return any(re.search(r"[0-9]", word) and re.search(r"[A-Za-z]", word) for word in words)


def _without_value(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    last = name.rpartition(".")[2]
    if not is_secret(last) or value.rstrip(":").strip("\"'") in ("", "null", "None", REDACTED, "***"):
        return match.group()
    mark = value[0] if value[0] in "\"'" else ""
    # A message goes on after a colon: `api_key=x: no such key`.
    colon = ":" if value.endswith(":") else ""
    return f"{name}{between}{mark}{REDACTED}{mark}{colon}"


def _is_worth_hiding(value: str) -> bool:
    number = re.fullmatch(r"[0-9.eE+-]+", value) is not None
    return len(value) >= (SHORTEST_NUMBER if number else SHORTEST)


def _encoded(value: str) -> Iterable[str]:
    """The forms of `value` in addresses, JSON, HTML, Python's own notation, base64 and hexadecimal.

    Signs written by their number come in upper and lower case, and also with every sign so written.
    """
    raw = value.encode("utf-8", "surrogatepass")
    quoted = {quote(raw), quote(raw, safe=""), quote_plus(raw)}
    yield from (value, *quoted, html.escape(value), repr(value)[1:-1], repr(raw)[2:-1])
    units = value.encode("utf-16-be", "surrogatepass")
    escaped = [units[at : at + 2].hex() for at in range(0, len(units), 2)]
    yield from (re.sub("%..", lambda sign: sign.group().lower(), form) for form in quoted)
    for write in (str.lower, str.upper):
        digits = [write(f"{byte:02x}") for byte in raw]
        yield "".join(digits)
        yield from ("".join(before + byte for byte in digits) for before in ("%", "\\x", "\\\\x"))
        yield from ("".join(before + write(unit) for unit in escaped) for before in ("\\u", "\\\\u"))
    yield from (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    yield json.dumps(json.dumps(value))[3:-3]
    for before in range(3):
        # Inside a longer text the first and last signs depend on its neighbours too; the others do not.
        coded = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
        inner = coded[(0, 2, 3)[before] : len(coded) - (1 if (before + len(raw)) % 3 else 0)]
        yield from (inner, inner.replace("+", "-").replace("/", "_"))


def _bounded(form: str) -> str:
    """A pattern for `form`; one of digits alone is not a part of a longer number."""
    return rf"(?<![\w.]){re.escape(form)}(?![\w.])" if form.isdigit() else re.escape(form)
