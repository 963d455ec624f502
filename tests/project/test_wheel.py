"""The wheel: what it holds, and that it runs outside the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built by the declared backend, without isolation and without network."""
    pytest.importorskip("hatchling.build")
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_package_and_every_config(wheel):
    package, configs = ROOT / "src", ROOT / "configs"
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    shipped = {f"memfactory/configs/{path.relative_to(configs)}" for path in configs.rglob("*.yaml")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("memfactory-")}
    assert names == files | shipped
    assert {"memfactory/py.typed", "memfactory/assets/tiny/model.safetensors"} <= names


def test_the_wheel_runs_outside_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import memfactory, sys; from memfactory.cli import main; print(memfactory.__file__); main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    words = [sys.executable, "-c", code, "config", "validate", "quickstart", "quickstart_rmm"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        str(tmp_path / "site" / "memfactory" / "__init__.py"),
        "quickstart: valid",
        "quickstart_rmm: valid",
    ], done.stderr
