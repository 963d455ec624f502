"""Dialogues, the driver that plays many at once, the recurrent memory module, and the text functions below them."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfactory.agents.memory_agent import MemoryAgent
from memfactory.components import ModuleOptions
from memfactory.dialogue import Agent, Ask, Asking, Module, Shared
from memfactory.engines.scripted import END, ScriptedEngine
from memfactory.episode import Episode
from memfactory.errors import ConfigError, DataError, EngineError
from memfactory.modules.recurrent_memory import Prompts, RecurrentMemoryModule, RecurrentMemoryOptions
from memfactory.play import PlaySettings, Sampler, play
from memfactory.registry import Options
from memfactory.seeds import stream_seed
from memfactory.text import after_thinking, chunk_cuts, fill, keep_ends, last_boxed, placeholders
from memfactory.types import Message, Reply, Reward, Sampling, SamplingParams, Task, Turn

FROZEN = PlaySettings(frozen=True)
PROMPTS = Prompts(update="U|{question}|{memory}|{section}", answer="A|{question}|{memory}")


class Letters:
    """A codec whose tokens are single characters."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [(index, index + 1) for index in range(len(text))]


def module(**options: object) -> RecurrentMemoryModule:
    values = {"chunk_tokens": 2, "memory_tokens": 30, "answer_tokens": 40, "empty_memory": "-", "prompts": PROMPTS}
    return RecurrentMemoryModule(RecurrentMemoryOptions.model_validate(values | options), Letters())


def agent(**options: object) -> MemoryAgent:
    return MemoryAgent(Options(), {"memory": module(**options)})


def episode(context: str, question: str = "q", index: int = 0, seed: int = 0) -> Episode:
    return Episode(Task(question + context, question, ("gold",), context=context), index=index, seed=seed)


def remember(messages: Sequence[Message], sampling: Sampling) -> str:
    """Appends the section to the memory, and answers with the memory."""
    kind, _, *rest = messages[-1].content.split("|")
    return "".join(rest) if kind == "U" else f"\\boxed{{{rest[0]}}}"


def played(agent: Agent, episodes: Sequence[Episode], engine: ScriptedEngine, **options) -> list[Episode]:
    return list(play(Sampler(agent, {"policy": engine}), episodes, **options))


# The recurrent memory module


def test_the_memory_is_carried_from_section_to_section_into_the_answer():
    engine = ScriptedEngine(remember)
    (done,) = played(agent(), [episode("abcde")], engine)
    assert [turn.messages[0].content for turn in done.turns] == ["U|q|-|ab", "U|q|-ab|cd", "U|q|-abcd|e", "A|q|-abcde"]
    assert [turn.step for turn in done.turns] == ["update", "update", "update", "answer"]
    assert [sampling.max_tokens for _, sampling in engine.requests] == [30, 30, 30, 40]
    assert (done.memory, done.answer) == ("-abcde", "-abcde")


def test_without_context_the_answer_comes_from_the_empty_memory():
    (done,) = played(agent(), [episode("")], ScriptedEngine(remember))
    assert [turn.messages[0].content for turn in done.turns] == ["A|q|-"]


def test_a_system_message_stands_before_each_prompt():
    prompts = PROMPTS.model_copy(update={"system": "be brief"})
    (done,) = played(agent(prompts=prompts), [episode("ab")], ScriptedEngine(remember))
    assert [turn.messages[0] for turn in done.turns] == [Message("system", "be brief")] * 2


def test_braces_and_placeholders_in_the_text_itself_are_left_alone():
    (done,) = played(agent(chunk_tokens=50), [episode("{memory} \\boxed{x} {y}")], ScriptedEngine(remember))
    assert done.turns[0].messages[0].content == "U|q|-|{memory} \\boxed{x} {y}"


@pytest.mark.parametrize(
    ("truncate", "sections"),
    [
        # Two sections of two tokens: the first two and the last two characters are kept.
        ("center", ["ab", "hi"]),
        ("none", ["ab", "cd", "ef", "gh", "i"]),
    ],
)
def test_a_text_beyond_the_limit_follows_the_declared_rule(truncate, sections):
    assert list(module(max_chunks=2, truncate=truncate).chunks("abcdefghi", "t")) == sections


def test_a_text_beyond_the_limit_can_be_an_error_that_gives_the_numbers():
    with pytest.raises(DataError, match="task 't' has 9 tokens, but max_chunks x chunk_tokens is 2 x 2 = 4"):
        module(max_chunks=2, truncate="error").chunks("abcdefghi", "t")
    assert list(module(max_chunks=2, truncate="error").chunks("abcd", "t")) == ["ab", "cd"]


def test_centre_truncation_never_reads_more_sections_than_allowed():
    class Greedy:
        """Takes the longest of "abc", "aa" and single letters, so cutting out a middle changes how the rest is cut."""

        def offsets(self, text: str) -> list[tuple[int, int]]:
            spans, start = [], 0
            while start < len(text):
                size = next(len(word) for word in ("abc", "aa", text[start]) if text.startswith(word, start))
                spans.append((start, start + size))
                start += size
            return spans

    # Five tokens a, z, z, z, abc; the first and the last together are three: aa, b, c.
    options = RecurrentMemoryOptions(chunk_tokens=1, max_chunks=2)
    assert list(RecurrentMemoryModule(options, Greedy()).chunks("azzzabc", "t")) == ["aa", "bc"]
    # Here the first and the last together are one, aa.
    assert list(RecurrentMemoryModule(options, Greedy()).chunks("azzza", "t")) == ["aa"]


@pytest.mark.parametrize(
    ("reply", "drop", "memory"),
    [
        ("<think>hm</think> new ", True, "new"),
        ("opened by the template</think>new", True, "new"),
        ("<think>never done", True, "-"),
        ("<think>hm</think> new", False, "<think>hm</think> new"),
        (" plain ", True, "plain"),
    ],
)
def test_only_what_follows_the_thinking_becomes_memory(reply, drop, memory):
    (done,) = played(agent(drop_thinking=drop), [episode("ab")], ScriptedEngine(lambda messages, sampling: reply))
    assert done.memory == memory


def test_an_answer_that_is_still_thinking_is_no_answer():
    (done,) = played(agent(), [episode("ab")], ScriptedEngine(lambda messages, sampling: "<think>never done"))
    assert done.answer is None


def test_prompts_must_hold_their_placeholders():
    with pytest.raises(ValueError, match=r"the update prompt lacks \{memory\}, \{section\} or \{chunk\}"):
        Prompts(update="{question}")
    with pytest.raises(ValueError, match=r"the answer prompt lacks \{question\} or \{prompt\}"):
        Prompts(answer="{memory}")
    Prompts(update="{prompt} {memory} {chunk}", answer="{prompt} {memory}")


# The examples in the base classes


@pytest.mark.parametrize("name", ["dialogue", "roles", "seeds"])
def test_the_examples_of_the_base_classes_run(name):
    results = doctest.testmod(importlib.import_module(f"memfactory.{name}"))
    assert results.failed == 0 and results.attempted > 0


# The three interfaces


def test_generate_keeps_trainable_turns_with_the_ids_of_the_reply():
    (done,) = played(agent(), [episode("ab")], ScriptedEngine(remember))
    assert all(turn.trainable for turn in done.turns) and done.step_rewards == {}
    tokens = done.turns[0].reply.tokens
    assert tokens is not None
    assert tokens.prompt_ids == tuple(b"user\nU|q|-|ab\n")
    assert tokens.reply_ids == (*b"-ab", END) and tokens.logprobs == (-1.0,) * 4


def test_rollout_asks_for_the_task_reward_when_the_module_ends_and_credits_its_steps():
    asked = []

    def score(episodes: Sequence[Episode]) -> list[Reward]:
        asked.extend((len(done.turns), done.answer) for done in episodes)
        return [Reward(0.5)]

    (done,) = played(agent(interface="rollout"), [episode("abcd")], ScriptedEngine(remember), score=score)
    assert asked == [(3, "-abcd")]
    assert done.step_rewards == {"update": Reward(0.5), "answer": Reward(0.5)}
    assert all(turn.trainable for turn in done.turns)


def test_rollout_without_an_environment_leaves_the_reward_unknown():
    (done,) = played(agent(interface="rollout"), [episode("ab")], ScriptedEngine(remember))
    assert done.step_rewards == {"update": Reward(None), "answer": Reward(None)}


def test_inference_lets_another_engine_speak_and_trains_nothing():
    policy, judge = ScriptedEngine(remember), ScriptedEngine(remember, tokens=False)
    frozen = agent(interface="inference", engine="judge")
    sampling_params = {"judge": SamplingParams(0.25), "policy": SamplingParams(0.75)}
    (done,) = play(Sampler(frozen, {"policy": policy, "judge": judge}, sampling_params), [episode("ab")])
    assert policy.requests == [] and len(judge.requests) == 2
    assert {sampling.params for _, sampling in judge.requests} == {SamplingParams(0.25)}
    assert [(turn.trainable, turn.reply.tokens) for turn in done.turns] == [(False, None)] * 2


def test_nothing_is_trainable_when_play_is_frozen_so_an_api_may_speak_as_the_policy():
    (done,) = played(
        agent(), [episode("ab")], ScriptedEngine(remember, tokens=False), settings=PlaySettings(frozen=True)
    )
    assert not any(turn.trainable for turn in done.turns)


def test_a_reply_without_ids_cannot_be_trained_on():
    with pytest.raises(ValueError, match="'update' is to be trained on but its reply has no token ids"):
        played(agent(), [episode("ab")], ScriptedEngine(remember, tokens=False))


# The driver


def test_a_slow_episode_does_not_hold_up_the_others():
    def delay(messages: Sequence[Message], sampling: Sampling) -> int:
        return 50 if "|slow|" in messages[-1].content else 0

    engine = ScriptedEngine(remember, delay=delay)
    episodes = [episode("abcd", "slow"), episode("abcd", "fast"), episode("ab", "fast")]
    assert [done.task.id for done in played(agent(), episodes, engine)] == ["fastab", "fastabcd", "slowabcd"]
    # All three begin at once; the second updates go out in the next step, the slow one's is not waited for.
    assert [messages[-1].content for messages, _ in engine.requests] == [
        "U|slow|-|ab", "U|fast|-|ab", "U|fast|-|ab",
        "U|fast|-ab|cd", "A|fast|-ab",
        "A|fast|-abcd",
        "U|slow|-ab|cd",
        "A|slow|-abcd",
    ]  # fmt: skip


def test_at_most_a_window_of_episodes_is_under_way():
    engine = ScriptedEngine(remember)
    done = played(agent(), [episode("ab", str(number)) for number in range(5)], engine, settings=PlaySettings(window=2))
    assert [finished.task.question for finished in done] == ["0", "1", "2", "3", "4"]
    assert [messages[-1].content[:3] for messages, _ in engine.requests[:4]] == ["U|0", "U|1", "A|0", "A|1"]


def seeds(episodes: Sequence[Episode], **options) -> dict[str, int]:
    engine = ScriptedEngine(remember, **options)
    played(agent(), episodes, engine)
    return {messages[-1].content: sampling.seed for messages, sampling in engine.requests}


def test_seeds_depend_on_episode_and_turn_and_not_on_the_order_of_replies():
    def some() -> list[Episode]:
        return [episode("abcd", name, member, seed=7) for member, name in enumerate("xyz")]

    expected = seeds(some())
    assert seeds(some()[::-1]) == seeds(some(), delay=lambda messages, sampling: len(messages[-1].content) % 3)
    assert seeds(some()[::-1]) == expected and len(set(expected.values())) == len(expected) == 9
    assert expected["U|y|-|ab"] == stream_seed(7, 1, 0) and expected["A|y|-abcd"] == stream_seed(7, 1, 2)


def test_a_seed_is_the_same_on_every_machine():
    # printf '1\x1fa' | b2sum -l 64 gives 0d35ca1552f972f7; read as a number and halved.
    assert stream_seed(1, "a") == 475944544596965755
    assert 0 <= stream_seed("") < 2**63


def test_on_turn_is_told_of_every_turn_once_it_is_taken_in():
    seen: list[tuple[str, str, str]] = []

    def on_turn(told: Episode, turn: Turn) -> None:
        seen.append((told.task.question, turn.step, told.memory))

    played(agent(), [episode("abcd")], ScriptedEngine(remember), on_turn=on_turn)
    assert seen == [("q", "update", "-ab"), ("q", "update", "-abcd"), ("q", "answer", "-abcd")]


def test_an_engines_error_ends_the_play_and_nothing_stays_pending():
    def script(messages: Sequence[Message], sampling: Sampling) -> str:
        if "|bad|" in messages[-1].content:
            raise EngineError("down")
        return "fine"

    engine, other = ScriptedEngine(script), ScriptedEngine(script, delay=lambda messages, sampling: 9)
    episodes = [episode("abcd", "good"), episode("ab", "bad"), episode("abcd", "good")]
    with pytest.raises(EngineError, match="down"):
        list(play(Sampler(agent(), {"policy": engine, "judge": other}), episodes))
    assert engine.pending() == other.pending() == 0


def test_an_error_in_a_dialogue_ends_the_play_and_nothing_stays_pending():
    class Broken(Module):
        Options = ModuleOptions

        def dialogue(self, episode: Episode) -> Asking:
            yield Ask("say", (Message("user", "hello"),), 5)
            if episode.index == 1:
                raise ZeroDivisionError("a bug of ours")
            yield Ask("say", (Message("user", "again"),), 5)

    engine = ScriptedEngine(lambda messages, sampling: "yes")
    broken = MemoryAgent(Options(), {"memory": Broken(ModuleOptions(), Letters())})
    with pytest.raises(ZeroDivisionError):
        played(broken, [episode("", index=number) for number in range(3)], engine)
    assert engine.pending() == 0


def test_a_play_that_is_abandoned_leaves_nothing_pending():
    engine = ScriptedEngine(remember, delay=lambda messages, sampling: len(messages[-1].content) - 8)
    playing = play(Sampler(agent(), {"policy": engine}), [episode("ab"), episode("ab", "slower")])
    next(playing)
    assert engine.pending() == 1
    playing.close()
    assert engine.pending() == 0


def test_two_names_for_one_engine_step_it_once():
    class Alternating(Module):
        Options = ModuleOptions

        def dialogue(self, episode: Episode) -> Asking:
            yield Ask("say", (Message("user", "hello"),), 5)

    class Counting(ScriptedEngine):
        steps = 0

        def step(self):
            self.steps += 1
            return super().step()

    engine = Counting(lambda messages, sampling: "yes", delay=lambda messages, sampling: 2)
    modules = [
        Alternating(ModuleOptions(interface="inference", engine=name), Letters()) for name in ("policy", "judge")
    ]

    class Both(Agent):
        def dialogue(self, episode: Episode):
            yield from modules[episode.index].play(episode)

    both = Sampler(Both(Options(), {}), {"policy": engine, "judge": engine})
    done = list(play(both, [episode("", index=number) for number in (0, 1)]))
    assert len(done) == 2 and engine.steps == 3


def test_a_whole_reply_can_be_scripted():
    cut = Reply("so f", "length")
    (done,) = played(
        agent(), [episode("ab")], ScriptedEngine(lambda messages, sampling: cut), settings=PlaySettings(frozen=True)
    )
    assert done.turns[0].reply is cut


# Text


def pieces_of(text: str, offsets: list[tuple[int, int]], size: int) -> list[str]:
    """The chunks of `text`, its spans given in two parts."""
    half = len(offsets) // 2
    cuts, tokens = chunk_cuts(text, [offsets[:half], offsets[half:]], size)
    assert tokens == len(offsets)
    return [text[start:end] for start, end in pairwise(cuts)]


@given(st.text(max_size=80), st.integers(1, 12))
def test_chunks_joined_are_the_text_again(text, size):
    pieces = pieces_of(text, Letters().offsets(text), size)
    assert "".join(pieces) == text
    assert all(len(piece) == size for piece in pieces[:-1]) and all(pieces)


@given(st.text(alphabet="ab 東é🙂", max_size=40), st.integers(1, 6))
def test_chunks_of_a_byte_level_tokenizer_lose_nothing_and_hold_about_their_size(text, size):
    # One token a UTF-8 byte, all bytes of a character with that character's span.
    offsets = [(index, index + 1) for index, letter in enumerate(text) for _ in letter.encode()]
    pieces = pieces_of(text, offsets, size)
    assert "".join(pieces) == text and all(pieces)
    # A character has at most four bytes, so a piece can be three tokens longer.
    assert all(len(piece.encode()) <= size + 3 for piece in pieces)


def test_a_chunk_holds_at_least_one_token():
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        chunk_cuts("abc", [Letters().offsets("abc")], 0)


@given(st.text(max_size=60), st.integers(1, 20))
def test_centre_truncation_keeps_both_ends(text, tokens):
    offsets = Letters().offsets(text)
    kept = keep_ends(text, [offsets[:7], offsets[7:9], offsets[9:]], tokens)
    assert kept == (text if len(text) <= tokens else text[: tokens - tokens // 2] + text[len(text) - tokens // 2 :])


def test_centre_truncation_takes_a_character_of_several_tokens_once():
    # a, four bytes of one character, b: the first three and the last two tokens both hold the character.
    offsets = [(0, 1), *[(1, 2)] * 4, (2, 3)]
    assert keep_ends("a🙂b", [offsets], 5) == "a🙂b"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {Rome}", "Rome"),
        (r"\fbox{Rome}", "Rome"),
        (r"\boxed{1} and \boxed{cut off", "1"),
        (r"\boxed 7$ or so", "7"),
        (r"\boxed{}", ""),
        ("boxed{7}", None),
        (r"\boxed{cut off", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_is_the_answer(text, answer):
    assert last_boxed(text) == answer


BALANCED = st.recursive(
    st.text(alphabet="ab \\$", max_size=4),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=6,
)


@given(st.text(alphabet="xy {", max_size=10), BALANCED, st.text(alphabet="xy }", max_size=10))
def test_what_stands_in_a_box_comes_out_with_its_braces_balanced(before, inside, after):
    assert last_boxed(f"{before}\\boxed{{{inside}}}{after}") == inside


@given(st.text(alphabet="\\boxedf{} 1", max_size=40))
def test_boxes_never_break_on_any_text(text):
    found = last_boxed(text)
    assert found is None or found.count("{") == found.count("}") or "\\boxed " in text


def test_thinking_is_cut_at_its_last_end():
    assert after_thinking("<think>a</think> b </think> c ") == "c"
    assert after_thinking("plain ") == "plain "
    assert after_thinking("<think>a") is None


@given(st.dictionaries(st.sampled_from(["memory", "section", "question"]), st.text(alphabet="{}memory a", max_size=12)))
def test_values_are_never_searched_for_placeholders(values):
    template = "{question}: {memory} {section} \\boxed{}"
    expected = template
    for name in ("question", "memory", "section"):
        expected = expected.replace("{" + name + "}", f"\0{name}\0") if name in values else expected
    for name, value in values.items():
        expected = expected.replace(f"\0{name}\0", value)
    assert fill(template, values) == expected
    assert placeholders(template) == {"question", "memory", "section"}


def test_the_interface_must_be_one_of_the_three():
    with pytest.raises(ValueError, match="'generate', 'rollout' or 'inference'"):
        ModuleOptions.model_validate({"interface": "train"})


# Work that several episodes share, and helpers that fail


class Preface(Agent):
    """Reads the context once for all episodes of a task, then each asks its own question."""

    trained = False

    def read(self, episode: Episode):
        reply = yield Ask("read", (Message("user", f"read {episode.task.context}"),), 10, trainable=self.trained)
        episode.note_reading(len(episode.task.context))
        episode.check("read", 1.0)
        return reply.text

    def dialogue(self, episode: Episode):
        episode.memory = yield Shared(episode.task.context, episode.task, self.read)
        question = f"{episode.task.question} after {episode.memory}"
        reply = yield Ask("answer", (Message("user", question),), 10, engine="helper", trainable=False)
        episode.answer = reply.text


def echo(messages: Sequence[Message], sampling: Sampling) -> str:
    return f"<{messages[-1].content}>"


def prefaced(episodes: Sequence[Episode], policy: ScriptedEngine, helper: ScriptedEngine, **options) -> list[Episode]:
    return list(play(Sampler(Preface(Options(), {}), {"policy": policy, "helper": helper}), episodes, **options))


def test_shared_work_is_played_once_and_its_result_sent_to_each():
    policy, helper = ScriptedEngine(echo), ScriptedEngine(echo)
    done = prefaced([episode("x", q) for q in "abc"] + [episode("y", "d")], policy, helper)
    assert [messages[0].content for messages, _ in policy.requests] == ["read x", "read y"]
    assert {e.task.question: e.answer for e in done} == {
        "a": "<a after <read x>>",
        "b": "<b after <read x>>",
        "c": "<c after <read x>>",
        "d": "<d after <read y>>",
    }
    assert [len(e.turns) for e in done] == [1] * 4
    # One character of context each; the text that shared work read and the checks of its replies count for each.
    assert [(e.reading.read, e.checks, len(e.shared)) for e in done] == [(1, {"read": [1.0]}, 1)] * 4


def test_groups_in_training_share_within_the_group_and_frozen_attempts_by_their_number():
    episodes = [episode("x", q, member, seed) for seed, q in ((1, "a"), (2, "b")) for member in (0, 1)]
    policy = ScriptedEngine(echo)
    prefaced(episodes, policy, ScriptedEngine(echo))
    assert len(policy.requests) == 2  # one a group: their seeds differ
    policy = ScriptedEngine(echo)
    prefaced(episodes, policy, ScriptedEngine(echo), settings=FROZEN)
    assert len(policy.requests) == 2  # one a number: two questions, each attempted twice
    seeds = {sampling.seed for _, sampling in policy.requests}
    again = ScriptedEngine(echo)
    prefaced(episodes[::-1], again, ScriptedEngine(echo), settings=FROZEN)
    assert {sampling.seed for _, sampling in again.requests} == seeds
    other = ScriptedEngine(echo)
    prefaced(episodes, other, ScriptedEngine(echo), settings=PlaySettings(frozen=True, seed=1))
    assert not {sampling.seed for _, sampling in other.requests} & seeds


def test_shared_work_that_asks_for_nothing_is_sent_at_once():
    class Silent(Preface):
        def read(self, episode: Episode):
            yield from ()
            return "known"

    helper = ScriptedEngine(echo)
    engines = {"policy": ScriptedEngine(echo), "helper": helper}
    done = list(play(Sampler(Silent(Options(), {}), engines), [episode("x", "a"), episode("x", "b")]))
    assert [e.answer for e in done] == ["<a after known>", "<b after known>"]


def test_a_thousand_pieces_of_shared_work_that_ask_for_nothing_are_not_nested():
    class Pieces(Preface):
        def read(self, episode: Episode):
            yield from ()
            return "known"

        def dialogue(self, episode: Episode):
            for number in range(1000):
                assert (yield Shared(str(number), episode.task, self.read)) == "known"
            episode.answer = "read"

    engines = {"policy": ScriptedEngine(echo)}
    done = list(play(Sampler(Pieces(Options(), {}), engines), [episode("x", q) for q in "ab"]))
    assert [e.answer for e in done] == ["read", "read"]


def test_trained_work_cannot_be_shared():
    class Trained(Preface):
        trained = True

    engines = {"policy": ScriptedEngine(echo), "helper": ScriptedEngine(echo)}
    with pytest.raises(ConfigError, match="'read' is trained, so it cannot be shared"):
        list(play(Sampler(Trained(Options(), {}), engines), [episode("x")]))
    assert len(list(play(Sampler(Trained(Options(), {}), engines), [episode("x")], PlaySettings(frozen=True)))) == 1


def test_shared_work_and_windows_go_together():
    policy, helper = ScriptedEngine(echo), ScriptedEngine(echo)
    done = prefaced([episode("x", q) for q in "abcde"], policy, helper, settings=PlaySettings(window=2))
    assert sorted(e.answer for e in done) == [f"<{q} after <read x>>" for q in "abcde"]
    assert len(policy.requests) == 1


def out(messages: Sequence[Message], sampling: Sampling) -> str:
    if messages[-1].content.startswith("b"):
        raise EngineError("the helper is down")
    return "fine"


def test_a_helper_that_fails_ends_its_episode_and_no_other():
    done = prefaced([episode("x", q) for q in "abc"], ScriptedEngine(echo), ScriptedEngine(out))
    assert {e.task.question: (e.answer, e.failure) for e in done} == {
        "a": ("fine", None),
        "b": (None, "the helper is down"),
        "c": ("fine", None),
    }
    assert all(e.failure is None for e in done if e.answer)


class Tight(ScriptedEngine):
    """Takes no prompt that holds a b, as a local model takes none beyond its context."""

    def submit(self, key: object, messages: Sequence[Message], sampling: Sampling) -> None:
        if "b" in messages[-1].content:
            raise EngineError("the prompt is too long")
        super().submit(key, messages, sampling)


def test_a_prompt_that_a_helper_does_not_take_ends_its_episode_and_one_that_the_policy_does_not_take_all():
    policy = ScriptedEngine(lambda messages, sampling: "x")
    done = prefaced([episode("x", q) for q in "abc"], policy, Tight(lambda messages, sampling: "fine"))
    assert {e.task.question: e.failure for e in done} == {"a": None, "b": "the prompt is too long", "c": None}
    tight, helper = Tight(echo), ScriptedEngine(echo)
    with pytest.raises(EngineError, match="the prompt is too long"):
        prefaced([episode("x", "a"), episode("b", "b")], tight, helper)
    assert tight.pending() == helper.pending() == 0


def test_a_failure_in_shared_work_ends_all_who_wait_for_it():
    class ByHelper(Preface):
        def read(self, episode: Episode):
            yield Ask("read", (Message("user", "b"),), 10, engine="helper")

    engines = {"policy": ScriptedEngine(echo), "helper": ScriptedEngine(out)}
    done = list(play(Sampler(ByHelper(Options(), {}), engines), [episode("x", q) for q in "pq"]))
    assert [e.failure for e in done] == ["the helper is down"] * 2


def test_an_embedder_that_fails_within_a_dialogue_ends_its_episode():
    class Searching(Preface):
        def dialogue(self, episode: Episode):
            if episode.task.question == "b":
                raise EngineError("the embeddings are down")
            yield from super().dialogue(episode)

    engines = {"policy": ScriptedEngine(echo), "helper": ScriptedEngine(echo)}
    done = list(play(Sampler(Searching(Options(), {}), engines), [episode("x", q) for q in "abc"]))
    assert {e.task.question: e.failure for e in done} == {"a": None, "b": "the embeddings are down", "c": None}
