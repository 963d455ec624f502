"""`memfactory eval` from configs to tables, over a local chat endpoint."""

import io
import json
import re

import pytest
from rich.console import Console

from chat_server import CODES, NAMES, ChatServer, config_text, reading, rows, write_tokenizer
from memfactory.build import build_runtime
from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.evaluation import EvalOverrides, run_evaluation
from memfactory.evaluation.records import read_records
from memfactory.model.model_files import weights_fingerprint
from memfactory.model.options import ModelConfig


@pytest.fixture
def place(tmp_path, chat_server, monkeypatch):
    """A folder with a config and two datasets, one with more rows than the other."""
    (tmp_path / "codes.json").write_text(json.dumps(rows()))
    (tmp_path / "few.json").write_text(json.dumps(rows()[:2]))
    (tmp_path / "reader.yaml").write_text(config_text(chat_server.url, write_tokenizer(tmp_path / "words.json")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(targets, data, **options):
    """The exit code and the printed text."""
    console = Console(file=io.StringIO(), width=200)
    output, overwrite = options.pop("output"), options.pop("overwrite", False)
    overrides = EvalOverrides(tuple(data), **options)
    errors = Console(stderr=True)
    report = run_evaluation(targets, overrides, output=output, overwrite=overwrite, progress=errors)
    report.print_tables(console)
    report.print_problems(errors)
    return int(bool(report.failures)), console.file.getvalue()


def test_an_evaluation_writes_a_table_and_results(place):
    target = load_config(place / "reader.yaml")
    code, printed = evaluate([target], ["codes.json", "few.json"], output=place / "out", metrics=("boxed_em",))
    assert code == 0
    # Three of four questions are answered; sd of (1, 1, 1, 0) is 1/2, its standard error 1/4. Both of the few are.
    assert "0.7500 ± 0.2500" in printed and "1.0000 ± 0.0000" in printed and "0.8750" in printed
    assert "| reader | 0.7500 ± 0.2500 | 1.0000 ± 0.0000 | 0.8750 |" in (place / "out/results.md").read_text()
    value = json.loads((place / "out/results.json").read_text())
    model = value["models"]["reader"]
    assert model["datasets"]["codes"]["metrics"]["boxed_em"]["mean"] == 0.75
    assert model["decoding"] == {"temperature": 0.5, "top_p": 1.0, "top_k": 0}
    assert model["config"]["agent"]["name"] == "memory_agent"
    assert len(model["datasets"]["codes"]["data_hash"]) == 16
    assert {"date", "seconds", "environment"} <= set(value)


def test_the_environment_chooses_the_default_metrics(place):
    evaluate([load_config(place / "reader.yaml")], ["codes.json"], output=place / "out")
    metrics = json.loads((place / "out/results.json").read_text())["models"]["reader"]["datasets"]["codes"]["metrics"]
    assert next(iter(metrics)) == "sub_em" and metrics["sub_em"]["mean"] == 0.75


def test_a_second_run_plays_nothing_and_has_the_same_results(place, chat_server):
    target = load_config(place / "reader.yaml")
    evaluate([target], ["codes.json"], output=place / "out")
    first = json.loads((place / "out/results.json").read_text())["models"]
    requests = len(chat_server.requests)
    evaluate([target], ["codes.json"], output=place / "out")
    assert len(chat_server.requests) == requests
    assert json.loads((place / "out/results.json").read_text())["models"] == first


def test_a_larger_limit_and_more_samples_reuse_the_records(place):
    target = load_config(place / "reader.yaml")
    evaluate([target], ["codes.json"], output=place / "out", limit=1, samples=1)
    path = place / "out/samples/reader/codes.jsonl"
    assert len(read_records(path)) == 1
    evaluate([target], ["codes.json"], output=place / "out", limit=3, samples=2)
    assert len(read_records(path)) == 6


def test_several_models_are_compared_by_question(place):
    mute = ChatServer(lambda request: "I do not know")
    (place / "mute.yaml").write_text(config_text(mute.url, place / "words.json"))
    targets = [load_config(place / name) for name in ("mute.yaml", "reader.yaml")]
    code, printed = evaluate(targets, ["codes.json"], output=place / "out", metrics=("boxed_em",))
    mute.close()
    assert code == 0
    # By question +1, +1, +1, 0: 0.75 with standard error 0.25, t of 3 degrees 3.18245: 0.75 -+ 0.79561, cut at 1.
    assert "Difference from mute" in printed and "+0.7500 [-0.046, +1.000]" in printed
    differences = json.loads((place / "out/results.json").read_text())["differences"]
    assert differences["first"] == "mute"
    assert differences["models"]["reader"]["codes"]["boxed_em"]["mean"] == 0.75


def test_a_failed_dataset_is_reported_and_the_others_go_on(place, capsys):
    (place / "broken.json").write_text(json.dumps([{"context": "text", "input": "Who?"}]))
    target = load_config(place / "reader.yaml")
    code, printed = evaluate([target], ["broken.json", "few.json"], output=place / "out", metrics=("boxed_em",))
    assert code == 1
    assert "1.0000" in printed
    errors = " ".join(capsys.readouterr().err.split())
    assert "broken failed on reader" in errors and "row 1" in errors
    value = json.loads((place / "out/results.json").read_text())["models"]["reader"]
    assert set(value["failures"]) == {"broken"} and set(value["datasets"]) == {"few"}


def test_an_outage_fails_the_dataset_and_a_later_run_resumes_it(place, chat_server):
    def failing(request):
        return reading(request) if "Alice" in request["messages"][-1]["content"].partition("?")[0] else 500

    chat_server.reply = failing
    target = load_config(place / "reader.yaml")
    code, _ = evaluate([target], ["few.json"], output=place / "out", metrics=("boxed_em",), samples=1)
    assert code == 1
    chat_server.reply = reading
    code, printed = evaluate([target], ["few.json"], output=place / "out", metrics=("boxed_em",), samples=1)
    assert code == 0 and "1.0000" in printed


def test_samples_of_another_evaluation_are_refused_at_the_start(place, chat_server):
    evaluate([load_config(place / "reader.yaml")], ["few.json"], output=place / "out")
    requests = len(chat_server.requests)
    hotter = load_config(place / "reader.yaml", ["eval.temperature=0.9"])
    with pytest.raises(ConfigError, match=r"temperature 0.5.*temperature 0.9.*--output.*--overwrite"):
        evaluate([hotter], ["few.json"], output=place / "out")
    assert len(chat_server.requests) == requests
    code, _ = evaluate([hotter], ["few.json"], output=place / "out", overwrite=True)
    assert code == 0 and len(chat_server.requests) == 2 * requests


def test_all_mistakes_are_reported_at_once(place):
    target = load_config(place / "reader.yaml")
    with pytest.raises(ConfigError) as caught:
        evaluate([target], ["fewer.json", "nonsense"], output=place / "out", metrics=("boxed",))
    problems = "\n".join(caught.value.problems)
    assert "no metric is called 'boxed'; did you mean 'boxed_em'?" in problems
    assert "there is no file 'fewer.json'" in problems and "no dataset is called 'nonsense'" in problems


def test_no_dataset_at_all_is_a_mistake(place):
    with pytest.raises(ConfigError, match="no dataset to evaluate on"):
        evaluate([load_config(place / "reader.yaml")], [], output=place / "out")


def test_the_configs_own_sets_are_evaluated_by_default(place, chat_server):
    more = "data: {eval: {small: few.json}}"
    (place / "own.yaml").write_text(config_text(chat_server.url, place / "words.json", more=more))
    code, _ = evaluate([load_config(place / "own.yaml")], [], output=place / "out")
    assert code == 0
    assert (place / "out/samples/own/small.jsonl").is_file()


def test_two_targets_of_one_name_get_rows_of_their_own(place):
    targets = [load_config(place / "reader.yaml", overrides) for overrides in ([], ["eval.temperature=0"])]
    evaluate(targets, ["few.json"], output=place / "out")
    assert list(json.loads((place / "out/results.json").read_text())["models"]) == ["reader", "reader-2"]


def test_bad_rows_are_left_out_and_counted(place, chat_server, capsys):
    (place / "mixed.json").write_text(json.dumps([*rows()[:2], {"input": "Who?"}]))
    more = "data: {eval: {mixed: {path: mixed.json, skip_bad_rows: true}}}"
    (place / "mixed.yaml").write_text(config_text(chat_server.url, place / "words.json", more=more))
    code, _ = evaluate([load_config(place / "mixed.yaml")], ["mixed"], output=place / "out")
    assert code == 0
    assert "mixed: 1 bad rows left out; the first: mixed.json row 3 has no" in capsys.readouterr().err
    assert json.loads((place / "out/results.json").read_text())["models"]["mixed"]["bad_rows"] == {"mixed": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "--samples: Input should be greater than or equal to 1"),
        ({"output": "codes.json"}, "--output codes.json cannot be written to"),
        ({"data": ["codes.json", "other/codes.json"]}, "two datasets are called 'codes'"),
    ],
)
def test_impossible_options_are_reported(place, options, message):
    (place / "other").mkdir()
    (place / "other/codes.json").write_text(json.dumps(rows()))
    data = options.pop("data", ["codes.json"])
    options["output"] = place.__class__(options.get("output", "out"))
    with pytest.raises(ConfigError, match=message):
        evaluate([load_config(place / "reader.yaml")], data, **options)


def judged(place, chat_server, judge):
    """A config with the reader as policy and `judge` as the judge's endpoint."""
    more = f'engines: {{judge: {{kind: openai, model: judge, base_url: "{judge.url}", api_key_env: "", retries: 0}}}}'
    (place / "judged.yaml").write_text(config_text(chat_server.url, place / "words.json", more=more))
    return load_config(place / "judged.yaml")


def test_a_judge_scores_on_request_and_again_after_an_outage(place, chat_server, capsys):
    judge = ChatServer(lambda request: 500)
    target = judged(place, chat_server, judge)
    code, _ = evaluate([target], ["codes.json"], output=place / "out", metrics=("boxed_em",))
    assert code == 0 and judge.requests == []
    requests = len(chat_server.requests)

    code, _ = evaluate([target], ["codes.json"], output=place / "out", metrics=("boxed_em",), judge=True)
    assert code == 1
    assert "8 of 8 scores of 'judge' are unknown" in capsys.readouterr().err
    judge.reply = lambda request: "Verdict: yes" if "three" in request["messages"][0]["content"] else "Verdict: no"
    code, printed = evaluate([target], ["codes.json"], output=place / "out", metrics=("boxed_em",), judge=True)
    judge.close()
    assert code == 0 and len(chat_server.requests) == requests
    # The judge finds one of four questions answered.
    assert "judge" in printed
    metrics = json.loads((place / "out/results.json").read_text())["models"]["judged"]["datasets"]["codes"]["metrics"]
    assert metrics["judge"]["mean"] == 0.25 and metrics["boxed_em"]["mean"] == 0.75


def test_an_unused_judge_needs_no_key(place, chat_server):
    more = "engines: {judge: {kind: openai, model: judge, base_url: 'http://h.invalid/v1', api_key_env: NO_SUCH_KEY}}"
    text = config_text(chat_server.url, place / "words.json", more=more)
    (place / "rewarded.yaml").write_text(text.replace("boxed_em: 1.0", "boxed_em: 1.0, judge: 0.5"))
    code, _ = evaluate([load_config(place / "rewarded.yaml")], ["codes.json"], output=place / "out")
    assert code == 0


def test_samples_of_another_model_are_refused(place):
    evaluate([load_config(place / "reader.yaml")], ["few.json"], output=place / "out")
    with pytest.raises(ConfigError, match=r"model was reader at .*, now writer at "):
        evaluate([load_config(place / "reader.yaml", ["engine.model=writer"])], ["few.json"], output=place / "out")


def test_a_changed_weight_makes_another_model(tmp_path):
    model = ModelConfig(path=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert weights_fingerprint(model) != before
    assert weights_fingerprint(ModelConfig(path="some/hub-model")) == {}


def test_a_judge_without_an_engine_is_reported_at_the_start(place, chat_server):
    with pytest.raises(ConfigError, match=r"the judge asks the engine 'judge'.* Add it under `engines:`"):
        evaluate([load_config(place / "reader.yaml")], ["codes.json"], output=place / "out", judge=True)
    assert chat_server.requests == []


def test_a_local_model_is_evaluated_with_its_token_counts(place, small_model_path, monkeypatch):
    overrides = ["agent.chunk_tokens=40", "agent.memory_tokens=4", "agent.answer_tokens=4", "model.device=cpu"]
    target = load_config(small_model_path, overrides)
    code, _ = evaluate([target], ["few.json"], output=place / "out", samples=2)
    assert code == 0
    records = read_records(next((place / "out/samples").glob("*/few.jsonl")))
    assert len(records) == 4
    turns = [turn for record in records for turn in record.turns]
    assert all(turn.reply_tokens is not None and 1 <= turn.reply_tokens <= 4 for turn in turns)
    monkeypatch.setattr("memfactory.evaluation.fingerprint.weights_fingerprint", lambda model: {"weights": "others"})
    with pytest.raises(ConfigError, match="weights was"):
        evaluate([target], ["few.json"], output=place / "out", samples=2)
    # Replies of an untrained model differ from sample to sample, and are cut by length.
    assert len({turn.text for turn in turns}) > 4 and any(turn.stop == "length" for turn in turns)


# Agents with a memory bank


def remembered():
    """A question about each name to one conversation with every code, of two categories."""
    talk = [
        {"speaker": "Ann", "text": f"The code of {name} is {code}.", "dia_id": f"D1:{number}", "session": "1"}
        for number, (name, code) in enumerate(zip(NAMES, CODES))
    ]
    return [
        {
            "id": name,
            "conversation": talk,
            "question": f"What is the code of {name}?",
            "answers": [code],
            "evidence": [f"D1:{number}"],
            "category": 2 - number % 2,
            "category_name": ("temporal", "multi-hop")[number % 2],
        }
        for number, (name, code) in enumerate(zip(NAMES, CODES))
    ]


def recalling(request):
    """Answers with the code that is in the prompt; Dora's is never found."""
    prompt = request["messages"][-1]["content"]
    name = re.search(r"What is the code of (\w+)\?", prompt).group(1)
    code = re.search(rf"The code of {name} is (\w+)\.", prompt)
    return f"**Answer:** {code.group(1) if code and name != 'Dora' else 'unknown'}"


BANK_CONFIG = """
agent: {{name: naive_rag, modules: {{retriever: {{name: naive_retriever, k: 2}}}}}}
env: {{name: memory_bank, rewards: {{em: 1.0}}}}
engine: {{kind: openai, model: reader, base_url: "{url}", api_key_env: "", retries: 0, tokenizer: "{tokenizer}"}}
eval: {{samples: 1, temperature: 0.5{more}}}
"""


@pytest.fixture
def banks(place, chat_server):
    """A folder with a config of an agent that looks things up, and its questions."""
    chat_server.reply = recalling
    (place / "talk.json").write_text(json.dumps(remembered()))

    def config(more="", name="rag"):
        path = place / f"{name}.yaml"
        path.write_text(BANK_CONFIG.format(url=chat_server.url, tokenizer=place / "words.json", more=more))
        return load_config(path)

    return config


def test_baselines_are_rows_beside_the_configured_agent(place, banks, chat_server):
    target = banks(", baselines: [full_context, no_memory]")
    code, _ = evaluate([target], ["talk.json"], output=place / "out", metrics=("em",))
    assert code == 0
    value = json.loads((place / "out/results.json").read_text())
    means = {name: model["datasets"]["talk"]["metrics"]["em"]["mean"] for name, model in value["models"].items()}
    # The conversation holds all codes, Dora's is never answered; without a memory none is.
    assert means == {"rag": 0.75, "rag full_context": 0.75, "rag no_memory": 0.0}
    agents = [model["config"]["agent"]["name"] for model in value["models"].values()]
    assert agents == ["naive_rag", "full_context", "no_memory"]
    assert value["differences"]["models"]["rag no_memory"]["talk"]["em"]["mean"] == -0.75
    assert {path.parent.name for path in (place / "out/samples").glob("*/talk.jsonl")} == {
        "rag",
        "rag-full_context",
        "rag-no_memory",
    }
    requests = len(chat_server.requests)
    assert requests == 12
    evaluate([target], ["talk.json"], output=place / "out", metrics=("em",))
    assert len(chat_server.requests) == requests


def test_baselines_of_the_command_line_replace_the_configs(place, banks):
    target = banks(", baselines: [full_context]")
    evaluate([target], ["talk.json"], output=place / "out", metrics=("em",), baselines=("no_memory",))
    assert list(json.loads((place / "out/results.json").read_text())["models"]) == ["rag", "rag no_memory"]


def test_a_baseline_may_have_options(place, banks, chat_server):
    short = "{name: full_context, context_tokens: 8, keep: first}"
    target = banks(f", baselines: [full_context, {short}]")
    evaluate([target], ["talk.json"], output=place / "out", metrics=("em",))
    value = json.loads((place / "out/results.json").read_text())
    means = {name: model["datasets"]["talk"]["metrics"]["em"]["mean"] for name, model in value["models"].items()}
    # The first eight tokens are "Ann", ":", "The code of Alice is seven"; the full stop is the ninth.
    assert means == {"rag": 0.75, "rag full_context": 0.75, "rag full_context-2": 0.0}
    with pytest.raises(ConfigError, match=r"context_token: unknown key"):
        evaluate([target], ["talk.json"], output=place / "o", baselines=({"name": "full_context", "context_token": 8},))


def test_an_unknown_baseline_is_reported_with_the_nearest_name(place, banks):
    with pytest.raises(ConfigError, match=r"rag.yaml:5: eval.baselines.0: no agent is called 'ful_context'.*full_con"):
        banks(", baselines: [ful_context]")
    with pytest.raises(ConfigError, match="no agent is called 'ful_context'; did you mean 'full_context'"):
        evaluate([banks()], ["talk.json"], output=place / "out", baselines=("ful_context",))


def test_a_model_that_cannot_be_built_fails_its_baselines_too(place, banks, capsys):
    broken = load_config(banks("", "broken").source, ["engine.api_key_env=NO_SUCH_KEY", "eval.baselines=[no_memory]"])
    code, _ = evaluate([broken, banks()], ["talk.json"], output=place / "out", metrics=("em",))
    assert code == 1
    value = json.loads((place / "out/results.json").read_text())["models"]
    assert {name: set(model["failures"]) for name, model in value.items()} == {
        "broken": {"talk"},
        "broken no_memory": {"talk"},
        "rag": set(),
    }
    assert "NO_SUCH_KEY" in capsys.readouterr().err


def test_a_model_is_loaded_once_for_all_its_agents(place, banks, monkeypatch):
    built = []

    def counted(resolved, *, training):
        built.append(resolved.config.agent.name)
        return build_runtime(resolved, training=training)

    monkeypatch.setattr("memfactory.evaluation.running.build_runtime", counted)
    target = banks(", baselines: [full_context, no_memory]")
    evaluate([target, banks("", "other")], ["talk.json"], output=place / "out", metrics=("em",))
    assert built == ["naive_rag", "naive_rag"]


def test_tables_and_results_show_several_categories(place, banks):
    target = banks(", baselines: [no_memory]")
    _, printed = evaluate([target], ["talk.json"], output=place / "out", metrics=("em", "evidence_kept"))
    # Multi-hop are Bob's, right, and Dora's, wrong; temporal are Alice's and Carol's, both right. sd of (1, 0) is
    # sqrt(1/2), the standard error 1/2.
    assert "talk by category (em)" in printed and "talk by category (evidence_kept)" in printed
    assert "| model | 1 multi-hop (n=2) | 2 temporal (n=2) |" in (place / "out/results.md").read_text()
    assert "| rag | 0.5000 ± 0.5000 | 1.0000 ± 0.0000 |" in (place / "out/results.md").read_text()
    assert "| rag no_memory | 0.0000 ± 0.0000 | 0.0000 ± 0.0000 |" in (place / "out/results.md").read_text()
    models = json.loads((place / "out/results.json").read_text())["models"]
    em = models["rag"]["datasets"]["talk"]["categories"]["em"]
    assert em["1 multi-hop"] == {
        "mean": 0.5,
        "standard_error": pytest.approx(0.5),
        "n": 2,
    }


def test_a_bank_agents_records_are_scored_later(place, banks, chat_server):
    target = banks()
    evaluate([target], ["talk.json"], output=place / "out", metrics=("em",))
    (bob,) = [record for record in read_records(place / "out/samples/rag/talk.jsonl") if record.task_id == "Bob"]
    assert bob.retrieved[0].sources == ("D1:1",) and len(bob.retrieved) == 2
    assert bob.bank.items == 4 and bob.bank.evidence == ("D1:1",)
    requests = len(chat_server.requests)
    evaluate([target], ["talk.json"], output=place / "out", metrics=("em", "evidence_recall", "m_fail"))
    assert len(chat_server.requests) == requests
    metrics = json.loads((place / "out/results.json").read_text())["models"]["rag"]["datasets"]["talk"]["metrics"]
    assert metrics["evidence_recall"]["mean"] == 1.0 and metrics["m_fail"]["mean"] == 0.0


def test_a_frozen_module_asks_its_own_engine(place, banks, chat_server):
    reader = ChatServer(lambda request: "**Answer:** three")
    engines = f'{{reader: {{kind: openai, model: r, base_url: "{reader.url}", api_key_env: "", retries: 0}}}}'
    answerer = "{name: answer, interface: inference, engine: reader}"
    target = load_config(banks().source, [f"engines={engines}", f"agent.modules.answerer={answerer}"])
    evaluate([target], ["talk.json"], output=place / "out", metrics=("em",), baselines=("full_context",))
    reader.close()
    assert chat_server.requests == [] and len(reader.requests) == 8
    modules = json.loads((place / "out/results.json").read_text())["models"]["rag full_context"]["config"]["agent"]
    assert modules["modules"]["answerer"]["engine"] == "reader"


def test_episodes_of_another_engines_outage_are_played_again(place, banks, chat_server, capsys):
    reader = ChatServer(lambda request: 500 if "Bob?" in request["messages"][0]["content"] else recalling(request))
    engines = f'{{reader: {{kind: openai, model: r, base_url: "{reader.url}", api_key_env: "", retries: 0}}}}'
    answerer = "{name: answer, interface: inference, engine: reader}"
    target = load_config(banks().source, [f"engines={engines}", f"agent.modules.answerer={answerer}"])
    code, _ = evaluate([target], ["talk.json"], output=place / "out", metrics=("em",))
    assert code == 1 and "1 of 4 scores of 'em' are unknown" in " ".join(capsys.readouterr().err.split())
    reader.reply, before = recalling, len(reader.requests)
    code, printed = evaluate([target], ["talk.json"], output=place / "out", metrics=("em",))
    reader.close()
    assert code == 0 and "0.7500" in printed and len(reader.requests) == before + 1


def test_samples_of_another_endpoint_in_a_variable_are_refused(place, chat_server, monkeypatch):
    text = (place / "reader.yaml").read_text()
    (place / "reader.yaml").write_text(text.replace(f'base_url: "{chat_server.url}"', "base_url: null"))
    assert "base_url: null" in (place / "reader.yaml").read_text()
    monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url)
    evaluate([load_config(place / "reader.yaml")], ["few.json"], output=place / "out")
    monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url.replace("/v1", "/v2"))
    with pytest.raises(ConfigError, match=r"holds samples of another evaluation \(model was"):
        evaluate([load_config(place / "reader.yaml")], ["few.json"], output=place / "out")
