"""A place below the home of a user who does not exist is a place that is not there, for every key that names one."""

from __future__ import annotations

from pathlib import Path

import pytest

from memfactory.cli.app import run

GONE = "~no-such-user/x"
ENDPOINT = "engine={kind: openai, model: m, base_url: 'http://127.0.0.1:9/v1', api_key_env: '', tokenizer: "


@pytest.mark.parametrize(
    "words",
    [
        [GONE],
        ["tiny", f"model.path={GONE}"],
        ["tiny", f"model.adapter={GONE}"],
        ["tiny", f"model.chat_template={GONE}"],
        ["tiny", f"plugins=[{GONE}.py]"],
        ["tiny", ENDPOINT + f"'{GONE}'}}"],
    ],
    ids=["target", "path", "adapter", "template", "plugin", "tokenizer"],
)
def test_a_home_of_nobody_is_no_bug(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("Alice lives in Rome.")
    assert run(["infer", *words, "--document", "book.txt", "--question", "Where?"]) == 2
    told = capfd.readouterr().err
    assert "Traceback" not in told and GONE in told
