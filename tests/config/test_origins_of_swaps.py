"""Where an error says that a module or a kind was named: on the command line, where it was swapped there."""

import pytest

from memfactory.cli.app import run

CONFIG = """\
model: tiny
agent:
  base: memory_r1
  modules:
    retriever: {k: 3}
env: {name: memory_bank, rewards: {em: 1.0}}
engine: {kind: hf}
"""


@pytest.mark.parametrize(
    "swap",
    [
        "agent.modules.updater=naive_retriever",
        "agent.modules.updater.name=naive_retriever",
        "agent.modules.retriever=nope",
        "agent.modules.retriever.name=nope",
        "agent.modules.retriever={name: nope}",
        "engine=nope",
        "memory.embedder=nope",
    ],
)
def test_an_error_names_the_swap_of_the_command_line(tmp_path, capsys, swap):
    config = tmp_path / "u.yaml"
    config.write_text(CONFIG)
    assert run(["config", "validate", str(config), swap]) == 2
    told = capsys.readouterr().err
    place = swap.partition("=")[0].removesuffix(".name")
    assert f"command line: {place}" in told, told
    assert ".yaml" not in told, told


def test_a_swapped_part_is_not_blamed_on_its_file(tmp_path, capsys):
    config = tmp_path / "u.yaml"
    config.write_text("model: tiny\nagent: memory_agent\nenv: longcontext\n")
    words = ["agent=memory_r1", "env=memory_bank", "env.rewards={em: 1.0}", "agent.modules.updater=naive_retriever"]
    assert run(["config", "validate", str(config), *words]) == 2
    told = capsys.readouterr().err
    assert "command line: agent.modules.updater=naive_retriever: " in told, told
    assert ".yaml" not in told, told


def test_an_option_keeps_its_place_where_its_module_stays(tmp_path, capsys):
    config = tmp_path / "u.yaml"
    config.write_text(CONFIG.replace("k: 3", "k: none"))
    assert run(["config", "validate", str(config), "agent.modules.retriever=naive_retriever"]) == 2
    assert "u.yaml:5: agent.modules.retriever.k" in capsys.readouterr().err
