"""Former names of config keys: they count in every layer, with a warning, and never beside the present name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfactory.cli.app import run
from memfactory.config import load_config, load_values
from memfactory.config.agent_file import read_agent_file
from memfactory.config.overrides import parse_overrides, with_present_names
from memfactory.config.renames import KEYS, VALUES, present_path, restore_own_names, use_present_names
from memfactory.config.tree import Tree, read_text
from memfactory.errors import ConfigError

CONFIG = """\
model: tiny
agent: {name: memory_agent, order: section_first}
env: longcontext
train:
  name: grpo
  generations: 4
  loss:
    kl_weight: 0.1
data:
  train: {name: facts, sections: 2}
"""
PRESENT = CONFIG.replace("generations", "group_size").replace("kl_weight", "kl_coef").replace("sections", "chunks")
PRESENT = PRESENT.replace("section_first", "chunk_first")


def written(tmp_path: Path, text: str, name: str = "run.yaml") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_former_names_resolve_as_present_ones_do(tmp_path):
    former = load_config(written(tmp_path, CONFIG, "former.yaml"))
    present = load_config(written(tmp_path, PRESENT, "present.yaml"))
    assert former.values == present.values and present.warnings == ()


def test_each_former_name_warns_once_with_its_line(tmp_path):
    path = written(tmp_path, CONFIG)
    end = "; the old name will go with the next release"
    assert load_config(path).warnings == (
        f"{path}:2: agent.order: section_first is now called agent.order: chunk_first{end}",
        f"{path}:6: train.generations is now called train.group_size{end}",
        f"{path}:8: train.loss.kl_weight is now called train.loss.kl_coef{end}",
        f"{path}:10: data.train.sections is now called data.train.chunks{end}",
    )


@pytest.mark.parametrize(("below", "above"), [("generations", "group_size"), ("group_size", "generations")])
def test_the_upper_layer_wins_by_either_name(tmp_path, below, above):
    written(tmp_path, CONFIG.replace("generations", below), "below.yaml")
    path = written(tmp_path, f"base: below.yaml\ntrain: {{{above}: 6}}\n")
    assert load_config(path).values["train"]["group_size"] == 6
    assert load_config(path, [f"train.{below}=7"]).values["train"]["group_size"] == 7


def test_a_part_may_use_former_names(tmp_path):
    written(tmp_path, "base: grpo_single_gpu\ngenerations: 3\n", "train/mine.yaml")
    path = written(tmp_path, "agent: memory_agent\nenv: longcontext\ntrain: mine\n")
    resolved = load_config(path)
    assert resolved.values["train"]["group_size"] == 3
    assert [w.partition(":2: ")[2].split(";")[0] for w in resolved.warnings] == [
        "train.generations is now called train.group_size"
    ]


def test_a_whole_section_on_the_command_line_may_use_them(tmp_path):
    resolved = load_config(written(tmp_path, PRESENT), ["train={name: grpo, generations: 5}"])
    assert resolved.values["train"]["group_size"] == 5


def test_both_names_in_one_file_are_an_error(tmp_path):
    path = written(tmp_path, CONFIG.replace("  generations: 4", "  generations: 4\n  group_size: 8"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.problems == (
        f"{path}:6: train.generations is the former name of train.group_size, which is given too ({path}:7); leave "
        "generations out",
    )


@pytest.mark.parametrize("other", ["train.group_size=8", "train={name: grpo, group_size: 8}"])
def test_both_names_on_the_command_line_are_an_error(tmp_path, other):
    with pytest.raises(ConfigError, match=r"generations is the former name of train\.group_size"):
        load_config(written(tmp_path, PRESENT), ["train.generations=4", other])


def test_the_last_of_two_overrides_by_a_former_name_wins(tmp_path):
    resolved = load_config(written(tmp_path, PRESENT), ["train.generations=4", "train.generations=5"])
    assert resolved.values["train"]["group_size"] == 5


def test_a_wrong_value_is_reported_at_the_former_key(tmp_path):
    path = written(tmp_path, CONFIG.replace("generations: 4", "generations: 0"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.problems == (f"{path}:6: train.group_size: expected at least 1; given 0",)


def test_suggestions_know_the_present_names_only(tmp_path):
    path = written(tmp_path, PRESENT.replace("group_size", "generation"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "generations" not in str(caught.value) and "group_size" in str(caught.value)


def test_a_written_run_config_is_read_by_its_former_names(tmp_path):
    run = load_config(written(tmp_path, PRESENT))
    text = run.to_yaml().replace("group_size:", "generations:").replace("max_unknown_fraction:", "max_unknown_share:")
    path = written(tmp_path, text, "run/config.yaml")
    written(tmp_path, "", "run/metrics.jsonl")
    again = load_config(path.parent, command=None)
    assert again.values == run.values and load_values(path) == run.values
    names = "group_size for generations, max_unknown_fraction for max_unknown_share"
    assert again.warnings == (f"{path} has former names, which will go with the next release: {names}",)


def test_a_reference_to_a_former_name_is_followed(tmp_path):
    path = written(tmp_path, CONFIG + "seed: ${train.generations}\neval:\n  samples: ${..train.loss.kl_weight}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    # The reference was followed: it is the value, 0.1, that is no whole number.
    assert caught.value.problems == (f"{path}:13: eval.samples: expected a whole number; given 0.1",)
    assert load_config(written(tmp_path, CONFIG + "seed: ${train.generations}\n")).values["seed"] == 4


def test_a_plugin_keeps_an_option_of_a_former_name(tmp_path):
    plugin = """\
from memfactory.data.base import Dataset, DatasetOptions
from memfactory.registry import DATASETS

class PagesOptions(DatasetOptions):
    sections: int = 1
    \"\"\"Sections of a page.\"\"\"

@DATASETS.register("pages_by_section")
class Pages(Dataset):
    \"\"\"Pages.\"\"\"
    Options = PagesOptions
    source = "pages"
    def rows(self):
        return []
"""
    written(tmp_path, plugin, "pages.py")
    text = PRESENT.replace("name: facts, chunks: 2", "name: pages_by_section, sections: 2") + "plugins: [pages.py]\n"
    resolved = load_config(written(tmp_path, text))
    assert resolved.values["data"]["train"]["sections"] == 2
    assert resolved.warnings == ()


def nested(path: tuple[str, ...], value: object) -> object:
    for part in reversed(path):
        value = {part: value}
    return value


@given(st.sampled_from(sorted(KEYS)), st.one_of(st.integers(), st.text(max_size=5), st.none()))
def test_each_key_of_the_table_moves_with_its_origin(pattern, value):
    path = tuple(pattern.replace("*", "any").split("."))
    tree = Tree(nested(path, value))
    present = present_path(path)
    assert use_present_names(tree).values == nested(present, value)
    assert present[:-1] == path[:-1] and present[-1] == KEYS[pattern]
    assert [one.path for one in tree.renamed] == [present]


@given(st.data())
def test_any_choice_of_names_gives_the_same_values(data):
    keys = {"group_size": "generations", "max_unknown_fraction": "max_unknown_share"}
    losses = {"kl_coef": "kl_weight", "entropy_coef": "entropy_weight", "reference_sync_steps": "reference_every"}
    numbers = data.draw(st.fixed_dictionaries({key: st.integers(1, 9) for key in {**keys, **losses}}))
    former = data.draw(st.fixed_dictionaries({key: st.booleans() for key in numbers}))

    def layer(names: dict[str, str], *, present: bool) -> dict[str, int]:
        return {new if present or not former[new] else old: numbers[new] for new, old in names.items()}

    def tree(*, present: bool) -> Tree:
        inner = {**layer(keys, present=present), "loss": layer(losses, present=present)}
        return use_present_names(Tree({"train": inner}))

    mixed = tree(present=False)
    assert mixed.values == tree(present=True).values
    assert len(mixed.renamed) == sum(former.values())


def test_present_names_are_no_former_names():
    paths = {(*pattern.split(".")[:-1], new) for pattern, new in KEYS.items()}
    assert all(present_path(path) == path for path in paths)
    assert not {new for new in VALUES.values()} & {old for _, old in VALUES}


def test_options_of_a_dataset_are_renamed_at_their_root():
    (override,), renamed = with_present_names(parse_overrides(["sections=4"]), ("data", "train"))
    assert override.path == ("chunks",) and override.value == 4
    assert [one.former for one in renamed] == ["sections"]


def test_a_title_of_an_evaluation_set_is_no_key():
    tree = use_present_names(read_text("data: {eval: {sections: {name: facts, sections: 2}}}", "run.yaml"))
    restore_own_names(tree)
    assert tree.values == {"data": {"eval": {"sections": {"name": "facts", "chunks": 2}}}}


def test_a_models_memfactory_yaml_may_use_former_names(tmp_path):
    written(
        tmp_path,
        "agent: {name: memory_agent, modules: {memory: {name: recurrent_memory, order: section_first}}}\n"
        "eval:\n  max_unknown_share: 0.3\nmodel: {}\nplugins: []\n",
        "memfactory.yaml",
    )
    agent_file = read_agent_file(tmp_path)
    assert agent_file.sections["eval"] == {"max_unknown_fraction": 0.3}
    assert agent_file.sections["agent"]["modules"]["memory"]["order"] == "chunk_first"
    # Only sections that a config takes warn.
    assert [one.old for one in agent_file.tree(("eval",)).renamed] == ["eval.max_unknown_share"]
    assert len(agent_file.tree().renamed) == 2


def test_exported_rows_take_former_names_with_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["data", "export", "facts", "rows=2", "sections=1", "--output", "former.json"]) == 0
    assert "data.train.sections is now called data.train.chunks" in capsys.readouterr().err
    assert run(["data", "export", "facts", "rows=2", "chunks=1", "--output", "present.json"]) == 0
    assert Path("former.json").read_text() == Path("present.json").read_text()
