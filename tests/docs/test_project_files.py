"""The files around the code agree with it: CI, issue forms, citation, pre-commit, the site."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


class Loader(yaml.SafeLoader):
    """YAML whose tags of Python names are read as plain text."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def read(path: str | Path) -> Any:
    return yaml.load((ROOT / path).read_text(encoding="utf-8"), Loader)


def strings(value: Any) -> list[str]:
    """Every text in nested YAML."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


def pages(nav: Any) -> list[str]:
    return [text for text in strings(nav) if text.endswith(".md")]


def test_the_workflow_runs_make_targets_that_exist() -> None:
    runs = [text for text in strings(read(".github/workflows/ci.yml")) if text.startswith("make ")]
    named = {word for run in runs for word in run.split()[1:]}
    assert {"test", "docs"} <= named <= TARGETS


def test_the_workflow_tests_the_supported_pythons() -> None:
    versions = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert re.search(r'requires-python = ">=(.*)"', PYPROJECT)[1] == versions[0]


def test_contributing_names_make_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= TARGETS


@pytest.mark.parametrize("path", [path for path in FORMS if path.stem != "config"], ids=lambda path: path.stem)
def test_an_issue_form_has_labelled_fields(path: Path) -> None:
    form = read(path)
    assert form["name"] and form["description"] and form["body"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len({*ids})
    assert all(field["attributes"]["label"] for field in form["body"])


def test_pre_commit_runs_the_linters() -> None:
    hooks = {hook["id"] for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert {"ruff", "ruff-format"} <= hooks


def test_the_citation_names_the_paper_and_this_version() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == re.search(r'^version = "(.*)"', PYPROJECT, re.MULTILINE)[1]
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2603.29493"


def test_the_docs_extra_is_what_make_docs_installs() -> None:
    lines = (ROOT / "requirements" / "docs.txt").read_text(encoding="utf-8").splitlines()
    needed = [line for line in lines if line and not line.startswith("#")]
    assert f"docs = {str(needed).replace(chr(39), chr(34))}" in PYPROJECT


def test_the_site_has_every_page_once() -> None:
    named = pages(read("mkdocs.yml")["nav"])
    assert sorted(named) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "index.html").is_file()
