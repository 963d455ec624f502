"""The page docs/vllm.md: its configs load, its command has every needed option, its versions are those checked."""

import re
from pathlib import Path

import pytest

from memfactory.config import load_config
from memfactory.engines.options import VllmEngineConfig, VllmServerConfig
from memfactory.engines.vllm.checks import LORA_RANKS, NEWEST, OLDEST
from memfactory.engines.vllm.remote_model import NEEDED
from snippets import files_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
CONFIGS = files_of(ROOT / "docs" / "vllm.md")
(COMMAND,) = [text for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "api_server" in text]


@pytest.mark.parametrize(("name", "kind"), [("one_gpu.yaml", VllmEngineConfig), ("two_gpus.yaml", VllmServerConfig)])
def test_the_configs_of_the_page_load(tmp_path: Path, name, kind):
    (tmp_path / name).write_text(CONFIGS[name], encoding="utf-8")
    config = load_config(tmp_path / name).config
    assert isinstance(config.engine, kind) and config.engine.adapter == "lora"
    assert config.model.path in COMMAND and config.train.options.lora.rank in LORA_RANKS


def test_the_servers_command_has_all_that_the_engine_asks_for():
    for needed in re.findall(r"VLLM_\w+=1|--\S+ \S+", NEEDED):
        assert needed in COMMAND
    module, _, name = re.search(r"--worker-extension-cls (\S+)", COMMAND)[1].rpartition(".")
    source = (ROOT / "src" / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert f"class {name}:" in source
    rank = re.search(r"rank: (\d+)", CONFIGS["two_gpus.yaml"])[1]
    assert f"--max-lora-rank {rank}\n" in COMMAND
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in COMMAND and "--enable-lora" in COMMAND


def test_the_versions_of_the_page_are_those_that_are_checked():
    texts = [".".join(map(str, version)) for version in (OLDEST, NEWEST)]
    assert f"Versions {texts[0]} to {texts[1]} fit" in PAGE
