"""Imports only fall: the floors of the package, checked on the source itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memfactory

ROOT = Path(memfactory.__file__).parent
FLOORS = {
    "cli": 7,
    "__main__": 8,
    "train": 6,
    "evaluate": 6,
    "infer": 6,
    "view": 6,
    "trainers": 5,
    "build": 5,
    "measure": 5,
    "figures": 6,
    "run_folder": 5,
    "transcripts": 5,
    "rollout": 4,
    "agents": 4,
    "modules": 3,
    "envs": 3,
    "play": 3,
    "dialogue": 3,
    "config": 3,
    "data": 3,
    "engines": 2,
    "memory": 2,
    "trackers": 2,
    "environment": 2,
    "files": 1,
    "console": 1,
    "redaction": 1,
    "terminal": 1,
    "locks": 1,
    "signals": 1,
    "plugins": 1,
    "trust": 1,
    "answers": 1,
    "whole_folders": 1,
    "text": 1,
    "registry": 1,
    "boundary": 1,
    "errors": 1,
    "types": 0,
    "": 0,
}
MAY_IMPORT_TORCH = (
    "trainers/",
    "engines/hf",
    "engines/adapters.py",
    "engines/loading.py",
    "engines/chat.py",
    "engines/vllm",
    "memory/hf_embedder.py",
)
HEAVY = {"torch", "transformers", "peft", "accelerate", "vllm"}


def imported(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, and whether the import stands at the top and not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node in tree.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, node in tree.body))
    return found


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def sources() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "assets" not in path.parts)


def test_every_part_has_a_floor():
    parts = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in sources()} - {"__init__"}
    assert parts <= set(FLOORS)


def test_imports_only_fall():
    wrong = []
    for path in sources():
        part = path.relative_to(ROOT).parts[0].removesuffix(".py").replace("__init__", "")
        for module, _ in imported(path):
            if module.split(".")[0] == "memfactory" and FLOORS[part_of(module)] > FLOORS[part]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def registers(module: str) -> bool:
    """Whether the file of `module` (or of what holds it, for a package) makes a component known."""
    path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return not path.is_file() or ".register(" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [("modules", ("modules",)), ("agents", ("agents", "modules")), ("envs", ("modules", "agents"))],
)
def test_components_do_not_import_each_other(part, forbidden):
    """What components share stands in files of their package that register nothing, and may be imported."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] == part
        for module, _ in imported(path)
        if part_of(module) in forbidden and registers(module)
    ]
    assert wrong == []


def test_torch_is_imported_only_where_models_live():
    wrong = []
    for path in sources():
        name = str(path.relative_to(ROOT))
        for module, at_top in imported(path):
            if module.split(".")[0] in HEAVY and at_top and not name.startswith(MAY_IMPORT_TORCH):
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_there_is_no_import_cycle():
    edges = {}
    for path in sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(("memfactory", *parts)).removesuffix(".__init__")
        edges[name] = {module for module, at_top in imported(path) if module.startswith("memfactory") and at_top}
    done, open_now = set(), []

    def visit(name):
        if name in open_now:
            raise AssertionError(" -> ".join([*open_now[open_now.index(name) :], name]))
        if name in done or name not in edges:
            return
        open_now.append(name)
        for target in sorted(edges[name] - {name}):
            visit(target)
        done.add(open_now.pop())

    for name in sorted(edges):
        visit(name)


@pytest.mark.parametrize("words", [["--help"], ["list"], ["config", "schema"], ["train", "--help"]])
def test_the_light_commands_import_nothing_heavy(words):
    code = (
        "import sys\n"
        "from memfactory.cli import main\n"
        f"sys.argv = ['memfactory', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'swanlab', 'openai', 'vllm', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
