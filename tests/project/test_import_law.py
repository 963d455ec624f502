"""Imports only fall: the floors of the package, checked on the source itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memfactory

ROOT = Path(memfactory.__file__).parent
# From the top down. A room imports only rooms that stand below it, so rooms form no circle either.
ROOMS = (
    "__main__ cli api training view trainers inference figures run_folder plan evaluation build policy rollout "
    "demonstrations envs agents modules transcripts play roles dialogue data config episode formats memory engines "
    "model trackers components plugins files registry console terminal redaction errors environment text "
    "seeds signals types"
).split()
FLOORS = {room: floor for floor, room in enumerate(reversed(ROOMS), 1)}
MAY_IMPORT_TORCH = (
    "trainers/",
    "policy/",
    "plan/",
    "model/",
    "engines/hf/",
    "engines/vllm/",
    "memory/hf_embedder.py",
)
HEAVY = {"torch", "transformers", "peft", "accelerate", "vllm"}


def imported(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, lazily or not, and whether the import stands at the top of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in tree.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if file_of(name) else node.module, node in tree.body) for name in within]
    return found


def file_of(module: str) -> Path | None:
    """The source file of a module of this package; None where there is none, as for a name within a module."""
    path = ROOT.joinpath(*module.split(".")[1:])
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if module.startswith("memfactory.") and file.is_file()), None)


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def sources() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "assets" not in path.parts)


def test_every_part_has_a_floor():
    parts = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in sources()} - {"__init__"}
    assert parts == set(ROOMS)


def test_nothing_in_the_package_imports_the_door():
    """`import memfactory` stands above all rooms: it names what they offer, and none of them needs it."""
    wrong = [path for path in sources() for module, _ in imported(path) if module == "memfactory"]
    assert wrong == []


def test_imports_only_fall():
    wrong = []
    for path in sources():
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for module, _ in imported(path):
            target = part_of(module) if module.startswith("memfactory.") else part
            if target != part and FLOORS[target] >= FLOORS[part]:
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
        edges[name] = {module for module, _ in imported(path) if module.startswith("memfactory")}
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
