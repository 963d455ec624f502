"""RULER's tasks: the counts are RULER's, texts are as long as fits, rows differ and are reproducible."""

import json
from collections import Counter
from itertools import pairwise

import pytest

from memfactory.data.benchmarks.ruler import RulerSet, build_ruler, fwe_counts
from memfactory.errors import ConfigError


def words(text):
    """Counts coded words as 4 tokens and dots as 1."""
    return sum(1 if word == "..." else 4 for word in text.split())


def build(tmp_path, task="fwe", **options):
    count_tokens = options.pop("count_tokens", words)
    report = build_ruler(RulerSet(task, **{"length": 2048, "rows": 4, **options}), tmp_path, count_tokens=count_tokens)
    return json.loads(report.files[0].path.read_text())


def test_word_counts_follow_the_zeta_distribution():
    # 5000 / (k^2 x 1.644934): 3039.6, 759.9, 337.7, 189.9, 121.5, 84.4, 62.0; from rank 56 on less than one.
    counts = fwe_counts(5000, 327)
    assert counts[:7] == [3039, 759, 337, 189, 121, 84, 62]
    assert sum(count > 0 for count in counts) == 55


def test_a_row_of_frequent_words(tmp_path):
    rows = build(tmp_path, length=16384, rows=2)
    assert list(rows[0]) == ["index", "input", "context", "outputs", "answer_prefix", "length"]
    for index, row in enumerate(rows):
        counted = Counter(row["context"].split())
        (noise, top), *ranked = counted.most_common(5)
        assert noise == "..." and row["index"] == index
        assert [word for word, _ in ranked[:3]] == row["outputs"]
        assert ranked[2][1] > ranked[3][1]
        # 1/k^2: rank 1 is 4 times rank 2, up to rounding down.
        assert top // 4 - 1 <= ranked[0][1] <= top // 4
        assert row["length"] == words(row["context"]) + 50 and words(row["context"]) <= 16384


def test_the_text_grows_in_steps_of_a_32nd_while_it_fits(tmp_path):
    # A token a word: from 2048 // 6 = 341 words in steps of 64 while floor'ed counts sum to at most 2048.
    sizes = range(341, 5000, 64)
    largest = max(size for size in sizes if sum(fwe_counts(size, 40)) <= 2048)
    rows = build(tmp_path, count_tokens=lambda text: len(text.split()))
    assert [len(row["context"].split()) for row in rows] == [sum(fwe_counts(largest, 40))] * 4


def test_rows_differ_in_words_and_places(tmp_path):
    rows = build(tmp_path)
    assert len({word for row in rows for word in row["outputs"]}) == 12
    patterns = {tuple(word == "..." for word in row["context"].split()) for row in rows}
    assert len(patterns) == 4


def test_a_row_that_is_too_long_is_shortened(tmp_path):
    rows = build(tmp_path, count_tokens=lambda text: len(text.split()) + 40 * text.count("q"), rows=8)
    assert all(row["length"] - 50 <= 2048 for row in rows)
    assert len({len(row["context"].split()) for row in rows}) > 1


def test_variable_tracking_hides_one_chain_in_order(tmp_path):
    for row in build(tmp_path, task="vt", count_tokens=lambda text: len(text.split())):
        said = [line for line in row["context"].split("\n") if line.startswith("VAR ")]
        names = row["outputs"]
        value = said[0].rpartition(" ")[2]
        assert said == [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]
        assert len(names) == 5 and value in row["input"] and 10000 <= int(value) <= 99999
        assert 2048 - 5 * 19 - 30 < row["length"] <= 2048  # a line of noise has 19 words, five at a time


def test_seeds_name_the_rows(tmp_path):
    first, second, other = (build(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == second
    assert not {row["context"] for row in first} & {row["context"] for row in other}
    assert build(tmp_path, seed=1, rows=2) == first[:2]


def test_the_file_is_named_by_task_and_length(tmp_path):
    build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["eval_fwe_2048.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "few"}, "no RULER task is called 'few'; did you mean 'fwe'? There are: fwe, vt."),
        ({"rows": 0}, "rows: expected at least 1, got 0"),
        ({"length": 200}, "length: expected at least 256 tokens, got 200"),
        ({"length": 256, "count_tokens": lambda text: 9 * len(text)}, "length: 256 tokens are too few for the three"),
        (
            {"task": "vt", "count_tokens": lambda text: 9 * len(text)},
            "length: 2048 tokens are too few for a chain",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, **options)
    assert str(caught.value).startswith(message)
