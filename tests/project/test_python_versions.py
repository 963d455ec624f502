"""The oldest Python that pyproject.toml promises: its grammar, and classes that it cannot subscript."""

import ast
import re
from pathlib import Path

import memfactory

SOURCE = Path(memfactory.__file__).parent
# Generic in type stubs, but at run time only from Python 3.11 on.
GENERIC_FROM_3_11 = {"StreamHandler", "LoggerAdapter"}
PROMISED = re.search(r'requires-python = ">=3\.(\d+)"', (SOURCE.parents[1] / "pyproject.toml").read_text())


def run_time_subscripts(tree: ast.Module) -> set[str]:
    """The attributes that are subscripted while the module is imported, outside `if TYPE_CHECKING`."""
    names: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
            names.add(node.value.attr)
        annotation = node.annotation if isinstance(node, ast.AnnAssign | ast.arg) else None
        todo += [child for child in ast.iter_child_nodes(node) if child is not annotation]
    return names


def test_every_file_is_in_the_grammar_of_the_oldest_python():
    for path in SOURCE.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, int(PROMISED[1])))


def test_no_class_is_subscripted_that_python_3_10_cannot():
    wrong = {
        str(path.relative_to(SOURCE)): names
        for path in SOURCE.rglob("*.py")
        if (names := run_time_subscripts(ast.parse(path.read_text(encoding="utf-8"))) & GENERIC_FROM_3_11)
    }
    assert wrong == {}
