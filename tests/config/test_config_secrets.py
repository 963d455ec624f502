"""No way to write a secret into a config goes through, and none of them is repeated in what is said about it."""

from __future__ import annotations

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.errors import ConfigError

PLANTED = "plantedSecret9876"
BASE = """
model: tiny
agent: {name: memory_agent, chunk_tokens: 64, memory_tokens: 24, answer_tokens: 12}
env: {name: longcontext, rewards: {boxed_em: 1.0}}
"""
API = "engine: {{kind: openai, model: m, tokenizer: tiny, base_url: '{url}', api_key_env: {key}}}\n"


def template(text):
    """A config with a free-form mapping: the options of the chat template."""
    return BASE.replace("model: tiny", f"model: {{path: tiny, template_options: {text}}}")


WAYS = [
    f"{{{name}: {PLANTED}}}"
    for name in (
        "api-key api_key apiKey API_KEY api.key auth passphrase password passwd pwd secret client_secret token "
        "access_token accessToken refresh_token github_token private_key X-Api-Key authorization Authorization cookie "
        "credentials bearer signing_key session_key hf_token connection_string dsn"
    ).split()
] + [
    f"{{headers: {{Authorization: Bearer {PLANTED}}}}}",
    f"{{headers: 'Authorization: {PLANTED}'}}",
    f"{{headers: ['X-Api-Key: {PLANTED}']}}",
    f"{{headers: [{{name: X-Api-Key, value: {PLANTED}}}]}}",
    f"{{auth: [me, {PLANTED}]}}",
    f"{{auth: {{user: me, pass: {PLANTED}}}}}",
    f"{{auth: {{value: {PLANTED}}}}}",
    f"{{args: [--api-key, {PLANTED}]}}",
    f"{{args: ['--api-key={PLANTED}']}}",
    f"{{args: '--token {PLANTED}'}}",
    f"{{deep: {{deeper: [{{password: {PLANTED}}}]}}}}",
    f"{{url: 'https://me:{PLANTED}@host/v1'}}",
    f"{{url: 'https://{PLANTED}@host/v1'}}",
    f"{{url: 'https://host/v1?a=b&access_token={PLANTED}'}}",
    f"{{url: 'https://host/v1?key={PLANTED}'}}",
    f"{{anything: sk-{PLANTED}}}",
    "{anything: ghp_plantedSecret9876plantedSecret9876}",
    f"{{anything: 'Bearer {PLANTED}'}}",
    "{anything: '${oc.env:GITHUB_TOKEN}'}",
    "{anything: '${oc.env:\"GITHUB_TOKEN\"}'}",
    "{anything: '${oc.env:OPENAI_KEY}'}",
    "{anything: 'x ${oc.env:HARMLESS} y'}",
    "{anything: '${oc.env:HARMLESS_URL}'}",
    f"{{anything: {PLANTED}}}",
    "{api_key_env: " + f"'{PLANTED} '" + "}",
    f"{{api_key_env: sk-{PLANTED}}}",
    f"{{api_key_env: {PLANTED}{PLANTED}}}",
]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("GITHUB_TOKEN", "OPENAI_KEY", "HARMLESS"):
        monkeypatch.setenv(name, PLANTED)
    monkeypatch.setenv("HARMLESS_URL", f"http://me:{PLANTED}@host/v1")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_secret_is_refused_and_not_repeated(tmp_path, capsys, way):
    (tmp_path / "c.yaml").write_text(template(way))
    assert run(["config", "show", str(tmp_path / "c.yaml")]) == 2
    assert run(["config", "validate", str(tmp_path / "c.yaml")]) == 2
    captured = capsys.readouterr()
    assert "secret" in captured.err or "may be the key itself" in captured.err
    assert PLANTED not in captured.out + captured.err


@pytest.mark.parametrize("way", ["a.api-key={}", "a.b={{password: {}}}", "a.url=http://me:{}@h/v1", "a.x=sk-{}"])
def test_an_override_is_no_way_either(tmp_path, capsys, way):
    (tmp_path / "c.yaml").write_text(template("{}"))
    word = "model.template_options." + way.format(PLANTED)
    assert run(["config", "show", "--origin", str(tmp_path / "c.yaml"), word]) == 2
    captured = capsys.readouterr()
    assert PLANTED not in captured.out + captured.err and "secret" in captured.err


@pytest.mark.parametrize(
    "way",
    [
        "{eos_token: </s>, memory_tokens: 3, key: value, author: Ann, first_pass: true}",
        "{prompt: 'Password required', other: 'The secret is out: say nothing.', basic: Basic understanding of it}",
        "{path: models/sk-learned-7b, url: 'https://host/v1?version=2', home: '${oc.env:HOME}'}",
        "{api_key_env: MY_API_KEY, other_env: my_key, token_env: ''}",
        "{sha: 0123456789abcdef0123456789abcdef01234567}",
        "{auth: true, password: false, token: null}",
    ],
)
def test_what_is_no_secret_passes(tmp_path, way):
    (tmp_path / "c.yaml").write_text(template(way))
    resolved = load_config(tmp_path / "c.yaml")
    (tmp_path / "again.yaml").write_text(resolved.to_yaml())
    assert load_config(tmp_path / "again.yaml").values == resolved.values


def test_names_that_users_choose_are_no_names_of_secrets(tmp_path):
    text = BASE.replace("boxed_em: 1.0", "boxed_em: 1.0, pass: 0.5") + "data: {eval: {token: facts}}\n"
    (tmp_path / "c.yaml").write_text(text + "engines: {auth: {kind: openai, model: m, api_key_env: null}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert len(caught.value.problems) == 1 and "no reward is called 'pass'" in str(caught.value)


def test_a_config_whose_secret_was_redacted_says_so(tmp_path):
    (tmp_path / "c.yaml").write_text(template("{x: 'a [redacted] b'}"))
    with pytest.raises(ConfigError, match=r"model\.template_options\.x: \[redacted\] stands where a secret was"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("sk-\u201cquoted\u201d-plantedSecret", r"U\+201C"),
        ("sk-plantedSecret\u200b", r"U\+200B"),
        ("sk-plantedSecret\nsk-second", r"U\+000A"),
        (" ", "is not set"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "infer", "train"])
def test_a_key_is_checked_when_a_run_is_validated(tmp_path, monkeypatch, key, told, command):
    monkeypatch.setenv("MY_KEY", key)
    text = BASE + API.format(url="http://h/v1", key="MY_KEY")
    if command == "train":
        judged = BASE.replace("boxed_em", "judge")
        text = judged + "engines: {judge: {kind: openai, model: m, base_url: 'http://h/v1', api_key_env: MY_KEY}}\n"
        text += "data: {train: facts}\ntrain: grpo\n"
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"api_key_env: .*MY_KEY.*{told}") as caught:
        load_config(tmp_path / "c.yaml", command=command)
    assert "plantedSecret" not in str(caught.value)


def test_the_key_of_an_embedder_is_checked_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-a b")
    text = BASE + "memory: {embedder: {kind: openai, model: e, api_key_env: MY_KEY}}\n"
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"memory\.embedder\.api_key_env: .*MY_KEY holds U\+0020"):
        load_config(tmp_path / "c.yaml", command="infer")


@pytest.mark.parametrize("address", ["http://127.0.0.1:abc/v1", "localhost:80", "http:///v1", "http://h/v 1"])
def test_an_address_that_is_none_is_no_valid_config(tmp_path, address):
    (tmp_path / "c.yaml").write_text(BASE + API.format(url=address, key="null"))
    with pytest.raises(ConfigError, match=r"engine\.base_url: .* is not an address"):
        load_config(tmp_path / "c.yaml")
    text = BASE + f"memory: {{embedder: {{kind: openai, model: e, base_url: '{address}'}}}}\n"
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"memory\.embedder\.base_url: .* is not an address"):
        load_config(tmp_path / "c.yaml")


def test_an_address_in_the_environment_is_checked_for_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:{PLANTED}@host:x/v1")
    (tmp_path / "c.yaml").write_text(BASE + "engine: {kind: openai, model: m, tokenizer: tiny, api_key_env: null}\n")
    with pytest.raises(ConfigError, match=r"OPENAI_BASE_URL: .* is not an address") as caught:
        load_config(tmp_path / "c.yaml", command="infer")
    assert PLANTED not in str(caught.value)
