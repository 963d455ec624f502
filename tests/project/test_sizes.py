"""Files, functions and signatures stay small enough to be read at once, and no assert stands in for a check."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for room in ("src", "benchmarks", "scripts") for path in (ROOT / room).rglob("*.py"))
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 80, 6
# Each option of a command is a parameter of its typer function.
COMMANDS = {
    "src/memfactory/cli/runs.py": {"train", "evaluate", "infer"},
    "src/memfactory/cli/datasets.py": {"hotpotqa", "locomo", "squad", "traces"},
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def functions(path: Path) -> Iterator[tuple[Function, int]]:
    """Every function of a file, with the number of its parameters without self and cls."""
    methods = {id(child) for node in nodes(path) if isinstance(node, ast.ClassDef) for child in node.body}
    for node in nodes(path):
        if isinstance(node, Function):
            arguments = node.args
            names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            own = id(node) in methods and bool(names) and names[0] in ("self", "cls")
            yield node, len(names) - own


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_longer_than_400_lines():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


def test_no_function_is_longer_than_80_lines():
    lengths = {
        f"{name_of(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node, _ in functions(path)
    }
    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES} == {}


def test_no_function_has_more_than_six_parameters():
    counts = {
        f"{name_of(path)}:{node.lineno} {node.name}": count
        for path in FILES
        for node, count in functions(path)
        if node.name not in COMMANDS.get(name_of(path), ())
    }
    assert {name: count for name, count in counts.items() if count > PARAMETERS} == {}


@pytest.mark.parametrize("file", COMMANDS)
def test_every_exempt_command_still_needs_its_exemption(file):
    counts = {node.name: count for node, count in functions(ROOT / file)}
    assert {name for name in COMMANDS[file] if counts.get(name, 0) > PARAMETERS} == COMMANDS[file]


def test_no_assert_only_narrows_a_type():
    narrowing = [
        f"{name_of(path)}:{node.lineno} {ast.unparse(node)}"
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.Assert) and ("isinstance(" in (test := ast.unparse(node.test)) or "is not None" in test)
    ]
    assert narrowing == []
