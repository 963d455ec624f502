"""Keys, files and other trainers' options that the pages name exist."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from config_keys import config_keys
from memfactory.config.grpo import GrpoOptions
from memfactory.config.renames import KEYS as FORMER
from snippets import PAGES, ROOT

KEY = re.compile(r"`((?:train|engine|model|eval|memory|data)\.[a-z_]+(?:\.[a-z_]+)*)(?:[:=][^`]*)?`")
FILE = re.compile(r"`((?:\w+/)+\w+\.(?:py|yaml|sh))`")
SETS = ("data.eval.",)
"""Keys below these have names that a config chooses."""
COMING_FROM = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text of a section of the page, up to the next title of any level."""
    return re.split(r"^#+ ", COMING_FROM.partition(f"# {title}\n")[2], flags=re.MULTILINE)[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def fields(*modules: str) -> set[str]:
    """Annotated names and parameters in the classes of installed modules, which are not imported."""
    names: set[str] = set()
    for module in modules:
        package, _, path = module.partition(".")
        root = importlib.util.find_spec(package).submodule_search_locations[0]
        tree = ast.parse(Path(root, path.replace(".", "/") + ".py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_key_that_a_page_names_exists(page: Path) -> None:
    if page.name == "coming_from.md":
        return  # its first columns are checked below; other columns have other trainers' keys
    keys = {key for key in KEY.findall(page.read_text(encoding="utf-8")) if not key.startswith(SETS)}
    former = FORMER if page.name == "configuration.md" else {}
    assert sorted(keys - config_keys() - {"eval.json"} - {*former}) == []


def test_former_names_on_the_page_have_the_present_name_beside_them() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").partition("| former name |")[2]
    lines = [line.strip("|").split("|") for line in text.partition("\n\n")[0].splitlines()[2:]]
    pairs = [pair for former, present in lines for pair in zip(codes(former), codes(present), strict=True)]
    named = {former: present.rpartition(".")[2] for former, present in pairs if ":" not in former}
    assert len(named) == 10 and named == {former: FORMER[former] for former in named}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    bases = (ROOT, ROOT / "src", ROOT / "src" / "memfactory")
    named = set(FILE.findall(page.read_text(encoding="utf-8"))) - {"recurrent/impls/memory.py"}
    made = {"agents/short_chunks.yaml", "configs/agents/short_chunks.yaml", "configs/my_run.yaml"}
    assert sorted(name for name in named - made if not any((base / name).is_file() for base in bases)) == []


@pytest.mark.parametrize("title", ["GRPO", "Supervised fine-tuning"])
def test_every_key_beside_another_trainers_exists(title: str) -> None:
    named = [key.partition(":")[0] for first, *_ in rows(title) for key in codes(first)]
    assert len(named) > 15
    assert sorted({*named} - config_keys()) == []


def test_every_value_beside_another_trainers_is_valid() -> None:
    checked = 0
    for first, *_ in rows("Values"):
        spans = codes(first)
        key = spans[0].partition(": ")[0]
        for value in [spans[0].partition(": ")[2], *spans[1:]]:
            bound = {"clip_low": 0.2, "clip_high": 5.0} if value == "cispo" else {}
            length = {"constant_length": 8} if value == "constant" else {}
            if key in ("objective", "weighting", "kl_estimator"):
                assert GrpoOptions(loss={key: value, **bound, **length})
            elif key in ("normalize", "advantage"):
                assert GrpoOptions(**{key: value})
            else:
                continue
            checked += 1
    assert checked >= 14


@pytest.mark.parametrize(
    ("title", "column", "modules"),
    [
        ("GRPO", 1, ("trl.trainer.grpo_config", "trl.trainer.grpo_trainer", "transformers.training_args")),
        (
            "Supervised fine-tuning",
            2,
            ("trl.trainer.sft_config", "trl.trainer.sft_trainer", "transformers.training_args"),
        ),
    ],
)
def test_every_name_of_trl_exists(title: str, column: int, modules: tuple[str, ...]) -> None:
    pytest.importorskip("trl")
    named = {name.partition(":")[0] for row in rows(title) for name in codes(row[column])}
    classes = {"SFTTrainer", "LoraConfig"}
    assert sorted(named - classes - fields(*modules, "trl.trainer.base_config")) == []
