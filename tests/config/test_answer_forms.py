"""An answer is what the agent took from its reply, whatever wraps it: every agent can earn every reward of answers."""

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_server import ChatServer, write_tokenizer
from memfactory.config import load_config
from memfactory.episode import Episode
from memfactory.errors import ConfigError
from memfactory.evaluation import EvalOverrides, run_evaluation
from memfactory.evaluation.targets import prepare
from memfactory.formats.answers import bare_answer
from memfactory.modules.citing_answer import parse_cited
from memfactory.registry import MODULES, REWARDS
from memfactory.text import without_latex_text
from memfactory.types import Reply, Task
from word_codec import WordCodec

GOLDS = {"Where does Ada live?": "New York", "When did Ben move?": "7 May 2023"}
AGENTS = ("memory_agent_chunk_first", "full_context", "no_memory", "naive_rag", "memory_r1", "memory_rmm")
OF_OTHER_THINGS = {
    "format",
    "memory_format",
    "compression",
    "citations",
    "evidence_recall",
    "evidence_any",
    "evidence_all",
    "evidence_ndcg",
    "evidence_kept",
    "m_fail",
    "overlong",
}
"""Rewards that do not compare an answer with gold answers."""


def always_right(request):
    """Answers each prompt in the form that it asks for; as a judge it insists on the reference, word for word."""
    prompt = request["messages"][-1]["content"]
    if "Verdict:" in prompt:
        answer = re.search(r"<answer>\n(.*?)\n</answer>", prompt, re.DOTALL).group(1)
        reference = re.search(r"<(reference_answers?)>\n(.*?)\n</\1>", prompt, re.DOTALL).group(2)
        return f"Verdict: {'yes' if answer == reference.removeprefix('- ') else 'no'}"
    gold = next((gold for question, gold in GOLDS.items() if question in prompt), "nothing")
    if "\\boxed" in prompt:
        return f"It must be \\boxed{{{gold}}}."
    if "**Answer:**" in prompt:
        return f"- something helps\n**Answer:** {gold}"
    return f"{gold} [NO_CITE]" if "NO_CITE" in prompt else "nothing"


@pytest.fixture
def place(tmp_path, monkeypatch):
    server = ChatServer(always_right)
    rows = [
        {
            "conversation": [{"speaker": "Ada", "text": "I live in New York.", "dia_id": "D1:1", "session": "1"}],
            "question": question,
            "answers": [gold],
        }
        for question, gold in GOLDS.items()
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    endpoint = f'{{kind: openai, model: m, base_url: "{server.url}", api_key_env: "", retries: 0'
    (tmp_path / "run.yaml").write_text(
        "agent: memory_agent\nenv: {name: memory_bank, rewards: {em: 1.0}}\n"
        f'engine: {endpoint}, tokenizer: "{write_tokenizer(tmp_path / "words.json")}"}}\n'
        f"engines: {{judge: {endpoint}}}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    server.close()


def test_an_always_right_endpoint_earns_every_reward_of_answers(place):
    ours = [name for name in REWARDS.names() if REWARDS.entry(name).target.startswith("memfactory.envs.")]
    metrics = [name for name in ours if name not in OF_OTHER_THINGS]
    report = run_evaluation(
        [load_config(place / "run.yaml", command="eval")],
        EvalOverrides(("rows.jsonl",), samples=1, metrics=tuple(metrics), baselines=tuple(AGENTS)),
        output=place / "out",
    )
    assert report.failures == {}
    models = json.loads((place / "out/results.json").read_text())["models"]
    assert len(models) == 1 + len(AGENTS)
    found = {
        (model, metric): result["mean"]
        for model, entry in models.items()
        for metric, result in entry["datasets"]["rows"]["metrics"].items()
    }
    wrong = {pair: mean for pair, mean in found.items() if mean != 1.0}
    # BLEU-1 of one token order, F1s and exact matches of the same text are all exactly 1.
    assert wrong == {} and len(found) == len(models) * len(metrics)


def config(place, *overrides, command="train"):
    rows = "data.train=rows.jsonl"
    trainer = "train={name: grpo, steps: 1, prompts_per_step: 1, group_size: 2}"
    local = ["engine={kind: hf}", "model=tiny", "engines={}", rows, trainer] if command == "train" else []
    return load_config(place / "run.yaml", [*local, *overrides], command=command)


def test_training_on_a_form_that_is_never_asked_for_is_refused(place):
    boxed = "env.rewards={em: 1.0, format: 0.1}"
    with pytest.raises(ConfigError, match=r"env\.rewards\.format.*reads an answer inside .boxed\{\}, but full_context"):
        config(place, "agent=full_context", boxed)
    with pytest.raises(ConfigError, match=r"env\.rewards\.em.*asks for it inside"):
        config(place, "env.rewards={em: {extract: the_answer_is}}")
    # MemAgent's own agent asks for the box, a reward of weight 0 is only logged, and SFT asks no reward.
    assert not config(place, "agent=memory_agent", boxed).warnings
    assert "no episode earns it" in str(config(place, "agent=full_context", "env.rewards={em: 1, format: 0}").warnings)


def test_a_prompt_of_your_own_says_its_form_by_its_wording_or_by_name(place):
    worded = "agent={name: full_context, prompt: 'Answer in \\boxed{}: {question} {conversation}'}"
    named = "agent={name: full_context, prompt: 'Answer in a box: {question} {conversation}', answer_form: boxed}"
    for agent in (worded, named):
        config(place, agent, "env.rewards={format: 1.0}")


def test_a_metric_of_a_form_that_is_never_asked_for_is_warned_about(place, caplog):
    options = {"metrics": ("em", "format"), "baselines": ("full_context",)}
    prepare([config(place, command="eval")], EvalOverrides(("rows.jsonl",), **options))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("run full_context: the metric format reads an answer inside \\boxed{}")


@pytest.mark.parametrize(
    ("prompt", "reply", "answer", "mark"),
    [
        ("{question}", " New York ", "New York", 1),
        ("{question}", "<think>Rome</think>", None, 0),
        ("{question} \\boxed{}", "So \\boxed{New York}.", "New York", 1),
        ("{question} \\boxed{}", "New York", "New York", 0),
        ("{question} the answer is", "Well, the answer is **New York.**", "New York", 1),
        ("{question} **Answer:**", "- a\n**Answer:** \\boxed{New York}", "New York", 1),
        ("{question} **Answer:**", "New York", None, 0),
        ("{question} **Answer:**", "**Answer:** The answer is blowing", "The answer is blowing", 1),
    ],
)
def test_an_answer_is_read_in_the_form_that_the_prompt_asks_for(prompt, reply, answer, mark):
    module = MODULES.get("full_context_answer")
    episode = Episode(Task("t", "Where?", ("New York",), context="text"))
    playing = module(module.Options(prompt=prompt), WordCodec()).dialogue(episode)
    next(playing)
    with pytest.raises(StopIteration) as end:
        playing.send(Reply(reply, "stop"))
    assert (end.value.value.text, episode.checks["answer"]) == (answer, [mark])


def test_memagents_rule_still_wants_the_box_that_its_prompt_asks_for():
    def score(reply, form):
        episode = Episode(Task("t", "Where?", ("Oslo",)), answer=bare_answer(reply, form), answer_text=reply)
        episode.answer_form = form
        return REWARDS.get("boxed_em")(REWARDS.options("boxed_em")(), {}).score([episode])[0]

    assert [score("Oslo", "boxed"), score("\\boxed{Oslo}", "boxed"), score("Oslo", "plain")] == [0, 1, 1]


def test_recorded_episodes_are_scored_as_when_they_were_played(place):
    def evaluated(output, metrics):
        run_evaluation(
            [config(place, command="eval")],
            EvalOverrides(("rows.jsonl",), samples=1, metrics=tuple(metrics), baselines=("naive_rag", "memory_rmm")),
            output=place / output,
        )
        models = json.loads((place / output / "results.json").read_text())["models"].values()
        return [{n: m["mean"] for n, m in model["datasets"]["rows"]["metrics"].items()} for model in models]

    later = ["boxed_em", "string_match_all", "format", "em", "mem0_f1"]
    evaluated("twice", ["em"])
    assert evaluated("twice", later) == evaluated("once", later)


@pytest.mark.parametrize(
    "piece", ["\\boxed{\\text{", "\\boxed{", "{", "\\text{a}", "the answer is ", "**Answer:** ", "["]
)
def test_answers_in_hostile_text_are_read_in_linear_time(piece):
    text = (piece * (40_000 // len(piece))) + "}" * 20_000
    rewards = [REWARDS.get(n)(REWARDS.options(n)(), {}) for n in ("boxed_em", "em", "format", "sub_em", "mem0_em")]
    begun = time.perf_counter()
    for form in ("boxed", "marker", "the_answer_is", "plain"):
        episode = Episode(Task("t", "?", ("x",)), answer=bare_answer(text, form), answer_text=text, answer_form=form)
        for reward in rewards:
            assert reward.score([episode]) == [0.0] or piece == "\\text{a}"
    parse_cited(text, 3)
    # Nested boxes and texts of this length took 14 s where every layer was a pass of its own.
    assert time.perf_counter() - begun < 4


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["\\text{", "\\emph {", "\\frac{", "{", "}", "a", " "]), max_size=30).map("".join))
def test_one_pass_unwraps_latex_text_as_repeated_substitution_does(text):
    expected = text
    pattern = re.compile(r"\\(?:text|emph)\s*\{([^{}]*)\}")
    while (plain := pattern.sub(r"\1", expected)) != expected:
        expected = plain
    assert without_latex_text(text) == expected
