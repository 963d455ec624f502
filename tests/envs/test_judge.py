"""The judge: strict verdicts, one more try, and unknown for whatever else happens."""

import pytest
from pydantic import ValidationError

from memfactory.engines.scripted import ScriptedEngine
from memfactory.envs.judge import REMINDER, read_verdict
from memfactory.episode import Episode
from memfactory.errors import ConfigError, EngineError
from memfactory.registry import REWARDS
from memfactory.types import Message, Reply, Sampling, Task


def judge(reply, **options):
    engine = ScriptedEngine(reply, tokens=False)
    return REWARDS.get("judge")(REWARDS.options("judge")(**options), {"judge": engine}), engine


def episodes(*answers, golds=("Ada",)):
    return [Episode(Task(f"t{number}", "Who?", golds), answer=answer) for number, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Verdict: yes", True),
        ("verdict:NO.", False),
        (" **Verdict: yes** \n", True),
        ("**Verdict:** no", False),
        ("yes", True),
        ("No.", False),
        ('{"verdict": "Yes"}', True),
        ('{"verdict": false}', False),
        ('```json\n{"verdict": "no"}\n```', False),
        ("<think>Is it? yes</think>\nVerdict: no", False),
        ("<think>Verdict: yes", None),
        ("", None),
        ("yes no", None),
        ("Verdict: yes or no", None),
        ("Verdict: yes\nbecause it is Ada", None),
        ("The answer is right. Verdict: yes", None),
        ("True", None),
        ("1", None),
        ('{"verdict": 1}', None),
        ('{"verdict": ["yes"]}', None),
        ('{"verdict": "yes", "confidence": 0.5}', None),
        ("[" * 100_000, None),
    ],
)
def test_a_verdict_is_the_whole_reply(reply, verdict):
    assert read_verdict(reply) is verdict


def test_verdicts_become_1_and_0():
    reward, _ = judge(lambda messages, sampling: f"Verdict: {'yes' if 'Ada L.' in messages[0].content else 'no'}")
    assert reward.score(episodes("\\boxed{Ada L.}", "\\boxed{Bob}")) == [1.0, 0.0]


def test_the_judge_sees_question_gold_answers_and_the_extracted_answer():
    reward, engine = judge(lambda messages, sampling: "yes", prompt="{question}|{answers}|{answer}", max_tokens=7)
    reward.score(episodes("Not Bob. \\boxed{{answers}}", golds=("Ada", "Lovelace")))
    (((message,), sampling),) = engine.requests
    assert message == Message("user", "Who?|- Ada\n- Lovelace|{answers}")
    assert (sampling.max_tokens, sampling.params.temperature) == (7, 0.0)


def test_an_unclear_reply_is_asked_about_once_more():
    reward, engine = judge(lambda messages, sampling: "Verdict: yes" if len(messages) == 3 else "I think so")
    assert reward.score(episodes("Ada")) == [1.0]
    first, second = (conversation for conversation, _ in engine.requests)
    assert second == (*first, Message("assistant", "I think so"), Message("user", REMINDER))


def test_nonsense_is_unknown_and_asked_again_the_next_time():
    reward, engine = judge(lambda messages, sampling: "perhaps")
    assert reward.score(episodes("Ada")) == [None]
    assert len(engine.requests) == 2
    assert reward.score(episodes("Ada")) == [None]
    assert len(engine.requests) == 4


def test_a_verdict_that_was_cut_off_does_not_count():
    reward, _ = judge(lambda messages, sampling: Reply("yes", "length"))
    assert reward.score(episodes("Ada")) == [None]


def test_an_outage_is_unknown_for_the_answers_it_hits():
    def reply(messages, sampling):
        if "Bob" in messages[0].content:
            raise EngineError("HTTP 500")
        return "yes"

    reward, _ = judge(reply)
    assert reward.score(episodes("Ada", "Bob", "Cleo")) == [1.0, None, 1.0]


def test_a_dead_endpoint_costs_eight_requests_and_says_why(caplog):
    def reply(messages, sampling):
        raise EngineError("connection refused")

    reward, engine = judge(reply)
    answers = [f"answer {number}" for number in range(100)]
    assert reward.score(episodes(*answers)) == [None] * 100
    assert len(engine.requests) == 8
    assert "100 of 100 verdicts are unknown; the first: connection refused" in caplog.text


def test_an_endpoint_that_dies_later_keeps_the_verdicts_so_far():
    said = []

    def reply(messages, sampling):
        if len(said) == 8:
            raise EngineError("connection refused")
        said.append(messages)
        return "yes"

    reward, engine = judge(reply)
    assert reward.score(episodes(*map(str, range(100)))) == [1.0] * 8 + [None] * 92
    assert len(engine.requests) == 8 + 16


def test_equal_answers_are_judged_once():
    reward, engine = judge(lambda messages, sampling: "no")
    assert reward.score(episodes("Bob", "Bob", "\\boxed{Bob}")) == [0.0, 0.0, 0.0]
    assert reward.score(episodes("Bob")) == [0.0]
    assert len(engine.requests) == 1
    reward.score([Episode(Task("t", "Why?", ("Ada",)), answer="Bob")])
    assert len(engine.requests) == 2


def test_no_answer_is_wrong_without_asking_and_no_gold_answer_is_unknown():
    reward, engine = judge(lambda messages, sampling: "yes")
    assert reward.score(episodes(None, "", "  ", "\\boxed{}")) == [0.0] * 4
    assert reward.score(episodes("Ada", None, golds=())) == [None, None]
    assert engine.requests == []


def test_an_engine_that_is_missing_is_told_with_what_there_is():
    with pytest.raises(ConfigError, match="no engine is called 'judge'; did you mean 'judges'"):
        REWARDS.get("judge")(REWARDS.options("judge")(), {"judges": None})


def test_a_prompt_without_its_placeholders_is_refused():
    with pytest.raises(ValidationError, match=r"the judge's prompt lacks \{answers\}, \{answer\}"):
        REWARDS.options("judge")(prompt="Is it right? {question}")


class Plain:
    """An engine that cannot tell which conversation failed."""

    gives_tokens = False

    def __init__(self, reply):
        self._engine = ScriptedEngine(reply, tokens=False)
        self.submit, self.step = self._engine.submit, self._engine.step
        self.pending, self.cancel, self.close = self._engine.pending, self._engine.cancel, self._engine.close


def test_an_engine_that_is_speaking_in_the_episodes_cannot_judge_them():
    engine = Plain(lambda messages, sampling: "yes")
    reward = REWARDS.get("judge")(REWARDS.options("judge")(), {"judge": engine})
    assert reward.score(episodes("Ada")) == [1.0]
    engine.submit("mine", (Message("user", "x"),), Sampling(5))
    with pytest.raises(ConfigError, match="give the judge an engine of its own"):
        reward.score(episodes("Bob"))
    assert engine.pending() == 1
