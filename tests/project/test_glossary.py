"""One name, one meaning: words and patterns that do not come back, in the names and sentences of code and pages.

`python tests/project/test_glossary.py ROOM` prints each place in a room: a path such as src/memfactory/config, a page
such as docs/training.md, or only config.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Parts of a name: participles say how a value came about, not what it holds; the others are no words of the field.
NAMES = frozenset(
    "told said kept given found asked wanted heard spoken drawn fed gone lost handed speak speaks insist insisted "
    "patience renew renewed member members attempt attempts helper helpers piece pieces".split()
)
INSTEAD = {
    "attempt": "episode or trajectory",
    "helper": "engine, judge or frozen module",
    "patience": "retry policy",
    "insist": "retry",
    "member": "index or trajectory",
    "piece": "chunk or segment",
}
SENTENCES = {
    r"\bwhat\b": "name the thing instead of a noun clause with 'what'",
    r"\bwhere there (is|are|was|were)\b": "write 'if' or name the thing",
    r"\b(whoever|whatever)\b": "name who or which",
    r"\bhow often\b": "write the number, the rate or the fraction",
    r"\bhelpers?\b": "engine, judge or frozen module",
    r"\battempts?\b": "episode, trajectory or try",
    r"\b(insists?|insisted|patience)\b": "retry, retry policy",
    r"\bcommon beginnings?\b": "shared prefixes",
    r"\b(shares? of|in shares)\b": "fraction of",
    r"\b(is|are|was|were|be) (told|said|spoken)\b": "say who does it, with the field's verb",
    r"\b(engine|model|endpoint|policy|judge)s? speaks?\b": "generates",
    r"\bwho speaks\b": "which engine generates",
    r"\bhow (it|they|its replies|replies) (is|are) drawn\b": "sampling parameters",
    r"\bhand(s|ed|ing)? over\b": "sync weights, pass",
    r"\brenew(s|ed|ing)?\b": "sync, refresh",
    r"\bso many\b": "give the number a name",
    r"(?<![\w.)\]}/*-])\.\d+\b": "a number has a leading zero",
}
# Texts that models see and texts of generated data: they are behaviour. A file, or a file and a name assigned in it.
EXEMPT: frozenset[tuple[str, str]] = frozenset(
    {
        ("src/memfactory/data/synthetic/conversations.py", "kept"),  # the name of a category in generated rows
        ("src/memfactory/envs/rewards/longmemeval_judge.py", "ANSWERED"),
        ("src/memfactory/envs/rewards/longmemeval_judge.py", "RULES"),
        ("src/memfactory/envs/rewards/mem0.py", "JUDGE_PROMPT"),
        ("src/memfactory/memory/words.py", "_COMMON"),  # a list of stop words
        ("src/memfactory/modules/full_context_answer.py", "FULL_CONTEXT_PROMPT"),
        ("src/memfactory/modules/naive_extractor.py", "EXTRACT_PROMPT"),
        ("src/memfactory/formats/recurrent_prompts.py", "MEMAGENT_ANSWER_PROMPT"),
        ("src/memfactory/formats/recurrent_prompts.py", "MEMAGENT_UPDATE_PROMPT"),
        ("src/memfactory/formats/recurrent_prompts.py", "CHUNK_FIRST_PROMPT"),
        ("src/memfactory/formats/recurrent_prompts.py", "UPDATE_PROMPT"),
        ("src/memfactory/modules/topic_extractor.py", "SHORT_PROMPT"),
        ("src/memfactory/modules/topic_extractor.py", "TOPIC_PROMPT"),
    }
)
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "configs", "benchmarks", "scripts")


class Place(NamedTuple):
    """A word that stands in `file` at `line` and should be another."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def words_of(name: str) -> list[str]:
    """`SomeNamed_thing` as some, named, thing."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())


def named(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that the code defines or assigns, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def wrong_names(code: str, file: str = "") -> Iterator[tuple[int, str]]:
    for line, name in named(ast.parse(code)):
        if (file, name) in EXEMPT:
            continue
        for word in sorted({*words_of(name)} & NAMES):
            instead = INSTEAD.get(word.removesuffix("s"), "say what the value holds")
            yield line, f"the name {name}: {word} ({instead})"


def wrong_sentences(text: str) -> Iterator[str]:
    """The patterns in plain text, each with its sentence. Code and quotations in it are left out, and questions may ask
    what they like."""
    plain = re.sub(r"\s+", " ", re.sub(r"``.*?``|`[^`]*`|\"[^\"]{0,200}\"|“[^”]*”", "``", text, flags=re.DOTALL))
    for sentence in re.split(r"(?<=[.?!])[)*_]*\s+", plain):
        if sentence.rstrip(" *_)").endswith("?"):
            continue
        for pattern, instead in SENTENCES.items():
            if match := re.search(pattern, sentence, re.IGNORECASE):
                near = sentence[max(0, match.start() - 30) : match.end() + 40]
                yield f"...{near}...: {match[0]!r} ({instead})"


def comments(code: str) -> Iterator[tuple[int, str]]:
    """The comments of Python code, those on lines that follow each other as one text."""
    block: list[str] = []
    begin = last = 0
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield begin, " ".join(block)
                block = []
            begin = begin if block else token.start[0]
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    if block:
        yield begin, " ".join(block)


def texts(code: str, file: str) -> Iterator[tuple[int, str]]:
    """Docstrings, descriptions of options and messages: every string of at least three words."""
    pending: list[ast.AST] = [ast.parse(code)]
    while pending:
        node = pending.pop()
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and (file, target.id) in EXEMPT for target in targets):
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if len(node.value.split()) > 2:
                yield node.lineno, node.value
        else:
            pending += ast.iter_child_nodes(node)


def paragraphs(page: str) -> Iterator[tuple[int, str]]:
    """The paragraphs, items and rows of a Markdown page outside code, with the lines they begin on."""
    fenced = False
    block: list[str] = []
    begin = 1
    for line, text in enumerate([*page.splitlines(), ""], 1):
        fence = text.lstrip().startswith(("```", "~~~"))
        fenced = fenced != fence
        if fence or fenced or not text.strip() or re.match(r"\s*([-*|#]|\d+\.)", text):
            if block:
                yield begin, re.sub(r"\]\([^)]*\)|<[^>]+>", "]", " ".join(block))
            block, begin = [], line
        if not (fence or fenced) and text.strip():
            begin = begin if block else line
            block.append(text.strip())


def yaml_comments(text: str) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    for line, row in enumerate([*text.splitlines(), ""], 1):
        whole = row.lstrip().startswith("#")
        if whole:
            block.append(row.lstrip("# "))
            continue
        if block:
            yield line - len(block), " ".join(block)
            block = []
        if " # " in row:
            yield line, row.split(" # ", 1)[1]


def places(file: Path) -> list[Place]:
    """Everything in a file that the glossary does not have."""
    shown = file.relative_to(ROOT).as_posix()
    text = file.read_text(encoding="utf-8")
    if (shown, "") in EXEMPT:
        return []
    wrong: list[tuple[int, str]] = []
    if file.suffix == ".py":
        wrong += wrong_names(text, shown)
        sentences = [*texts(text, shown), *comments(text)]
    else:
        sentences = list(paragraphs(text) if file.suffix == ".md" else yaml_comments(text))
    wrong += [(line, problem) for line, sentence in sentences for problem in wrong_sentences(sentence)]
    return [Place(shown, line, problem) for line, problem in sorted(wrong)]


def files_of(room: str) -> list[Path]:
    path = ROOT / room
    if path.is_file():
        return [path]
    return sorted(file for suffix in ("py", "md", "yaml") for file in path.rglob(f"*.{suffix}"))


def rooms() -> list[str]:
    """The folders and files of the package, and the pages."""
    package = [f"src/memfactory/{path.name}" for path in (ROOT / "src/memfactory").iterdir() if _is_source(path)]
    pages = [str(path.relative_to(ROOT)) for place in PAGES if (ROOT / place).exists() for path in _pages(ROOT / place)]
    return sorted([*package, *pages])


def _is_source(path: Path) -> bool:
    return path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__" and any(path.rglob("*.py")))


def _pages(path: Path) -> list[Path]:
    return sorted(path.rglob("*.md")) if path.name == "docs" else [path]


@pytest.mark.parametrize("room", rooms())
def test_a_room_keeps_to_the_glossary(room):
    wrong = [place for file in files_of(room) for place in places(file)]
    assert not wrong, "\n" + "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    "code",
    [
        "found = 1",
        "def told(): ...",
        "self.kept_rows = 1",
        "class HelperEngine: ...",
        "def f(attempts): ...",
        "for member in group: ...",
    ],
)
def test_a_banned_name_is_seen(code):
    assert len([*wrong_names(code)]) == 1


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("The file says what is fed.", "what"),
        ("An adapter, where there is one.", "where there is"),
        ("A share of .5 counts.", "share of"),
        ("A weight of .5 counts.", ".5"),
        ("Each helper replies.", "helper"),
    ],
)
def test_a_banned_sentence_is_seen(text, pattern):
    assert any(repr(pattern) in problem for problem in wrong_sentences(text))


@pytest.mark.parametrize(
    "text",
    [
        "What does it cost?",
        'The key `what` and the text "what is told" are quoted.',
        "A value of 0.5, and version 1.5.2 in ./.5rc.",
        "The reply is sampled from the policy.",
    ],
)
def test_a_good_sentence_passes(text):
    assert [*wrong_sentences(text)] == []


def test_code_of_a_page_is_left_out():
    page = "# Title\n\nText of a\nparagraph.\n\n```python\nwhat = 1\n```\n- item\n"
    assert [*paragraphs(page)] == [(1, "# Title"), (3, "Text of a paragraph."), (9, "- item")]


if __name__ == "__main__":
    asked_for = sys.argv[1:] or rooms()
    for wanted_room in asked_for:
        name = wanted_room if (ROOT / wanted_room).exists() else f"src/memfactory/{wanted_room}"
        problems = [place for source in files_of(name) for place in places(source)]
        if len(asked_for) == 1:
            sys.stdout.write("".join(f"{problem}\n" for problem in problems))
        sys.stdout.write(f"{len(problems):5} {name}\n")
