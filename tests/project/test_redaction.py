"""Secrets are found by the value of every key that was read, by the names of what holds them, and by their looks."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfactory.errors import ConfigError
from memfactory.files.atomic import write_json, write_text
from memfactory.files.json_lines import json_line
from memfactory.redaction import (
    REDACTED,
    is_secret,
    is_secret_variable,
    keep_environment_secrets,
    keep_secret,
    names_a_variable,
    read_key,
    redacted,
    redacted_message,
)

KEY = 'planted/Key+with"signs&7'


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        quote(KEY),
        quote(KEY, safe=""),
        quote_plus(KEY),
        json.dumps(KEY),
        json.dumps(json.dumps(KEY)),
        html.escape(KEY),
        repr(KEY),
        KEY.encode().hex(),
        KEY.encode().hex().upper(),
        quote(KEY, safe="").replace("%2F", "%2f").replace("%2B", "%2b"),
        "".join(f"%{byte:02x}" for byte in KEY.encode()),
        "".join(f"%{byte:02X}" for byte in KEY.encode()),
        "".join(f"\\u{ord(sign):04x}" for sign in KEY),
        "".join(f"\\u{ord(sign):04X}" for sign in KEY),
        "".join(f"\\\\u{ord(sign):04x}" for sign in KEY),
        "".join(f"\\x{byte:02x}" for byte in KEY.encode()),
        "\u200b".join(KEY),
        "\xad".join(KEY),
        "\x1b[31m".join(KEY),
        "\0".join(KEY),
        base64.b64encode(KEY.encode()).decode(),
        base64.b64encode(f"user:{KEY}".encode()).decode(),
        base64.urlsafe_b64encode(f"a:{KEY} and more".encode()).decode(),
    ],
)
def test_a_key_is_found_however_it_is_encoded(written):
    keep_secret(KEY)
    said = redacted(f"before {written} after")
    assert REDACTED in said and said.startswith("before ") and said.endswith(" after")
    # Of base64, a sign at each end may stay that depends on what stands beside the key.
    assert len(said) <= len(f"before {REDACTED} after") + 20


def test_other_texts_keep_their_unseen_characters():
    keep_secret(KEY)
    text = "\x1b[31mred\x1b[0m\r\n\u200bzero\xad"
    assert redacted(text) == text


def test_each_line_of_a_key_with_a_line_break_is_found():
    keep_secret("sk-FIRSTLINE\nsk-SECONDLINE\r\n")
    assert redacted("b'Bearer sk-FIRSTLINE\\nsk-SECONDLINE'") == f"b'Bearer {REDACTED}'"
    assert redacted("Bearer sk-FIRSTLINE, sk-SECONDLINE") == f"Bearer {REDACTED}, {REDACTED}"


def test_short_keys_of_local_servers_hide_no_ordinary_words():
    for key in ("EMPTY", "none", "ollama", "12345678"):
        keep_secret(key)
    assert redacted("EMPTY none ollama 12345678") == "EMPTY none ollama 12345678"


def test_a_key_of_digits_is_no_part_of_a_number(tmp_path):
    keep_secret("123456789012")
    assert redacted("a 123456789012 b") == f"a {REDACTED} b"
    assert redacted("0.123456789012") == "0.123456789012"
    write_json(tmp_path / "a.json", {"number": 123456789012, "text": "123456789012"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"number": 123456789012, "text": REDACTED}


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans()))
def test_json_says_the_same_and_holds_no_control_character(value):
    line = json_line(value)
    assert json.loads(line) == value
    assert not any(c < " " or "\x7f" <= c <= "\x9f" or c in "\u202e\u2066" for c in line[:-1])


def test_files_hold_no_key(tmp_path):
    keep_secret("planted-in-a-file-1")
    write_text(tmp_path / "a.yaml", "x: planted-in-a-file-1\n")
    write_json(tmp_path / "a.json", {"planted-in-a-file-1": ["planted-in-a-file-1"]})
    assert (tmp_path / "a.yaml").read_text() == f"x: {REDACTED}\n"
    assert json.loads((tmp_path / "a.json").read_text()) == {REDACTED: [REDACTED]}
    assert json.loads(json_line({"a": ("planted-in-a-file-1",)})) == {"a": [REDACTED]}


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://me:hunter2@host/v1 refused", "hunter2"),
        ("https://ghp4abcdefghij@host/x", "ghp4abcdefghij"),
        ("GET https://host/v1?api-key=abc123&b=2", "abc123"),
        ("https://host/v1?b=2&X-Amz-Signature=0badc0de", "0badc0de"),
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("Incorrect API key provided: sk-proj-abc123_x.", "sk-proj-abc123_x"),
        ("token ghp_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", "ghp_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
        ("memfactory train a.yaml env.x.password=hunter2", "hunter2"),
        ("""{"api_key": "abc"}""", "abc"),
        ("{'client-secret': 'abc def'}", "abc def"),
        ("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----", "MIIB"),
    ],
)
def test_messages_hold_nothing_that_looks_like_a_secret(text, hidden):
    said = redacted_message(text)
    assert hidden not in said and REDACTED in said


@pytest.mark.parametrize(
    "text",
    [
        "engine.api_key_env: the key of 'big' is expected in the environment variable OPENAI_API_KEY, which is not set",
        "engine.password: a config is saved beside its results, so it holds no secrets",
        "'judge' at http://127.0.0.1:8000/v1 gave no reply in 3 tries: HTTP 500: boom",
        "train.max_tokens=5 and eos_token=</s> task-skeleton sk-ip mail@host.org",
        "https://host/v1?version=2&page=3",
    ],
)
def test_other_messages_stay_as_they_are(text):
    assert redacted_message(text) == text


@pytest.mark.parametrize(
    "name",
    "api-key apiKey X-API-Key auth passphrase Authorization client_secret private-key access_token token GITHUB_TOKEN "
    "cookie proxy_auth signing_key password secret credentials hfToken connectionString account_key pwd".split(),
)
def test_names_of_secrets_are_known_in_every_spelling(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    "api_key_env memory_tokens eos_token max_tokens tokenizer key keys author first_pass answer_key bos_token "
    "mask_token session_tokens padding_token_id compass passage authored keyed pattern sequence_key".split(),
)
def test_other_names_are_no_names_of_secrets(name):
    assert not is_secret(name)


def test_variables_are_taken_for_secrets_by_their_names():
    assert all(map(is_secret_variable, ("OPENAI_KEY", "GITHUB_TOKEN", "MY_API_KEY", "DB_PASS", "PAT")))
    assert not any(map(is_secret_variable, ("HOME", "MODEL", "KEYBOARD", "PATH", "SEED")))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("sk-\u201cquoted\u201d", r"U\+201C at place 4"),
        ("sk-invisible\u200bspace", r"U\+200B at place 13"),
        ("sk-first line\n", r"U\+0020 at place 9"),
        ("sk-FIRST\nsk-SECOND", r"U\+000A at place 9"),
        ("sk-null\x7f", r"U\+007F"),
        ("  ", "is not set"),
    ],
)
def test_a_key_that_cannot_be_one_is_told_by_its_variable(monkeypatch, value, told):
    monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(ConfigError, match=f"SOME_KEY.*{told}") as caught:
        read_key("SOME_KEY", "the endpoint")
    assert value.strip() == "" or value.strip()[:8] not in str(caught.value)


def test_a_key_is_read_without_the_line_break_of_its_file(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "abc-123-def\n")
    assert read_key("SOME_KEY", "the endpoint") == "abc-123-def"
    assert read_key(None, "the endpoint") is None and read_key("", "the endpoint") is None
    assert redacted("abc-123-def") == REDACTED


@pytest.mark.parametrize("key", ["hf_abcdefghijABCDEFGHIJ1", "a1b2c3d4e5f6a7b8c9d0", "AKIAIOSFODNN7EXAMPLE"])
def test_a_key_in_place_of_its_variable_is_not_shown(key):
    assert not names_a_variable(key)
    with pytest.raises(ConfigError) as caught:
        read_key(key, "the endpoint")
    assert key not in str(caught.value) and "may be the key itself" in str(caught.value)


def test_a_lone_surrogate_names_no_variable():
    # The environment has no such name, and asking it for one raises UnicodeEncodeError.
    assert not names_a_variable("\ud95a")
    with pytest.raises(ConfigError, match="is not set"):
        read_key("\ud95a", "the endpoint")


def test_keys_that_libraries_read_are_redacted_too():
    keep_environment_secrets(
        {"HF_TOKEN": "plain-words-token\n", "MY_TOKEN": "0123456789abcdefXYZ", "PLAIN": "plainvalue1"}
    )
    keep_environment_secrets({"DB_PASSWORD": "postgres"})
    said = redacted("plain-words-token 0123456789abcdefXYZ plainvalue1 postgres")
    assert said == f"{REDACTED} {REDACTED} plainvalue1 postgres"
