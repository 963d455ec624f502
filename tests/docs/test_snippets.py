"""Every fenced block of README and docs: YAML validates, Python runs, commands parse; others are marked and counted."""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from memfactory.cli.app import app
from memfactory.config import load_config
from snippets import PAGES, ROOT, Block, blocks_of, words, write_files

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [block for block in BLOCKS if block.reason is None]
NOT_RUN = 14
"""Blocks that no test runs: they install packages, need a GPU, several processes, half an hour, or files of a page."""
LANGUAGES = {"sh", "yaml", "python", "json", "text", "mermaid"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
SESSIONS = sorted({block.page for block in RUN if block.language == "python" and block.text.startswith(">>>")})
COMMANDS = [(block, line) for block in RUN if block.language == "sh" for line in block.commands]
SYNTAX = re.compile(r"^(for \w+ in [\d ]+; do|done|[A-Z]+=.*)$")


def named(kind: str) -> list[Block]:
    return [block for block in RUN if block.language == kind]


def completed(text: str) -> str:
    """A fragment of a config with the sections that it leaves out."""
    values = yaml.safe_load(re.sub(r"\$\{[^}]*\}", "x", text)) or {}
    banks = isinstance(values.get("env"), dict) and values["env"]["name"] != "longcontext"
    sections = {"model": "tiny", "agent": "memory_r1" if banks else "memory_agent", "env": "longcontext"}
    return text + "".join(f"{name}: {value}\n" for name, value in sections.items() if name not in values)


def click_command(names: list[str]) -> tuple[object, list[str]]:
    """The command that `names` begins with, and the words behind it."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert names and names[0] in command.commands, f"no command {names[:1]}"
        command, names = command.commands[names[0]], names[1:]
    return command, names


def unknown_options(line: list[str]) -> list[str]:
    """The options of a `memfactory` command line that its command does not have."""
    command, rest = click_command(line[1:])
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    return [word for word in rest if word.startswith("--") and "=" not in word and word not in known]


def test_every_block_has_a_language() -> None:
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []


def test_blocks_that_no_test_runs_are_counted() -> None:
    left_out = [block for block in BLOCKS if block.reason is not None]
    assert all(block.reason for block in left_out)
    assert len(left_out) == NOT_RUN, [str(block) for block in left_out]


@pytest.mark.usefixtures("own_components")
@pytest.mark.parametrize("block", named("yaml"), ids=str)
def test_a_yaml_block_is_a_valid_config(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "a-key-of-no-endpoint")
    write_files(block.page, tmp_path)
    if block.title is None:
        (tmp_path / "fragment.yaml").write_text(completed(block.text), encoding="utf-8")
        assert load_config("fragment.yaml").config.model
    elif "/agents/" not in block.title:
        assert load_config(block.title).config.model


@pytest.mark.parametrize("block", named("json"), ids=str)
def test_a_json_block_is_json_lines(block: Block) -> None:
    assert all(json.loads(line) for line in block.text.splitlines())


@pytest.mark.parametrize("block", [block for block in named("python") if block.title], ids=str)
def test_a_titled_python_block_compiles(block: Block) -> None:
    assert compile(block.text, str(block), "exec")


def with_output() -> Iterator[tuple[Block, str | None]]:
    """Python blocks that stand alone, each with the block of text right behind it: the output."""
    for block, following in zip(BLOCKS, [*BLOCKS[1:], None], strict=True):
        alone = block.language == "python" and block.title is None and not block.text.startswith(">>>")
        if alone and block.reason is None:
            output = following if following and following.page == block.page and following.language == "text" else None
            yield block, None if output is None else output.text


@pytest.mark.parametrize(("block", "output"), list(with_output()), ids=lambda value: str(value)[:40])
def test_a_python_block_prints_its_output(
    block: Block, output: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
    if output is not None:
        assert printed.getvalue().split() == output.split()


@pytest.mark.slow
@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.stem)
def test_a_page_of_python_sessions_gives_its_output(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed, examples = doctest.testfile(str(page), module_relative=False)
    assert failed == 0 and examples > 20


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=[f"{block}-{n}" for n, (block, _) in enumerate(COMMANDS)])
def test_a_command_of_the_docs_parses(block: Block, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if SYNTAX.match(line):
        return
    line_words = words(line)
    if line_words[0] == "make":
        assert {word for word in line_words[1:] if "=" not in word} <= TARGETS
    elif line_words[0] == "python":
        script = line_words[2] if line_words[1] == "-m" else line_words[1]
        path = ROOT / (script.replace(".", "/") + ".py" if line_words[1] == "-m" else script)
        sources = [path, *(ROOT / "benchmarks").glob("*.py")] if line_words[1] == "-m" else [path]
        source = "".join(source.read_text(encoding="utf-8") for source in sources)
        options = {word for word in line_words if word.startswith("--")}
        assert [word for word in options if f'"{word}"' not in source and f'"{word[2:]}"' not in source] == []
    else:
        assert line_words[0] == "memfactory", line
        assert unknown_options(line_words) == []
        configs = [word for word in line_words if re.fullmatch(r"configs/\S+\.yaml", word)]
        monkeypatch.chdir(tmp_path)
        write_files(block.page, tmp_path)
        overrides = [word for word in line_words[2:] if re.match(r"[a-z][\w.]*=", word)]
        if line_words[1] in ("train", "eval", "infer"):
            place = next((path for path in configs if (tmp_path / path).exists()), None)
            known = place or str(ROOT / (configs[0] if configs else "configs/quickstart.yaml"))
            assert load_config(known, overrides).config.model


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`(memfactory [^`]+)`", prose)]
    for span in spans:
        line = [word.strip("[]") for word in span.split()]
        if line[1] not in ("--help", "--debug", "..."):
            assert unknown_options(line) == [], span
