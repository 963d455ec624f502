"""Engines beside the policy's: cached greedy replies, models of their own, outages that leave rewards unknown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.build import build_runtime
from memfactory.components import POLICY, ModuleOptions
from memfactory.config import load_config
from memfactory.dialogue import Agent, Ask, Module
from memfactory.engines.base import sample, sample_or_errors
from memfactory.engines.cached import CachedEngine
from memfactory.engines.scripted import ScriptedEngine
from memfactory.errors import ConfigError, EngineError
from memfactory.model.loading import load_model
from memfactory.model.options import ModelConfig
from memfactory.plan.footprint import peak_bytes
from memfactory.plan.plan import make_plan
from memfactory.play import Sampler
from memfactory.registry import Options
from memfactory.rollout import rollout
from memfactory.types import Message, Reply, Reward, Sampling, SamplingParams, Task

GREEDY = SamplingParams(0.0)


def said(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def echo(messages, sampling):
    return f"re {messages[-1].content}"


def steps(engine):
    """Everything that the engine has to give, by key."""
    found = {}
    while engine.pending():
        found.update(engine.step())
    return found


def texts(outcomes):
    return [str(outcome) if isinstance(outcome, EngineError) else outcome.text for outcome in outcomes]


# Cached replies


def test_equal_greedy_conversations_are_sampled_once_for_any_seed():
    inner = ScriptedEngine(echo)
    engine = CachedEngine(inner)
    for number in range(3):
        engine.submit(number, said("a"), Sampling(5, GREEDY, seed=number))
    engine.submit("other", said("b"), Sampling(5, GREEDY))
    engine.submit("longer", said("a"), Sampling(6, GREEDY))
    assert engine.pending() == 5
    found = steps(engine)
    assert {key: reply.text for key, reply in found.items()} == {0: "re a", 1: "re a", 2: "re a", "other": "re b",
                                                                "longer": "re a"}  # fmt: skip
    assert len(inner.requests) == 3
    engine.submit("again", said("a"), Sampling(5, GREEDY, seed=9))
    assert engine.pending() == 1
    assert steps(engine)["again"] == found[0] and len(inner.requests) == 3


def test_replies_that_are_drawn_at_random_are_drawn_each_time():
    inner = ScriptedEngine(lambda messages, sampling: str(sampling.seed))
    engine = CachedEngine(inner)
    for number in (1, 2, 1):
        engine.submit(len(inner.requests), said("a"), Sampling(5, SamplingParams(0.5), seed=number))
    assert [reply.text for reply in steps(engine).values()] == ["1", "2", "1"]
    assert [sampling.seed for _, sampling in inner.requests] == [1, 2, 1]


def test_a_failure_reaches_all_who_waited_and_is_asked_about_again():
    down = [True]

    def reply(messages, sampling):
        if down:
            raise EngineError("down")
        return "up"

    inner = ScriptedEngine(reply)
    engine = CachedEngine(inner)
    assert texts(sample_or_errors(engine, [(said("a"), Sampling(5, GREEDY))] * 2)) == ["down", "down"]
    down.clear()
    assert texts(sample(engine, [(said("a"), Sampling(5, GREEDY))])) == ["up"]
    assert len(inner.requests) == 2


def test_it_can_be_asked_on_the_side_of_pending_conversations():
    inner = ScriptedEngine(echo, delay=lambda messages, sampling: 0 if messages[-1].content == "soon" else 3)
    engine = CachedEngine(inner)
    engine.submit("mine", said("soon"), Sampling(5, GREEDY))
    engine.submit("yours", said("late"), Sampling(5, GREEDY))
    assert texts(sample(engine, [(said("late"), Sampling(5, GREEDY)), (said("soon"), Sampling(5, GREEDY))])) == [
        "re late",
        "re soon",
    ]
    assert engine.pending() == 2
    assert {key: reply.text for key, reply in engine.step()} == {"mine": "re soon", "yours": "re late"}
    assert len(inner.requests) == 2


class Dying(ScriptedEngine):
    """An engine that cannot go on at all."""

    def step(self):
        raise EngineError("out of memory")


def test_an_engine_that_fails_as_a_whole_leaves_nothing_pending():
    engine = CachedEngine(Dying(echo))
    assert texts(sample_or_errors(engine, [(said("a"), Sampling(5, GREEDY))])) == ["out of memory"]
    assert engine.pending() == 0
    engine.submit("mine", said("a"), Sampling(5, GREEDY))
    with pytest.raises(EngineError, match="out of memory"):
        sample_or_errors(engine, [(said("b"), Sampling(5, GREEDY))])
    assert engine.pending() == 0


def test_what_was_cancelled_is_asked_anew():
    inner = ScriptedEngine(echo)
    engine = CachedEngine(inner)
    engine.submit(1, said("a"), Sampling(5, GREEDY))
    engine.cancel()
    assert engine.pending() == inner.pending() == 0
    engine.submit(2, said("a"), Sampling(5, GREEDY))
    assert list(steps(engine)) == [2] and len(inner.requests) == 2


QUESTIONS = st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0]), st.integers(0, 2))


@given(st.lists(st.one_of(QUESTIONS, st.none()), max_size=30))
@settings(max_examples=200, deadline=None)
def test_every_conversation_gets_the_reply_that_it_would_get_alone(actions):
    def reply(messages, sampling):
        return f"{messages[-1].content} {sampling.seed if sampling.params.temperature else '-'}"

    inner = ScriptedEngine(reply, delay=lambda messages, sampling: ord(messages[-1].content) % 3)
    engine = CachedEngine(inner)
    expected, found = {}, {}
    for number, action in enumerate(actions):
        if action is None:
            found.update(engine.step())
            continue
        text, temperature, seed = action
        engine.submit(number, said(text), Sampling(5, SamplingParams(temperature), seed=seed))
        expected[number] = f"{text} {seed if temperature else '-'}"
        assert engine.pending() == len(expected) - len(found)
    found.update(steps(engine))
    assert {key: outcome.text for key, outcome in found.items()} == expected
    greedy = [text for text, temperature, _ in filter(None, actions) if not temperature]
    drawn = [action for action in actions if action and action[1]]
    assert len(inner.requests) == len(set(greedy)) + len(drawn)


# In a rollout


class Reader(Module):
    """Asks the policy for a note and a frozen reader for the answer."""

    steps = ("read",)

    def dialogue(self, episode):
        reply = yield Ask("read", said(f"read {episode.task.question}"), 8)
        episode.answer = reply.text


class Writer(Module):
    steps = ("write",)

    def dialogue(self, episode):
        reply = yield Ask("write", said(f"write {episode.task.question}"), 8)
        episode.memory = reply.text


class NotesAgent(Agent):
    def dialogue(self, episode):
        yield from self.modules["writer"].play(episode)
        yield from self.modules["reader"].play(episode)


FROZEN = ModuleOptions(interface="inference", engine="reader")
NOTES = NotesAgent(Options(), {"writer": Writer(ModuleOptions(), None), "reader": Reader(FROZEN, None)})


class Right:
    """Rewards 1 for any answer, and leaves attempts that failed unknown as environments do."""

    def score(self, episodes):
        return [Reward(1.0 if episode.failure is None else None) for episode in episodes]


def noted(tasks, reader, group_size=8):
    engines = {POLICY: ScriptedEngine(echo), "reader": CachedEngine(reader)}
    sampling_params = {POLICY: SamplingParams(), "reader": GREEDY}
    sampler = Sampler(NOTES, engines, sampling_params)
    return rollout(sampler, Right(), tasks, group_size=group_size, seeds=[3] * len(tasks))


def test_eight_rollouts_with_equal_reader_prompts_ask_the_reader_once():
    reader = ScriptedEngine(echo)
    (group,) = noted([Task("t", "who?", ("x",))], reader)
    assert len(reader.requests) == 1
    assert [trajectory.answer for trajectory in group.trajectories] == ["re read who?"] * 8
    assert [turn.trainable for turn in group.trajectories[7].turns] == [True, False]


def test_episodes_ended_by_an_engines_outage_have_an_unknown_reward(caplog):
    def reply(messages, sampling):
        if "b?" in messages[-1].content:
            raise EngineError("the reader is down")
        return "fine"

    first, second = noted([Task("a", "a?", ("x",)), Task("b", "b?", ("x",))], ScriptedEngine(reply), group_size=2)
    assert [trajectory.reward.total for trajectory in first.trajectories] == [1.0, 1.0]
    assert [trajectory.reward.total for trajectory in second.trajectories] == [None, None]
    assert "2 of 4 episodes ended early, because an engine failed" in caplog.text
    assert "the first: the reader is down" in caplog.text


# Helpers as configured


def written(tmp_path, engines, more=""):
    (tmp_path / "run.yaml").write_text(
        "agent: {name: memory_agent, interface: inference, engine: reader}\n"
        "env: {name: longcontext, rewards: {boxed_em: 1.0}}\n"
        f"model: {{path: tiny, device: cpu}}\nengines: {engines}\n{more}"
    )
    return tmp_path / "run.yaml"


def weights(engine):
    return engine._forward._model


def test_an_engines_own_model_is_frozen_and_not_the_policys(tmp_path, small_model_path):
    own = f"{{path: '{small_model_path}', device: cpu}}"
    engines = (
        f"{{reader: {{kind: hf, model: {own}, temperature: 0.5, top_p: 0.25}}, "
        f"judge: {{kind: hf, model: {own}}}, mirror: {{kind: hf, temperature: 0.75}}}}"
    )
    stack = build_runtime(load_config(written(tmp_path, engines)), training=True)
    reader = stack.engines["reader"]
    assert isinstance(reader, CachedEngine)
    assert weights(reader._engine) is not stack.model
    assert not any(parameter.requires_grad for parameter in weights(reader._engine).parameters())
    assert any(parameter.requires_grad for parameter in stack.model.parameters())
    # Sampling parameters apart the two are one, and so are the policy and what mirrors it.
    assert stack.engines["judge"] is reader and stack.engines["mirror"] is stack.engines[POLICY]
    assert stack.sampling_params == {
        "reader": SamplingParams(0.5, 0.25),
        "judge": SamplingParams(0.0),
        "mirror": SamplingParams(0.75),
    }
    (outcome,) = sample(reader, [(said("The code of Alice"), Sampling(4, GREEDY))])
    assert isinstance(outcome, Reply) and outcome.tokens is not None
    stack.close()


def test_the_plan_counts_the_weights_of_each_engine_once(tmp_path, small_model_path):
    own = f"{{path: '{small_model_path}', device: cpu}}"
    engines = (
        f"{{reader: {{kind: hf, model: {own}}}, judge: {{kind: hf, model: {own}, temperature: 1}}, "
        f"half: {{kind: hf, model: {{path: '{small_model_path}', device: cpu, dtype: bfloat16}}}}, "
        "mirror: {kind: hf}}"
    )
    (tmp_path / "rows.json").write_text('[{"context": "a b", "input": "q?", "answers": ["a"]}]')
    more = "train: grpo_single_gpu\ndata: {train: rows.json}\n"
    plan = make_plan(load_config(written(tmp_path, engines, more), ["agent.interface=generate", "agent.engine=policy"]))
    parameters = sum(
        p.numel() for p in load_model(ModelConfig(path=str(small_model_path)), training=False).parameters()
    )
    # Four bytes for the model that two names share, two for the one in half precision.
    assert plan.memory["frozen models"] == 6 * parameters
    # While they decode, the frozen engine in float32 has a copy of its weights too.
    uncopied = written(tmp_path, engines.replace("kind: hf, model", "kind: hf, packed_weights_gib: 0, model"), more)
    without = make_plan(load_config(uncopied, ["agent.interface=generate", "agent.engine=policy"]))
    assert plan.memory["caches of frozen models"] - without.memory["caches of frozen models"] == 4 * parameters
    assert peak_bytes(plan.memory) - peak_bytes({**plan.memory, "frozen models": 0}) == 6 * parameters


def test_a_local_engine_stands_beside_a_policy_at_an_endpoint(tmp_path, small_model_path):
    api = "engine: {kind: openai, model: m, base_url: 'http://h.invalid/v1', api_key_env: '', tokenizer: tiny}"
    engines = f"{{reader: {{kind: hf, model: {{path: '{small_model_path}', device: cpu}}}}}}"
    stack = build_runtime(load_config(written(tmp_path, engines, api)), training=False)
    assert len(sample(stack.engines["reader"], [(said("hello"), Sampling(2, GREEDY))])) == 1
    stack.close()


def test_an_engines_model_may_be_a_name_beside_the_config(tmp_path, small_model_path, monkeypatch):
    (tmp_path / "weights").symlink_to(small_model_path)
    path = written(tmp_path, "{reader: {kind: hf, model: weights}, judge: {kind: hf, model: tiny}}")
    monkeypatch.chdir("/")
    resolved = load_config(path, command="infer")
    assert resolved.config.engines["reader"].model.path == str(small_model_path)
    assert resolved.config.engines["judge"].model.path == "tiny"
    (tmp_path / "again.yaml").write_text(resolved.to_yaml())
    assert load_config(tmp_path / "again.yaml").config == resolved.config


@pytest.mark.parametrize(
    ("engines", "more", "told"),
    [
        ("{}", "engine: {kind: hf, model: {path: tiny}}", r"engine.model: the policy's model is the section `model:`"),
        ("{reader: {kind: hf, model: ./none}}", "", r"engines.reader.model.path: there is no folder './none'"),
        ("{reader: {kind: hf, model: {device: gpu}}}", "", r"engines.reader.model.device: expected auto, cpu"),
        ("{reader: {kind: hf, model: {pth: x}}}", "", r"engines.reader.model.pth: .*did you mean 'path'"),
    ],
)
def test_mistakes_in_an_engines_model_are_reported_at_their_line(tmp_path, engines, more, told):
    with pytest.raises(ConfigError, match=told):
        load_config(written(tmp_path, engines, more), command="infer")


def test_the_model_of_an_unused_engine_need_not_exist(tmp_path):
    load_config(written(tmp_path, "{reader: {kind: hf}, judge: {kind: hf, model: ./none}}"), command="infer")
