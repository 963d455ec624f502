"""The page docs/configuration.md, executed: its files load, its overrides apply, its mistakes give its messages."""

import re
from pathlib import Path

import pytest

from memfactory.config import load_config
from memfactory.errors import ConfigError
from snippets import write_files

PATH = Path(__file__).parents[2] / "docs" / "configuration.md"
PAGE = PATH.read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the page's files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MY_SEED", raising=False)
    write_files(PATH, tmp_path)
    return tmp_path


def test_the_config_of_the_page_loads_with_the_overrides_of_the_page(folder):
    words = re.findall(r"memfactory train (configs/my_run.yaml.*)", PAGE)[0].split()
    config = load_config(words[0], words[1:]).config
    module = config.agent.modules["memory"].options
    assert (module.chunk_tokens, module.memory_tokens) == (200, 32)
    assert config.env.options.rewards == {"boxed_em": 1.0, "format": {"weight": 0.2}}
    assert config.train.options.steps == 5
    assert config.seed == 0


def test_the_agent_that_is_written_out_loads(folder):
    text = re.findall(r"```yaml\n(agent:.*?)```", PAGE, re.DOTALL)[0]
    Path("x.yaml").write_text("model: tiny\nenv: longcontext\n" + text)
    config = load_config("x.yaml", command="infer").config
    assert config.agent.modules["memory"].options.engine == "endpoint"


def test_the_mistakes_of_the_page_give_its_messages(folder):
    path = Path("configs/my_run.yaml")
    path.write_text(path.read_text().replace("steps: 20", "stps: 20").replace("2e-5", "high"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = re.findall(r"```text\n(configs/my_run.yaml:\d+.*?)```", PAGE, re.DOTALL)[0].splitlines()
    assert len(caught.value.problems) == len(lines)
    for problem, line in zip(caught.value.problems, lines, strict=True):
        assert problem.startswith(line)
