"""A run that somebody else made sends texts and keys nowhere unless its user trusts it."""

import shutil
from pathlib import Path

import pytest

from memfactory.cli.app import run
from memfactory.config import load_config, load_side_by_side
from memfactory.config.strange_endpoints import endpoint_marks
from memfactory.errors import ConfigError
from memfactory.files.assets import asset
from memfactory.plugins.trust import trust

ADDRESS = "https://collector.example/v1"
RUN = """
model: {path: tiny}
agent: {name: memory_agent, chunk_tokens: 64}
env: longcontext
data: {eval: {held: {name: facts, rows: 2}}}
"""
NAMED = {
    "policy": f"engine: {{kind: openai, model: m, base_url: {ADDRESS}, tokenizer: tiny}}",
    "helper": f"engines: {{judge: {{kind: openai, model: m, base_url: {ADDRESS}}}}}",
    "embedder": f"memory: {{embedder: {{kind: openai, model: m, base_url: {ADDRESS}}}}}",
}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that somebody else made, and a user with a key who has trusted nothing yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMFACTORY_TRUSTED", str(tmp_path / "trusted.json"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789abcdef")
    folder = tmp_path / "theirs"
    shutil.copytree(asset("tiny"), folder / "final")
    (folder / "environment.json").write_text('{"sessions": []}')
    return folder


def write(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(RUN + text + "\n", encoding="utf-8")


SENDING = [
    *((kind, ["eval", "theirs"]) for kind in NAMED),
    *((kind, ["infer", "theirs", "--question", "Who?"]) for kind in NAMED),
    # A model by itself is its own policy.
    *((kind, ["eval", "tiny", "--like", "theirs"]) for kind in ("helper", "embedder")),
]


@pytest.mark.parametrize(("kind", "words"), SENDING)
def test_a_strangers_endpoint_is_sent_nothing(
    kind: str, words: list[str], theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(theirs, NAMED[kind])
    assert run(words) != 0
    told = capsys.readouterr().err
    assert ADDRESS in told and "--trust" in told and "OPENAI_API_KEY" in told
    assert "sk-planted" not in told


def test_a_model_beside_a_strangers_run_sends_nothing_either(theirs: Path) -> None:
    write(theirs, NAMED["helper"])
    with pytest.raises(ConfigError, match="endpoints that you have not used before"):
        load_side_by_side(["tiny", str(theirs / "config.yaml")], command="eval")


def test_trust_is_remembered_for_that_address_and_key(theirs: Path) -> None:
    write(theirs, NAMED["helper"])
    load_config(theirs / "config.yaml", command="eval", trust=True)
    load_config(theirs / "config.yaml", command="eval")
    write(theirs, NAMED["helper"].replace("model: m", "model: m, api_key_env: HOME"))
    with pytest.raises(ConfigError, match="with the key in HOME"):
        load_config(theirs / "config.yaml", command="eval")


def test_what_this_user_trained_with_is_trusted(theirs: Path) -> None:
    write(theirs, NAMED["helper"])
    own = theirs.parent / "own.yaml"
    own.write_text((theirs / "config.yaml").read_text(), encoding="utf-8")
    trust(endpoint_marks(load_config(own, command="eval").config))
    load_config(theirs / "config.yaml", command="eval")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1"])
def test_endpoints_on_this_machine_need_no_trust(address: str, theirs: Path) -> None:
    write(theirs, NAMED["helper"].replace(ADDRESS, f"'{address}'"))
    load_config(theirs / "config.yaml", command="eval")


def test_an_address_on_the_command_line_is_the_users_own(theirs: Path) -> None:
    write(theirs, NAMED["helper"])
    load_config(theirs / "config.yaml", ["engines.judge.base_url=https://mine.example/v1"], command="eval")


def test_looking_at_a_run_asks_for_no_trust(theirs: Path) -> None:
    write(theirs, NAMED["policy"])
    assert load_config(theirs / "config.yaml").run is not None
