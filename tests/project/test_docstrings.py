"""Every public module, class, function and method says in a docstring what it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import memfactory

ROOT = Path(memfactory.__file__).parent
PUBLIC = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


OWN_BASES = {"ABC", "Protocol", "Generic", "Enum", "StrEnum", "Exception", "BaseModel"}
"""Bases from elsewhere that declare no method which a class of ours could override."""


def base_names(node: ast.ClassDef) -> list[str]:
    """The names of the bases of a class, without their type arguments."""
    bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return [base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in bases]


def methods_of(node: ast.ClassDef) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public methods and properties of a class; a setter belongs to its property."""
    functions = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {one.name: one for one in reversed(functions) if not one.name.startswith("_")}


class Package:
    """The classes of the package by name, and the methods that its protocols document."""

    def __init__(self) -> None:
        self.trees = {
            path: ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted(ROOT.rglob("*.py"))
            if "assets" not in path.parts
        }
        nodes = [node for tree in self.trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self.classes = {node.name: node for node in nodes}
        protocols = [node for node in nodes if "Protocol" in base_names(node)]
        self.of_protocols = {
            name for node in protocols for name, method in methods_of(node).items() if ast.get_docstring(method)
        }

    def is_documented(self, name: str, owner: ast.ClassDef) -> bool:
        """Whether the method has a docstring, there or where it is declared: in a base or in a protocol."""
        method = methods_of(owner).get(name)
        if method is not None and ast.get_docstring(method):
            return True
        bases = base_names(owner)
        if method is not None and "Protocol" not in bases and name in self.of_protocols:
            return True
        ours = [self.classes[base] for base in bases if base in self.classes and self.classes[base] is not owner]
        elsewhere = any(base not in self.classes and base not in OWN_BASES for base in bases)
        return elsewhere or any(self.is_documented(name, base) for base in ours)

    def undocumented(self, tree: ast.Module) -> Iterator[str]:
        """The public names of a file that have no docstring."""
        if not ast.get_docstring(tree):
            yield "the module"
        for node in tree.body:
            if not isinstance(node, PUBLIC) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield node.name
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{name}" for name in methods_of(node) if not self.is_documented(name, node))


def test_every_public_name_has_a_docstring():
    package = Package()
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in package.trees.items()
        for name in package.undocumented(tree)
    ]
    assert missing == []
