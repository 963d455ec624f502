"""LoCoMo's published protocol from one command, on the real file, with a scripted endpoint as the model."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from chat_server import ChatServer

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("MEMFACTORY_DATA")
LOCOMO = Path(DATA or "") / "locomo" / "locomo10.json"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA and LOCOMO.is_file()), reason="MEMFACTORY_DATA names no folder with LoCoMo"),
]
WORD = re.compile(r"\w+")


def section(prompt, name):
    return re.search(rf"<{name}>\n(.*)\n</{name}>", prompt, re.DOTALL).group(1)


def closest(prompt, lines):
    """The line that shares the most words with the question."""
    question = words(section(prompt, "question"))
    return max(lines, key=lambda line: len(question & words(line)), default="")


@cache
def words(text):
    return frozenset(WORD.findall(text.lower()))


def remember(request):
    """Remembers every turn as it is, and answers with the line that shares the most words with the question."""
    prompt = request["messages"][-1]["content"]
    if '{"memory_list"' in prompt:
        turns = [re.sub(r": \[.*?\] ", ": ", line) for line in section(prompt, "conversation").splitlines()]
        return json.dumps({"memory_list": [{"key": "said", "value": turn} for turn in turns]})
    if '{"operations"' in prompt:
        old, new = (re.findall(r"^(\d+)\. ", section(prompt, part), re.MULTILINE) for part in ("memory", "new"))
        operations = [{"id": int(number), "op": "NONE"} for number in old]
        return json.dumps({"operations": [*operations, *({"id": int(number), "op": "ADD"} for number in new)]})
    part = "conversation" if "<conversation>" in prompt else "memory"
    line = closest(prompt, section(prompt, part).splitlines())
    return f"{line}\n**Answer:** {' '.join(line.split()[-4:])}"


def evaluated(tmp_path):
    server = ChatServer(remember)
    endpoint = f"{{kind: openai, model: scripted, base_url: '{server.url}', api_key_env: null, concurrency: 8}}"
    command = [
        *(sys.executable, "-m", "memfactory", "eval", str(ROOT / "configs/memory_r1.yaml"), "--data", "locomo"),
        *("model=tiny", f"engine={endpoint}", f"engines.reader={endpoint}"),
        f"data.eval.locomo={{name: locomo, path: '{LOCOMO}'}}",
        *("--output", str(tmp_path / "out")),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    server.close()
    assert done.returncode == 0, done.stdout + done.stderr
    return server, done.stdout, json.loads((tmp_path / "out" / "results.json").read_text())


def test_one_command_gives_a_table_by_category_with_the_baselines(tmp_path):
    server, shown, results = evaluated(tmp_path)
    models = ["memory_r1", "memory_r1 full_context", "memory_r1 naive_rag"]
    assert [*results["models"]] == models
    for model in models:
        dataset = results["models"][model]["datasets"]["locomo"]
        assert dataset["questions"] == 1307
        assert {name: metric["unknown"] for name, metric in dataset["metrics"].items()} == {
            "locomo_f1": 0, "mem0_f1": 0, "bleu1": 0, "em": 0,
            "evidence_kept": 2,  # two questions have no evidence
        }  # fmt: skip
    titles = [line for line in shown.splitlines() if line.startswith("| model | 1 ")]
    assert len(titles) == 5
    assert [re.findall(r"\d (?:multi|temporal|open|single).*?n=(\d+)", title) for title in titles] == [
        *[["239", "258", "83", "727"]] * 4,
        ["239", "258", "81", "727"],
    ]
    for name in models:
        assert len(re.findall(rf"^\| {name} \|( \d\.\d{{4}} ± \d\.\d{{4}} \|){{4}}$", shown, re.MULTILINE)) == 5
    # An agent that remembers every turn keeps all evidence; one without a memory keeps none.
    recall = [results["models"][m]["datasets"]["locomo"]["metrics"]["evidence_kept"]["mean"] for m in models]
    assert recall[0] > 0.97 and recall[1] == 0 and recall[2] > 0.99
    # One answer a question and agent, and for each of the 8 conversations' sessions an extraction and an update.
    prompts = [request["messages"][-1]["content"] for request in server.requests]
    sessions = sum('{"memory_list"' in prompt for prompt in prompts)
    assert sessions == sum('{"operations"' in prompt for prompt in prompts)
    assert len(prompts) <= 3 * 1307 + 2 * sessions
