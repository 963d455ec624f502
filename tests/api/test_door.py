"""`import memfactory`: its names, what it imports, and the examples in its docstrings."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import memfactory

ROOT = Path(memfactory.__file__).parent


def names_for_type_checkers() -> set[str]:
    """The names that the `if TYPE_CHECKING` block of the package imports."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports for alias in node.names}


def test_every_name_of_the_door_can_be_imported():
    for name in memfactory.__all__:
        assert getattr(memfactory, name) is not None


def test_type_checkers_see_every_name():
    assert names_for_type_checkers() | {"__version__"} == set(memfactory.__all__) == set(dir(memfactory))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        memfactory.trian


def test_type_checkers_report_an_unknown_name():
    # A `__getattr__` in their sight would make every name valid.
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert "__getattr__" not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, time\n"
        "begin = time.process_time()\n"
        "import memfactory\n"
        "seconds = time.process_time() - begin\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy', 'omegaconf', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert seconds < 0.05, seconds\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_verbs_stay_functions_after_everything_is_imported():
    code = (
        "import memfactory.cli.app, memfactory.inference, memfactory.training, memfactory.evaluation.running\n"
        "print(all(callable(getattr(memfactory, verb)) for verb in ('train', 'evaluate', 'infer', 'load_agent')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr


def test_every_object_of_the_door_has_an_example():
    objects = {name: getattr(memfactory, name) for name in memfactory.__all__ if name != "__version__"}
    assert [name for name, one in objects.items() if ">>>" not in (one.__doc__ or "")] == []


DOORS = ("memfactory", *sorted(set(memfactory._MODULES.values())))


def test_one_name_needs_no_list():
    options = memfactory.EvalOptions(data="facts", metrics="em", baselines="no_memory")
    listed = memfactory.EvalOptions(data=["facts"], metrics=["em"], baselines=["no_memory"])
    assert options.replacing() == listed.replacing()
    assert listed.replacing().data == ("facts",)
    baseline = {"name": "no_memory"}
    assert memfactory.EvalOptions(baselines=baseline).replacing().baselines == (baseline,)


@pytest.mark.parametrize("module", DOORS)
def test_the_examples_in_docstrings_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0
