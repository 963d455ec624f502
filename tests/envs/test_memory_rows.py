"""Rows of memory agents: the published schema and its aliases become tasks, and what cannot be used is told."""

import gc
import json
from pathlib import Path

import pytest

from memfactory.data.base import Dataset, DatasetOptions, Row
from memfactory.errors import DataError
from memfactory.evaluation.questions import NO_GOLD
from memfactory.registry import DATASETS, ENVS
from memfactory.types import MemoryItem, Utterance

ITEM = {
    "id": "9f",
    "key": "Ada's dog",
    "value": "Ada has a dog called Rex.",
    "memory_type": "UserMemory",
    "tags": ["pets"],
    "confidence": 0.9,
    "created_at": "1 May",
    "updated_at": None,
    "version": 2,
    "user_id": "default_user",
    "status": "activated",
    "embedding": "<384 numbers>",
}
PUBLISHED = {
    "M": [ITEM, {**ITEM, "id": 7, "value": "Bob likes tea."}],
    "f": [{"role": "Ada", "content": "Rex is now called Max.", "timestamp": "2 May", "dia_id": "D2:1"}],
    "q": "What is Ada's dog called?",
    "a": "Max",
    "context_memory": [ITEM],
    "evidence": ["D2:1"],
    "index": 12,
    "sample_id": "conv-1",
    "trigger_id": "D2:1",
}


class Given(Dataset):
    """Rows that a test hands over."""

    def __init__(self, values):
        super().__init__(DatasetOptions(), Path())
        self.given = values

    def rows(self):
        return [Row(value, f"rows.json row {number}") for number, value in enumerate(self.given, start=1)]


def env(name="memory_bank", **options):
    return ENVS.get(name)(ENVS.options(name)(**options), ())


def task(values, **options):
    return env(**options).task(Row(values, "rows.json row 5"))


def problem(values):
    with pytest.raises(DataError) as caught:
        task(values)
    return str(caught.value)


def test_a_row_of_the_published_schema():
    found = task(PUBLISHED)
    assert (found.id, found.question, found.answers) == ("12", "What is Ada's dog called?", ("Max",))
    dog, tea = found.memory
    assert (dog.id, dog.key, dog.value, dog.kind) == ("9f", "Ada's dog", "Ada has a dog called Rex.", "UserMemory")
    assert (dog.tags, dog.created_at, dog.updated_at, dog.version) == (("pets",), "1 May", None, 2)
    assert (tea.id, tea.value) == ("7", "Bob likes tea.")
    assert {dog.namespace, tea.namespace} == {""}  # the schema's default user is nobody in particular
    assert found.related == ("9f",)
    assert found.conversation == (Utterance("Ada", "Rex is now called Max.", "D2:1", "2 May"),)
    assert found.evidence == ("D2:1",)
    assert dict(found.meta) == {"conversation": "conv-1"}


@pytest.mark.parametrize("memory", ["memory", "M"])
@pytest.mark.parametrize("conversation", ["conversation", "fact", "f"])
@pytest.mark.parametrize("question", ["query", "q", "question"])
@pytest.mark.parametrize("answer", ["answers", "answer", "a"])
def test_every_alias_is_read(memory, conversation, question, answer):
    found = task({memory: [ITEM], conversation: [{"speaker": "Ada", "text": "Hi."}], question: "Who?", answer: "Ada"})
    assert (len(found.memory), found.conversation, found.question, found.answers) == (
        1,
        (Utterance("Ada", "Hi."),),
        "Who?",
        ("Ada",),
    )


def test_the_first_name_that_is_not_null_counts():
    found = task(
        {"query": None, "q": "First?", "question": "Last?", "answer": None, "a": 3, "memory": None, "M": [ITEM]}
    )
    assert (found.question, found.answers, len(found.memory)) == ("First?", ("3",), 1)


def test_our_own_names_of_items_and_utterances():
    item = {"id": "a", "value": "x", "kind": "turn", "sources": ["D1:1"], "namespace": "Ada"}
    said = {"speaker": "Ada", "text": "", "time": "noon", "id": "D1:1", "session": 3}
    found = task({"memory": [item], "conversation": [said], "q": "Who?", "a": "Ada", "evidence": ["D1:1", "D1:1"]})
    assert found.memory == (MemoryItem("a", "", "x", "turn", sources=("D1:1",), namespace="Ada"),)
    assert found.conversation == (Utterance("Ada", "", "D1:1", "noon", "3"),)
    assert found.evidence == ("D1:1",)


def test_what_is_missing_is_empty():
    found = task({"q": "Who?", "a": "Ada"})
    assert (found.memory, found.conversation, found.evidence, found.related) == ((), (), (), None)
    assert task({"q": "Who?", "a": "Ada", "context_memory": []}).related == ()
    assert found.id == task({"q": "Who?", "a": "Bob"}).id != task({"q": "Where?", "a": "Ada"}).id


def test_what_describes_a_question_is_kept():
    row = {
        "q": "Who?",
        "a": "Ada",
        "kind": "locomo",
        "category": 2,
        "category_name": "temporal",
        "conversation_id": "conv-1",
        "question_type": "multi-session",
        "other": 5,
    }
    assert dict(task(row).meta) == {
        "kind": "locomo",
        "category": 2,
        "category_name": "temporal",
        "conversation": "conv-1",
        "question_type": "multi-session",
    }


def test_gold_answers_may_be_a_text_a_number_or_a_list_and_may_be_left_out_by_option():
    assert task({"q": "Who?", "answer": 2022}).answers == ("2022",)
    assert task({"q": "Who?", "answer": ["a", 2.5]}).answers == ("a", "2.5")
    assert "has no gold answers: expected 'answers' or 'answer' or 'a'; it has q" in problem({"q": "Who?"})
    assert task({"q": "Who?"}, needs_answers=False).answers == ()


@pytest.mark.parametrize("answers", [{}, {"answer": None}, {"answer": ""}, {"a": []}])
def test_gold_answers_that_infer_puts_in_place_of_bad_ones_are_read(answers):
    assert task({"q": "Who?", **answers, **NO_GOLD}).answers == ("?",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": None}, "rows.json row 5 has no question: field 'q' is null"),
        ({"q": "  "}, "rows.json row 5: field 'q' should be a text, got an empty text"),
        ({"a": []}, "rows.json row 5: field 'a' should hold at least one gold answer, got an empty list"),
        ({"a": "\ud800"}, "rows.json row 5: field 'a' should be a text, but character 0 is half of a surrogate pair"),
        ({"M": "text"}, "rows.json row 5: field 'M' should be a list, got the text 'text'"),
        ({"M": [3]}, "rows.json row 5: field 'M[0]' should be an object with fields, got the number 3"),
        ({"M": [ITEM, ITEM]}, "rows.json row 5: field 'M' should hold each id once, but has '9f' more than once"),
        ({"f": {"a": 1}}, "rows.json row 5: field 'f' should be a list, got an object with a"),
        ({"f": [None]}, "rows.json row 5: field 'f[0]' should be an object with fields, got null"),
        (
            {"f": [{"content": "Hi."}]},
            "rows.json row 5: field 'f[0]' has no speaker: expected 'role' or 'speaker'; it",
        ),
        (
            {"f": [{"role": "Ada"}]},
            "rows.json row 5: field 'f[0]' has no text: expected 'content' or 'text'; it",
        ),
        (
            {"f": [{"role": "Ada", "content": ["Hi."]}]},
            "rows.json row 5: field 'f[0].content' should be a text, got a list of 1",
        ),
        ({"context_memory": 4}, "rows.json row 5: field 'context_memory' should be a list, got the number 4"),
        ({"context_memory": [{}]}, "rows.json row 5: field 'context_memory[0]' has no field 'id'; it has no fields"),
        (
            {"context_memory": [{"id": "zz"}]},
            "rows.json row 5: field 'context_memory[0]' should be an item of the memory, which has no id 'zz'",
        ),
        ({"evidence": "D1:1"}, "rows.json row 5: field 'evidence' should be a list, got the text 'D1:1'"),
        ({"evidence": [4]}, "rows.json row 5: field 'evidence[0]' should be a text, got the number 4"),
    ],
)
def test_a_bad_row_is_told_with_its_field(changes, message):
    assert problem({**PUBLISHED, **changes}).startswith(message)


def test_a_bad_item_is_told_with_its_place():
    for field, value in (("id", None), ("value", 5), ("tags", "pets"), ("sources", [1]), ("version", "two")):
        told = problem({**PUBLISHED, "M": [ITEM, {**ITEM, "id": "8", field: value}]})
        assert told.startswith("rows.json row 5: field 'M[1]") and field in told


def test_a_conversation_that_rows_share_is_read_once_and_is_one_value():
    turns = [{"speaker": "Ada", "text": f"Turn {number}."} for number in range(3)]
    equal = json.loads(json.dumps(turns))
    rows = [{"q": f"Question {n}?", "a": "x", "conversation": turns if n < 3 else equal} for n in range(4)]
    first, *others = env().tasks(Given(rows)).tasks
    assert all(task.conversation is first.conversation for task in others)
    assert len(first.conversation) == 3


def test_lists_that_are_gone_are_not_taken_for_others():
    # Lists made on the fly: the memory of a freed one may be used again, at the same address, for the next.
    class Fleeting(Given):
        def rows(self):
            return (
                Row({"q": "Who?", "a": "x", "f": [{"role": "Ada", "content": str(number)}]}, f"row {number}")
                for number in range(50)
            )

    class Streamed(Fleeting):
        def rows(self):
            rows = super().rows()

            class Lazy:
                def __iter__(self):
                    for row in rows:
                        yield row
                        gc.collect(0)

                def __len__(self):
                    return 50

            return Lazy()

    said = [task.conversation[0].text for task in env().tasks(Streamed([])).tasks]
    assert said == [str(number) for number in range(50)]


def test_one_list_may_be_memory_and_conversation():
    both = [{"id": "1", "value": "x", "speaker": "Ada", "text": "Hi."}]
    found = env().tasks(Given([{"q": "Who?", "a": "x", "memory": both, "conversation": both}])).tasks[0]
    assert isinstance(found.memory[0], MemoryItem) and isinstance(found.conversation[0], Utterance)


@pytest.mark.parametrize("form", ["array", "lines", "one line"])
def test_rows_are_read_from_a_json_array_and_from_json_lines(tmp_path, form):
    # The reference takes a file of one line for a single object and then reads its keys as rows.
    rows = [PUBLISHED] if form == "one line" else [PUBLISHED, {**PUBLISHED, "index": 13}]
    text = json.dumps(rows) if form == "array" else "\n".join(map(json.dumps, rows))
    (tmp_path / "rows.jsonl").write_text(text)
    dataset = DATASETS.get("file")(DATASETS.options("file")(path="rows.jsonl"), tmp_path)
    assert [task.id for task in env().tasks(dataset).tasks] == ["12", "13"][: len(rows)]


def test_bad_lines_and_missing_files_are_told(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(PUBLISHED) + '\n{"q": \n')
    dataset = DATASETS.get("file")(DATASETS.options("file")(path="rows.jsonl"), tmp_path)
    with pytest.raises(DataError, match=r"rows\.jsonl line 2: not JSON: Expecting value"):
        env().tasks(dataset)
    with pytest.raises(DataError, match="there is no such file"):
        env().tasks(DATASETS.get("file")(DATASETS.options("file")(path="none.jsonl"), tmp_path))


def test_rerank_reads_the_same_rows():
    assert env("rerank").task(Row(PUBLISHED, "x")) == task(PUBLISHED)
