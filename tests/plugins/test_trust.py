"""A folder that somebody else made runs no code, and a run takes its own plugins along."""

import json
import os
import pickle
import shutil

import pytest
import torch

from memfactory.cli.app import run
from memfactory.config import load_config
from memfactory.errors import ConfigError
from memfactory.files.folders import write_marker
from memfactory.plugins.loading import find_plugin, load_plugin
from memfactory.plugins.trust import trust, trust_file, trusted
from memfactory.registry import REWARDS

REWARD = '''
from memfactory.envs.rewards.base import RewardFunction
from memfactory.registry import REWARDS


@REWARDS.register("{name}")
class Always(RewardFunction):
    """One for everybody."""

    def score(self, episodes):
        return [1.0 for _ in episodes]
'''
CONFIG = """
plugins: [{plugin}]
model: {{path: {model}, cpu_threads: 1}}
agent: {{name: memory_agent, chunk_tokens: 200, memory_tokens: 4, answer_tokens: 4}}
env: {{name: longcontext, rewards: {{{reward}: 1.0}}}}
data: {{train: {{name: facts, rows: 4}}, eval: {{held: {{name: facts, rows: 2}}}}}}
train: {{name: grpo, steps: 1, prompts_per_step: 1, group_size: 2, eval_at_start: false, eval_at_end: false}}
eval: {{samples: 1, metrics: [{reward}]}}
trackers: []
"""
OWN = "model: {path: tiny, trust_remote_code: true}\nagent: memory_agent\nenv: longcontext\n"
COMMANDS = [
    ["train", "RUN", "--resume"],
    ["train", "RUN", "--resume", "--dry-run"],
    ["train", "x.yaml", "--resume", "RUN"],
    ["eval", "RUN"],
    ["eval", "RUN/final", "--data", "facts", "--limit", "1"],
    ["eval", "tiny", "--like", "RUN"],
    ["infer", "RUN", "--question", "Who?"],
    ["infer", "RUN/checkpoints/step-1", "--question", "Who?"],
    ["config", "show", "RUN"],
    ["config", "validate", "RUN/config.yaml", "--for", "eval"],
    ["list", "rewards", "--config", "RUN"],
    ["view", "RUN"],
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory of a user who has trusted nothing yet."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MEMFACTORY_TRUSTED", str(tmp_path / "state" / "trusted.json"))
    return tmp_path / "work"


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_model_path):
    """A finished run with a plugin, by somebody who trusts it in a file of his own."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "mine.py").write_text(REWARD.format(name="always_one"))
    (folder / "x.yaml").write_text(CONFIG.format(plugin="mine.py", model=small_model_path, reward="always_one"))
    before, named = os.getcwd(), os.environ["MEMFACTORY_TRUSTED"]
    os.environ["MEMFACTORY_TRUSTED"] = str(folder / "trusted.json")
    os.chdir(folder)
    try:
        assert run(["train", "x.yaml", "--output", "own"]) == 0
    finally:
        os.chdir(before)
        os.environ["MEMFACTORY_TRUSTED"] = named
    return folder


def spring(marker):
    """Python that leaves a trace where it runs."""
    return f"open({str(marker)!r}, 'w').write('ran')\n"


class Pickled:
    """What leaves a trace where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (spring(self.marker),)


def evil_run(made, place, small_model_path):
    """A copy of the run whose every file runs code, if anything is ever executed or unpickled; the traces' folder."""
    own, traces = place / "RUN", place / "traces"
    shutil.copytree(made / "own", own)
    traces.mkdir()
    config = (own / "config.yaml").read_text()
    (own / "evil.py").write_text(spring(traces / "plugin") + REWARD.format(name="always_one"))
    (own / "evilpack").mkdir()
    (own / "evilpack" / "__init__.py").write_text(spring(traces / "package"))
    plugins = "plugins:\n- evil.py\n- evilpack\n"
    begin = config.index("plugins:")
    end = config.index("\n", config.index("- ", begin)) + 1
    config = config[:begin] + plugins + config[end:]
    (own / "config.yaml").write_text(config.replace("trust_remote_code: false", "trust_remote_code: true"))
    for folder in (own / "final", own / "checkpoints" / "step-1"):
        arm_model(folder, traces)
        torch.save({"optimizer": Pickled(traces / "optimizer")}, folder / "optimizer.pt")
        (folder / "random.pt").write_bytes(pickle.dumps(Pickled(traces / "random")))
        write_marker(folder)
    (place / "x.yaml").write_text(
        CONFIG.format(plugin="plain.py", model=small_model_path, reward="always_one").replace(
            "plugins: [plain.py]\n", ""
        )
    )
    return traces


def arm_model(folder, traces):
    """Turn a model folder into one whose remote code and pickled weights leave traces."""
    described = json.loads((folder / "config.json").read_text())
    described["auto_map"] = {
        "AutoConfig": "evil_model.Config",
        "AutoModelForCausalLM": "evil_model.Model",
        "AutoModel": "evil_model.Model",
        "AutoTokenizer": ["evil_model.Tok", "evil_model.Tok"],
    }
    described["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(described))
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told |= {"auto_map": {"AutoTokenizer": ["evil_model.Tok", "evil_model.Tok"]}, "tokenizer_class": "Tok"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "evil_model.py").write_text(spring(traces / "remote"))
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(spring(traces / "generate"))
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        torch.save(Pickled(traces / name), folder / name)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_evil_run_folder_executes_nothing(made, place, small_model_path, words, capsys):
    traces = evil_run(made, place, small_model_path)
    given = [str(place / "RUN") + word.removeprefix("RUN") if word.startswith("RUN") else word for word in words]
    run(given)
    assert [path.name for path in traces.iterdir()] == []
    shown = capsys.readouterr()
    if words == ["train", "x.yaml", "--resume", "RUN"]:
        assert "step-1 cannot be used: its file COMPLETE lists no weights" in shown.err
        # With weights beside it the optimizer is read, too.
        saved = "checkpoints/step-1"
        shutil.copy(made / "own" / saved / "model.safetensors", place / "RUN" / saved)
        write_marker(place / "RUN" / saved)
        run(given)
        assert [path.name for path in traces.iterdir()] == []
        shown = capsys.readouterr()
        assert "step-1 cannot be resumed: UnpicklingError: Weights only load failed" in shown.err
    elif words[0] not in ("view", "infer"):
        assert "runs code" in shown.err or "code of its own" in shown.err or "never imported" in shown.err


def test_the_traps_of_these_tests_spring_where_they_are_trusted(made, place, small_model_path):
    traces = evil_run(made, place, small_model_path)
    text = (place / "RUN/config.yaml").read_text()
    (place / "RUN/config.yaml").write_text(text.replace("- evilpack\n", ""))
    run(["config", "validate", "RUN", "--trust"])
    torch.load(place / "RUN/checkpoints/step-1/optimizer.pt", weights_only=False)
    (place / "own.yaml").write_text(OWN.replace("tiny", "RUN/final"))
    run(["infer", "own.yaml", "--question", "Who?"])
    assert sorted(path.name for path in traces.iterdir()) == ["optimizer", "plugin", "remote"]


@pytest.mark.parametrize("kind", ["remote", "pickled", "optimizer"])
def test_an_evil_model_folder_executes_nothing(made, place, small_model_path, kind, capsys):
    traces = place / "traces"
    traces.mkdir()
    shutil.copytree(small_model_path, place / "model")
    arm_model(place / "model", traces)
    if kind != "remote":
        shutil.copyfile(small_model_path / "config.json", place / "model" / "config.json")
        shutil.copyfile(small_model_path / "tokenizer_config.json", place / "model" / "tokenizer_config.json")
    if kind == "optimizer":
        shutil.copyfile(small_model_path / "model.safetensors", place / "model" / "model.safetensors")
        torch.save(Pickled(traces / "optimizer"), place / "model" / "optimizer.pt")
    code = run(["infer", "model", "--question", "Who?"])
    assert [path.name for path in traces.iterdir()] == []
    assert code == (0 if kind == "optimizer" else 2)
    assert "Traceback" not in capsys.readouterr().err


def test_links_and_compiled_files_are_no_way_in(made, place, small_model_path):
    """A plugin that is a link to code elsewhere, and one whose compiled form is another than its source."""
    traces = place / "traces"
    traces.mkdir()
    shutil.copytree(made / "own", place / "RUN")
    [copy] = (place / "RUN" / "plugins").glob("*.py")
    trust({find_plugin(str(copy)).digest: "mine.py"})
    import importlib.util
    import py_compile

    (place / "armed.py").write_text(spring(traces / "compiled"))
    cached = importlib.util.cache_from_source(str(copy))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(place / "armed.py"), cfile=cached, invalidation_mode=mode)
    assert run(["config", "validate", "RUN"]) == 0
    assert not list(traces.iterdir())
    copy.unlink()
    copy.symlink_to(place / "armed.py")
    assert run(["config", "validate", "RUN"]) == 2
    assert not list(traces.iterdir())


def test_what_a_run_brings_is_listed_and_trusted_by_a_word(made, place, capsys):
    shutil.copytree(made / "own", place / "RUN")
    assert run(["config", "validate", "RUN"]) == 2
    told = capsys.readouterr().err
    assert "RUN: this run brings code of its own" in told and "--trust" in told
    assert "RUN/plugins/mine-" in told and "(11 lines, SHA-256 " in told
    assert run(["config", "validate", "RUN", "--trust"]) == 0
    assert run(["config", "validate", "RUN"]) == 0
    shutil.copytree(place / "RUN", place / "elsewhere" / "RUN")
    assert run(["config", "validate", "elsewhere/RUN"]) == 0
    [copy] = (place / "RUN" / "plugins").glob("*.py")
    copy.write_text(copy.read_text() + "# changed\n")
    assert run(["config", "validate", "RUN"]) == 2


def test_whoever_started_a_run_has_trusted_its_plugins(made):
    kept = json.loads((made / "trusted.json").read_text())["sha256"]
    assert list(kept) == [find_plugin(str(made / "mine.py")).digest]


def test_a_run_works_wherever_it_is_moved_without_its_plugins_source(made, place, monkeypatch, capsys):
    monkeypatch.setenv("MEMFACTORY_TRUSTED", str(made / "trusted.json"))
    shutil.copytree(made / "own", place / "moved")
    assert "plugins/mine-" in (place / "moved" / "config.yaml").read_text()
    assert run(["eval", "moved", "--output", "out"]) == 0
    assert json.loads((place / "out/results.json").read_text())["models"]["moved"]["datasets"]["held"]
    assert run(["train", "moved", "--resume", "train.steps=2"]) == 0
    assert len(list((place / "moved" / "plugins").glob("*.py"))) == 1


def test_infer_loads_no_plugin_that_it_does_not_use(made, place, capsys):
    shutil.copytree(made / "own", place / "RUN")
    for source in ("RUN", "RUN/final", "RUN/checkpoints/step-1"):
        assert run(["infer", source, "--question", "Who?"]) == 0
    shutil.rmtree(place / "RUN" / "plugins")
    assert run(["infer", "RUN", "--question", "Who?"]) == 0
    assert trusted() == frozenset()


def test_a_changed_plugin_is_told_on_resume(made, place, capsys, caplog, small_model_path):
    shutil.copytree(made / "own", place / "own")
    (place / "mine.py").write_text(REWARD.format(name="mended_one"))
    config = CONFIG.format(plugin="mine.py", model=small_model_path, reward="mended_one")
    (place / "x.yaml").write_text(config)
    text = (place / "own/config.yaml").read_text().replace("always_one", "mended_one")
    (place / "own/config.yaml").write_text(text)
    assert run(["train", "x.yaml", "--resume", "own", "train.steps=2"]) == 0
    assert "own was started with the plugins ['plugins/mine-" in capsys.readouterr().err + caplog.text
    assert len(list((place / "own/plugins").glob("mine-*.py"))) == 2


def test_remote_code_is_never_switched_on_by_a_folder(made, place):
    shutil.copytree(made / "own", place / "RUN")
    trust({find_plugin(str(path)).digest: "" for path in (place / "RUN/plugins").glob("*.py")})
    path = place / "RUN" / "config.yaml"
    path.write_text(path.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    found = load_config("RUN")
    assert not found.config.model.trust_remote_code
    assert any("model.trust_remote_code" in warning and "no folder may" in warning for warning in found.warnings)
    assert load_config("RUN", ["model.trust_remote_code=true"]).config.model.trust_remote_code
    (place / "own.yaml").write_text(OWN)
    assert load_config("own.yaml").config.model.trust_remote_code


def test_a_users_own_config_loads_its_plugins_as_it_is_told(place):
    (place / "own.py").write_text(REWARD.format(name="own_reward"))
    (place / "own.yaml").write_text("plugins: [own.py]\nmodel: tiny\nagent: memory_agent\nenv: longcontext\n")
    load_config("own.yaml")
    assert "own_reward" in REWARDS.names() and trusted() == frozenset()


def test_a_config_based_on_a_run_does_not_trust_its_plugins(made, place, capsys):
    shutil.copytree(made / "own", place / "far" / "RUN")
    path = place / "far" / "RUN" / "config.yaml"
    code = place / "far" / "RUN" / "brought.py"
    code.write_text(spring(place / "trace") + REWARD.format(name="brought_one"))
    text = path.read_text()
    begin = text.index("- plugins/")
    path.write_text(text[:begin] + f"- {code}" + text[text.index("\n", begin) :])
    (place / "mine.yaml").write_text("base: far/RUN/config.yaml\n")
    (place / "linked.yaml").symlink_to(path)
    (place / "links.yaml").write_text("base: linked.yaml\n")
    for config in ("mine.yaml", "links.yaml"):
        assert run(["config", "validate", config]) == 2
        assert "this run brings code of its own" in capsys.readouterr().err
    assert not (place / "trace").exists()
    run(["config", "validate", "mine.yaml", "--trust"])
    assert (place / "trace").exists()


def test_one_content_is_loaded_once_wherever_it_lies(place):
    source = REWARD.format(name="lies_twice")
    (place / "a").mkdir()
    for name in ("a/one.py", "two.py", "lies_twice_module.py"):
        (place / name).write_text(source)
    for name in ("a/one.py", "two.py", "lies_twice_module"):
        load_plugin(find_plugin(name, place), place)
    assert "lies_twice" in REWARDS.names()


def test_a_damaged_list_of_what_is_trusted_is_set_aside(place, caplog):
    for content in (b"\xff", b"[1]", b'{"sha256": 3}'):
        trust_file().parent.mkdir(exist_ok=True)
        trust_file().write_bytes(content)
        assert trusted() == frozenset()
        trust({"a" * 64: "x.py"})
        assert trusted() == {"a" * 64}
        assert (trust_file().parent / "trusted.json.damaged").exists()


def test_a_list_that_cannot_be_written_is_told_and_nothing_else(place, monkeypatch, caplog):
    (place / "file").write_text("")
    monkeypatch.setenv("MEMFACTORY_TRUSTED", str(place / "file" / "trusted.json"))
    trust({"a" * 64: "x.py"})
    assert "your trust in x.py could not be saved" in caplog.text


def test_a_dataset_that_unpickles_is_refused(place):
    (place / "x.yaml").write_text("model: tiny\nagent: memory_agent\nenv: longcontext\n")
    torch.save(1, "rows.pkl")
    words = ["eval", "x.yaml", "data.eval={a: {name: hub, id: pandas, data_files: rows.pkl}}", "--output", "out"]
    assert run(words) != 0


def test_a_package_inside_a_run_is_never_imported(made, place):
    shutil.copytree(made / "own", place / "RUN")
    (place / "RUN" / "inner").mkdir()
    (place / "RUN" / "inner" / "__init__.py").write_text(spring(place / "trace"))
    path = place / "RUN" / "config.yaml"
    text = path.read_text()
    begin = text.index("plugins:")
    path.write_text(text[:begin] + "plugins: [inner]\n" + text[text.index("\n", text.index("- ", begin)) + 1 :])
    os.chdir(place / "RUN")
    with pytest.raises(ConfigError, match=r"never imported|no module of that name"):
        load_config(".", trust=True)
    assert not (place / "trace").exists()
