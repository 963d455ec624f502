"""What is said of a run that learns nothing: one row a cause, and each is told once."""

import re
from types import SimpleNamespace

import pytest
from test_grpo import make  # noqa: F401 - a fixture

from memfactory.errors import MemFactoryError
from memfactory.trainers.diagnosis import Facts, Settings, diagnose, mismatch
from memfactory.trainers.watch import Watch

USUAL = Settings(group_size=8, temperature=1.0, limits={"answer": ("agent.modules.memory.answer_tokens", 12)})
LEARNT = Facts(5, groups=10, valid=4, episodes=80, lowest=0.0, highest=1.0, tokens=99, updates=5, largest_norm=0.3)
FLAT = Facts(5, groups=10, episodes=80, replies={"answer": 80, "update": 80}, cut={"answer": 8}, updates=5)


def facts(base, **changed):
    return Facts(**{**vars(base), **changed})


@pytest.mark.parametrize(
    ("found", "settings", "told"),
    [
        (Facts(), USUAL, None),
        (LEARNT, USUAL, None),
        (facts(LEARNT, skipped=2), USUAL, None),
        (
            facts(FLAT, lowest=0.0, highest=0.0),
            USUAL,
            r"none of the 10 groups had rewards that differ, .* Every reward was 0: use easier data",
        ),
        (facts(FLAT, lowest=1.0, highest=1.0), USUAL, r"Every reward was 1: use harder data"),
        (facts(FLAT, lowest=0.5, highest=0.5), USUAL, r"Every reward was 0\.5: env\.rewards does not distinguish"),
        (facts(FLAT, lowest=0.0, highest=1.0), USUAL, r"always or never solved: raise train\.group_size \(now 8\)"),
        (facts(FLAT, lowest=0.0, highest=1.0), Settings(8, 0.2), r"raise train\.temperature \(now 0\.2\), raise"),
        (facts(FLAT, lowest=0.0, highest=0.0), Settings(1, 1.0), r"raise train\.group_size \(8 is usual\)"),
        (facts(FLAT, lowest=0.0, highest=0.0, overlong=70), USUAL, r"70 of 80 episodes did not fit .*overlong: drop"),
        (facts(FLAT, unknown=80), USUAL, r"No reward is known"),
        (
            facts(FLAT, lowest=0.0, highest=0.0, cut={"answer": 79, "update": 3}),
            USUAL,
            r"79 of 80 replies of 'answer' were cut by length: raise agent\.modules\.memory\.answer_tokens \(now 12\)",
        ),
        (
            facts(FLAT, lowest=0.0, highest=0.0, cut={"answer": 79}, unfinished={"answer": 70}),
            USUAL,
            r"79 of 80 replies of 'answer' were cut by length, 70 of them inside thinking: raise agent\.modules\.memory"
            r"\.answer_tokens \(now 12\), or turn thinking off \(model\.template_options: {enable_thinking: false}\)\.",
        ),
        (
            facts(FLAT, lowest=0.0, highest=0.0, cut={"answer": 79}, unfinished={"answer": 3}),
            USUAL,
            r"79 of 80 replies of 'answer' were cut by length, 3 of them inside thinking: raise [^,]*\(now 12\)\.",
        ),
        (facts(LEARNT, skipped=5, largest_norm=None), USUAL, r"not finite, .*Lower train\.optimizer\.learning_rate"),
        (
            facts(LEARNT, tokens=0, updates=0, replies={"update": 9}, cut={"update": 9}),
            Settings(8, 1.0, mask_truncated=True),
            r"no token was trained on, .*mask_truncated leaves out .*9 of 9 replies of 'update' were cut",
        ),
        (facts(LEARNT, largest_norm=0.0), USUAL, r"the gradient of all 5 optimizer steps was exactly 0"),
    ],
)
def test_every_cause_has_its_sentence_and_its_key(found, settings, told):
    said = diagnose(found, settings)
    if told is None:
        assert said is None
    else:
        assert re.search(told, said), said


def test_facts_of_several_steps_add_up():
    both = facts(FLAT, lowest=0.2, highest=0.4, largest_norm=0.1) + facts(FLAT, lowest=0.0, highest=0.1)
    assert (both.steps, both.groups, both.episodes, both.lowest, both.highest) == (10, 20, 160, 0.0, 0.4)
    assert (both.cut["answer"], both.replies["update"], both.largest_norm) == (16, 160, 0.1)
    assert Facts() + LEARNT == LEARNT


@pytest.mark.parametrize(
    ("difference", "correction", "told"),
    [(None, "none", False), (0.01, "none", False), (0.02, "none", True), (0.02, "token_truncate", False)],
)
def test_a_mismatch_that_nothing_corrects_is_told(difference, correction, told):
    said = mismatch(difference, correction)
    assert (said is not None) == told
    assert not told or "train.loss.sampler_correction: token_truncate" in said


def test_a_run_that_learns_nothing_is_told_why_after_some_steps_and_at_the_end(make, caplog):  # noqa: F811
    make("test_constant", "train.steps=7").train()
    told = [r.getMessage() for r in caplog.records if "nothing was learned" in r.getMessage()]
    assert [text.partition(":")[0] for text in told] == ["after 5 steps", "after 7 steps"]
    assert "Every reward was 0.5: env.rewards does not distinguish" in told[0]
    assert "replies of 'answer' were cut by length: raise agent.modules.memory.answer_tokens (now 6)" in told[1]


def test_the_key_that_is_named_is_one_that_can_be_set(make):  # noqa: F811
    trainer = make("test_constant", "agent.modules.memory.answer_tokens=9")
    assert trainer.watch.settings.limits == {
        "update": ("agent.modules.memory.memory_tokens", 4),
        "answer": ("agent.modules.memory.answer_tokens", 9),
    }


def test_a_mismatch_is_told_once_and_by_the_first_process_alone(caplog):
    update = {"sampler_difference/mean": 0.02, "grad_norm": 1.0, "tokens/trained": 3.0}
    for main, times in ((True, 1), (False, 0)):
        caplog.clear()
        watch = Watch(USUAL, SimpleNamespace(main=main))
        for step in (1, 2):
            watch.step(step, LEARNT, [update])
        assert caplog.text.count("by 0.02 on average (sampler_difference/mean, above 0.01)") == times


def test_a_run_that_learns_is_told_nothing(make, caplog):  # noqa: F811
    make("test_letters", "train.steps=6").train()
    assert "nothing was learned" not in caplog.text and "sampler_difference" not in caplog.text


def test_the_stop_for_want_of_variance_names_the_cause(make):  # noqa: F811
    trainer = make("test_constant", "train.require_variance=true", "train.max_rollouts_per_step=2")
    with pytest.raises(MemFactoryError, match=r"gave no group whose rewards differ.*env\.rewards does not distinguish"):
        trainer.train()
