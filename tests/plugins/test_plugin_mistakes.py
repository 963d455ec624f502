"""A mistake in a user's own component is told with plugin, component, file and line, and not as a bug of ours."""

from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy
import pytest

from memfactory.cli.app import run
from memfactory.errors import MemFactoryError, PluginError
from memfactory.plugins.boundary import as_scalar
from memfactory.plugins.loading import find_plugin, load_plugin

PARTS = """\
from memfactory.data.base import Dataset, Row
from memfactory.dialogue import Agent, Ask, Module
from memfactory.envs.base import Environment
from memfactory.envs.rewards.base import RewardFunction
from memfactory.registry import *
from memfactory.types import Message, Task
"""
MODULE = 'from memfactory.roles import *\n@MODULES.register("mine")\nclass Mine(Reader):\n    """Mine."""\n'
MODULE += '    steps = ("skim",)\n    def dialogue(self, episode):\n'
AGENT = (
    '@AGENTS.register("my_agent")\nclass Mine(Agent):\n    """Mine."""\n    slots = {"memory": "recurrent_memory"}\n'
)
AGENT += "    def dialogue(self, episode):\n"
ENV = '@ENVS.register("my_env")\nclass Mine(Environment):\n    """Mine."""\n    def task(self, row):\n'
REWARD = (
    '@REWARDS.register("my_reward")\nclass Mine(RewardFunction):\n    """Mine."""\n    def score(self, episodes):\n'
)
DATASET = '@DATASETS.register("my_rows")\nclass Mine(Dataset):\n    """Mine."""\n    def rows(self):\n'
ROWS = '{"context": "Ada lives in Oslo.", "input": "Where does Ada live?", "answers": ["Oslo"]}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch, own_components):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    return tmp_path


def told(
    folder,
    capsys,
    source,
    *,
    agent="no_memory",
    env="{name: longcontext, rewards: {em: 1.0}}",
    data="rows.jsonl",
    metric="em",
):
    """What `eval` (which plays, scores and reads) says about a plugin."""
    (folder / "mine.py").write_text(PARTS + source, encoding="utf-8")
    (folder / "x.yaml").write_text(
        f"plugins: [mine.py]\nmodel: tiny\nagent: {agent}\nenv: {env}\ndata: {{eval: {{set: {data}}}}}\n"
        f"train: {{name: grpo, steps: 1}}\neval: {{samples: 1, metrics: [{metric}]}}\n",
        encoding="utf-8",
    )
    code = run(["eval", "x.yaml", "--output", "out"])
    shown = capsys.readouterr().err
    assert code in (1, 2), shown
    assert "Traceback" not in shown and "report" not in shown, shown
    assert "mine.py:" in shown, shown
    return shown


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("        return [1.0] * (len(episodes) + 1)\n", "`score` returned 2 scores for 1 episodes"),
        ("        return []\n", "`score` returned 0 scores for 1 episodes"),
        ("        return [float('nan')]\n", "a score that cannot be used: float nan is not finite"),
        ("        return ['good']\n", "a score that cannot be used: 'good' is not a number"),
        ("        return [{'score': 1}]\n", "is not a number"),
        ("        return [[1.0]]\n", "is not a number"),
        ("        return 1.0\n", "`score` returned float 1.0, not a list with one score for each episode"),
        ("        return None\n", "not a list with one score"),
        ("        episodes.clear()\n        return []\n", "`score` returned 0 scores for 1 episodes"),
        ("        raise SystemExit(0)\n", "failed in scoring at mine.py:11: SystemExit: 0"),
        ("        return [next(iter(()))]\n", "failed in scoring at mine.py:11: StopIteration"),
        ("        return [e.reward for e in episodes]\n", "failed in scoring at mine.py:11: AttributeError"),
    ],
)
def test_what_a_reward_says_is_checked(folder, capsys, body, words):
    shown = told(folder, capsys, REWARD + body, metric="my_reward")
    assert "reward 'my_reward'" in shown and words in shown


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("        episode.answer = 'Oslo'\n", "`dialogue` returned NoneType, not a generator: it never yields"),
        ("        yield 'Where?'\n", "`dialogue` yielded str, not an Ask; write"),
        ("        yield Ask('skim', ({'role': 'user', 'content': 'x'},), 4)\n", "messages hold dict, not Message"),
        ("        yield Ask('skim', 'Where?', 4)\n", "messages must be a tuple of Message, not 'Where?'"),
        ("        yield Ask('skim', (Message('user', None),), 4)\n", "the content of a message must be text"),
        ("        yield Ask('skim', (Message('user', 'x'),), 0)\n", "max_tokens must be a whole number above 0, not 0"),
        ("        yield Ask('skim', (Message('user', 'x'),), 4, '.')\n", "stop must be a tuple of texts, not '.'"),
        ("        yield Ask('skim', (Message('user', 'x\\ud800'),), 4)\n", "half of a surrogate pair as character 1"),
        (
            "        yield from ()\n        return 'Oslo'\n",
            "returned str 'Oslo', not a ParsedAnswer; end it with `return self",
        ),
        ("        yield from ()\n        episode.answer = 'Oslo'\n", "returned NoneType None, not a ParsedAnswer"),
        ("        yield from ()\n        return ParsedAnswer(5)\n", "an answer's text must be text or None, not int 5"),
        (
            "        yield from ()\n        episode.memory = 5\n        return ParsedAnswer('a')\n",
            "left 5 as the episode's `memory`",
        ),
        ("        yield from ()\n        next(iter(()))\n", "at mine.py:14: StopIteration"),
        ("        raise StopIteration\n", "at mine.py:13: StopIteration"),
        ("        yield from ()\n        raise SystemExit(0)\n", "at mine.py:14: SystemExit: 0"),
        ("        yield Ask('skim')\n", "at mine.py:13: TypeError"),
        ("        yield from ()\n        episode.meta['x']\n", "at mine.py:14: AttributeError"),
    ],
)
def test_what_a_module_asks_is_checked(folder, capsys, body, words):
    shown = told(folder, capsys, MODULE + body, agent="{name: memory_agent, modules: {memory: mine}}")
    assert "module 'mine'" in shown and words in shown


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("        yield from ()\n        episode.answer = 5\n", "left 5 as the episode's `answer`, which must be text"),
        ("        self.modules['memory'].play(episode)\n", "`dialogue` returned NoneType, not a generator"),
        (
            "        yield self.modules['memory']\n",
            "`dialogue` yielded RecurrentMemoryModule; an agent plays its modules",
        ),
        ("        yield from self.modules['reader'].play(episode)\n", "at mine.py:12: KeyError: 'reader'"),
    ],
)
def test_what_an_agent_does_is_checked(folder, capsys, body, words):
    shown = told(folder, capsys, AGENT + body, agent="my_agent")
    assert "agent 'my_agent'" in shown and words in shown


ROLES = """\
from memfactory.roles import *
@MODULES.register("mine")
class Mine({role}):
    \"\"\"Mine.\"\"\"
    def dialogue(self, episode, {inputs}):
        yield from ()
        return {result}
"""
BANK = "{name: memory_bank, rewards: {em: 1.0}}"


@pytest.mark.parametrize(
    ("slot", "role", "inputs", "result", "words"),
    [
        ("extractor", "Extractor", "utterances", "None", "returned NoneType None, not a tuple of Candidate"),
        ("extractor", "Extractor", "utterances", "['a']", "returned list ['a'], not a tuple of Candidate"),
        ("extractor", "Extractor", "one, two", "()", "`dialogue` takes (episode, one, two), but its slot gives"),
        ("updater", "Updater", "bank, candidates", "[1]", "an updater changes the bank itself"),
        ("retriever", "Retriever", "bank", "bank", "returned MemoryBank <"),
        ("answerer", "Answerer", "items", "items", "returned tuple (), not a ParsedAnswer"),
    ],
)
def test_what_a_module_returns_is_checked(folder, capsys, slot, role, inputs, result, words):
    (folder / "rows.jsonl").write_text('{"question": "Where?", "answer": "Oslo", "conversation": []}\n')
    source = ROLES.format(role=role, inputs=inputs, result=result)
    if slot in ("extractor", "updater"):
        turns = '[{"role": "user", "content": "Ada lives in Oslo."}]'
        (folder / "rows.jsonl").write_text(f'{{"question": "Where?", "answer": "Oslo", "conversation": {turns}}}\n')
    shown = told(folder, capsys, source, agent=f"{{name: memory_r1, modules: {{{slot}: mine}}}}", env=BANK)
    assert "module 'mine' (mine.py:" in shown and words in shown


@pytest.mark.parametrize("name", ["Mine", "Reader"])
def test_a_module_of_a_shipped_role_derives_from_its_class(folder, capsys, name):
    shown = told(folder, capsys, f'@MODULES.register("mine")\nclass {name}(Module):\n    roles = ("reader",)\n')
    assert (
        "TypeError at" in shown and "a module with the role 'reader' derives from Reader of memfactory.roles" in shown
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "        return Task(id='a', question=row.values['question'], answers=())\n",
            "mine.py:11: KeyError: 'question'",
        ),
        ("        return row.values\n", "`task` returned dict for rows.jsonl line 1, not a Task"),
        ("        return Task(id='a', question='x', answers=(5,))\n", "whose `answers` are (5,), not a tuple of texts"),
        ("        return Task(id='a', question='x', answers='abc')\n", "whose `answers` are 'abc', not a tuple"),
        ("        return Task(id=1, question='x', answers=())\n", "whose `id` is 1, not a text"),
        ("        return Task(id='', question='x', answers=())\n", "ValueError: a task needs an id"),
    ],
)
def test_what_an_environment_makes_of_rows_is_checked(folder, capsys, body, words):
    shown = told(folder, capsys, ENV + body, env="my_env")
    assert "environment 'my_env'" in shown and words in shown


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("        return [{'input': 'x'}]\n", "`rows` gave a dict; write Row(values, source) for each row"),
        ("        return open('nowhere')\n", "failed in reading its rows at mine.py:11: FileNotFoundError"),
        ("        yield 1 / 0\n", "mine.py:11: ZeroDivisionError"),
    ],
)
def test_what_a_dataset_reads_is_checked(folder, capsys, body, words):
    shown = told(folder, capsys, DATASET + body, data="my_rows")
    assert "dataset 'my_rows'" in shown and words in shown


@pytest.mark.parametrize("data", ["my_rows", "{name: mixture, parts: [{data: {name: my_rows}}]}"])
def test_a_dataset_that_cannot_be_made_is_named(folder, capsys, data):
    source = DATASET + "        return []\n\n    def __init__(self, options, base_dir):\n        1 / 0\n"
    words = "dataset 'my_rows' failed when it was made at mine.py:14: ZeroDivisionError"
    assert words in told(folder, capsys, source, data=data)
    assert run(["train", "x.yaml", "train=sft", f"data.train={data}", "--output", "sft"]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def broken(:\n", "is not valid Python: "),
        ("import not_there\n", "ModuleNotFoundError at "),
        ("1 / 0\n", "ZeroDivisionError at "),
        ("raise SystemExit(3)\n", "SystemExit at "),
        ('@MODULES.register\nclass Mine(Module):\n    """Mine."""\n', 'write `.register("its_name")` above it'),
        ('@MODULES.register("mine")\ndef mine():\n    pass\n', "module 'mine' must be a class"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_told_by_file_and_line(folder, capsys, source, words):
    shown = told(folder, capsys, source)
    assert "x.yaml:1: plugins.0: plugin " in shown and words in shown


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            '@MODULES.register("mine")\nclass Mine:\n    """Mine."""\n',
            "must be a subclass of memfactory.dialogue:Module",
        ),
        (
            MODULE.replace("    steps", "    Options = Options\n    steps") + "        yield from ()\n",
            "its Options must derive from ModuleOptions of memfactory.components",
        ),
    ],
)
def test_a_component_of_the_wrong_base_is_refused(folder, capsys, source, words):
    (folder / "mine.py").write_text(PARTS + source, encoding="utf-8")
    text = "plugins: [mine.py]\nmodel: tiny\nagent: {name: memory_agent, modules: {memory: mine}}\nenv: longcontext\n"
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    assert run(["config", "validate", "x.yaml"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (MODULE.partition("    def")[0] + "    def play_it(self): ...\n", "abstract"),
        (
            MODULE.partition("    def")[0] + "    def __init__(self): ...\n    def dialogue(self, episode): ...\n",
            "TypeError",
        ),
    ],
)
def test_a_component_that_cannot_be_made_is_named(folder, capsys, source, words):
    shown = told(folder, capsys, source, agent="{name: memory_agent, modules: {memory: mine}}")
    assert "module 'mine' failed when it was made" in shown and words in shown


def test_a_trainer_that_fails_in_a_step_is_named(folder, capsys):
    source = (
        "from memfactory.trainers.online import OnlineTrainer\n"
        '@TRAINERS.register("my_trainer")\nclass Mine(OnlineTrainer):\n    """Mine."""\n'
        "    from memfactory.config.online import OnlineOptions as Options\n"
        "    def step(self, step):\n        return self.nothing\n"
    )
    (folder / "mine.py").write_text(PARTS + source, encoding="utf-8")
    (folder / "x.yaml").write_text(
        "plugins: [mine.py]\nmodel: {path: tiny, cpu_threads: 1}\nenv: {name: rerank, rewards: {em: 1.0}}\n"
        "agent: {name: memory_rmm, modules: {retriever: linear_reranker}}\n"
        "data: {train: {name: conversations, form: rerank, rows: 2}}\ntrackers: []\n"
        "train: {name: my_trainer, steps: 1}\n",
        encoding="utf-8",
    )
    assert run(["train", "x.yaml", "--output", "out"]) == 1
    shown = capsys.readouterr().err
    assert "trainer 'my_trainer' failed in step 1 at mine.py:13: AttributeError" in shown and "Traceback" not in shown


LEARNT = """\
import torch
from memfactory.policy.advantages.base import AdvantageEstimator
from memfactory.policy.objectives.base import Objective, Parts
"""
OBJECTIVE = (
    LEARNT + '@OBJECTIVES.register("my_loss")\nclass Mine(Objective):\n    """Mine."""\n    def parts(self, terms):\n'
)
ADVANTAGE = LEARNT + '@ADVANTAGES.register("my_advantage")\nclass Mine(AdvantageEstimator):\n    """Mine."""\n'
ADVANTAGE += "    def advantages(self, given):\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("        return terms.log_ratio\n", "`parts` returned Tensor, not Parts(loss, ratio, low, high)"),
        ("        x = terms.log_ratio\n        return Parts(x, x, x, x)\n", "gave as `low` torch.float32 of [2, 3]"),
        (
            "        x = terms.log_ratio\n        return Parts(x.sum(), x, x > 0, x > 0)\n",
            "gave as `loss` torch.float32 of []",
        ),
        ("        return terms.nothing\n", "failed in the loss at mine.py:14: AttributeError"),
    ],
)
def test_what_an_objective_gives_is_checked(folder, body, words):
    torch = pytest.importorskip("torch")
    from memfactory.config.losses import LossOptions
    from memfactory.policy.objective import LossInputs, token_losses

    (folder / "mine.py").write_text(PARTS + OBJECTIVE + body, encoding="utf-8")
    load_plugin(find_plugin("mine.py"))
    numbers, on = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(PluginError) as caught:
        token_losses(numbers, LossInputs(torch.ones(2), on, numbers), LossOptions(objective="my_loss"))
    assert "objective 'my_loss'" in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("        return [1.0]\n", "gave 1 advantages for 2 trajectories"),
        ("        return [float('inf'), 1.0]\n", "gave inf as an advantage: float inf is not finite"),
        ("        return [torch.tensor(1.0), 'x']\n", "gave 'x' as an advantage: 'x' is not a number"),
        ("        return given.nothing\n", "at mine.py:14: AttributeError"),
    ],
)
def test_what_an_advantage_estimator_gives_is_checked(folder, body, words):
    from memfactory.config.grpo import GrpoOptions
    from memfactory.policy.advantages.base import StepRewards, checked_advantages, make_estimator
    from memfactory.types import Group, Reward, Task, Trajectory

    (folder / "mine.py").write_text(PARTS + ADVANTAGE + body, encoding="utf-8")
    load_plugin(find_plugin("mine.py"))
    group = Group(Task("t", "q", ()), tuple(Trajectory(n, (), None, Reward(1.0)) for n in range(2)))
    with pytest.raises(MemFactoryError) as caught:
        estimator = make_estimator(GrpoOptions(advantage="my_advantage"))
        checked_advantages(estimator, StepRewards("update", (0.0, 1.0), (0.0, 1.0), group))
    assert "advantage estimator 'my_advantage'" in str(caught.value) and words in str(caught.value)


ASKS_ON = """\
        ask = Ask('skim', (Message('user', 'x ' * 200_000),), 4)
        try:
            yield ask
        finally:
            yield ask
"""


@pytest.mark.parametrize(
    ("source", "agent", "named"),
    [
        (MODULE, "{name: memory_agent, modules: {memory: mine}}", "module 'mine'"),
        (AGENT, "my_agent", "agent 'my_agent'"),
    ],
)
def test_a_dialogue_that_asks_on_when_it_is_ended_is_named(folder, capsys, source, agent, named):
    shown = told(folder, capsys, source + ASKS_ON, agent=agent)
    assert named in shown and "`dialogue` yielded again after it was closed" in shown


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise SystemExit(0)", "failed in `state` at mine.py:"),
        ("return [1.0]", "`state` returned [1.0]"),
    ],
)
def test_a_module_that_cannot_say_what_it_learnt_is_named(folder, body, words):
    from memfactory.components import ModuleOptions
    from memfactory.registry import MODULES
    from memfactory.trainers.learners import Learners

    learning = MODULE.replace("(Reader)", "(LearningModule, Reader)") + "        yield from ()\n"
    learning += "    def learn(self, episodes): return {}\n    def load_state(self, state): ...\n"
    learning += f"    def state(self): {body}\n"
    (folder / "mine.py").write_text(PARTS + "from memfactory.dialogue import LearningModule\n" + learning)
    load_plugin(find_plugin("mine.py"))
    module = MODULES.get("mine")(ModuleOptions(), None)
    with pytest.raises(PluginError) as caught:
        Learners(SimpleNamespace(modules={"memory": module})).learn([])
    assert "module 'mine'" in str(caught.value) and words in str(caught.value)


def test_any_real_scalar_is_a_reward():
    torch = pytest.importorskip("torch")
    given = [1, True, 0.5, Fraction(1, 2), Decimal("0.5"), numpy.float32(0.5), numpy.int64(2), numpy.array(0.5)]
    given += [torch.tensor(0.5), torch.tensor(2), numpy.bool_(True)]
    found = [as_scalar(value) for value in given]
    assert found == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 2.0, 0.5, 0.5, 2.0, 1.0]
    assert {type(value) for value in found} == {float}
    assert as_scalar(None) is None


@pytest.mark.parametrize("value", ["1", b"1", [1.0], (), {}, 1j, object(), float("inf"), numpy.nan, numpy.zeros(2)])
def test_anything_else_is_no_reward(value):
    with pytest.raises(ValueError, match=r"is not a number|is not finite"):
        as_scalar(value)


def test_an_error_of_our_own_stays_a_bug(folder, capsys, monkeypatch):
    monkeypatch.setattr(
        "memfactory.envs.rewards.answers.AnswerReward.score", lambda self, episodes: 1 / 0, raising=True
    )
    (folder / "x.yaml").write_text(
        "model: tiny\nagent: no_memory\nenv: {name: longcontext, rewards: {em: 1.0}}\ndata: {eval: {set: rows.jsonl}}\n"
    )
    assert run(["eval", "x.yaml", "--output", "out"]) == 1
    assert "Traceback" in capsys.readouterr().err
