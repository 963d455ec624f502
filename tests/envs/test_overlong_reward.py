"""The soft overlong penalty of DAPO, with the values of its equation."""

import pytest
from pydantic import ValidationError

from memfactory.envs.rewards.overlong import Overlong, OverlongOptions
from memfactory.episode import Episode
from memfactory.types import Reply, Task, Tokens, Turn


def turn(step: str, tokens: int, *, trainable: bool = True) -> Turn:
    ids = tuple(range(tokens))
    return Turn(step, (), Reply("", "stop", Tokens((1,), ids, (-1.0,) * tokens)), trainable)


def score(*turns: Turn, frozen: bool = False, **options: object) -> float | None:
    episode = Episode(Task(id="t", question="q", answers=()), turns=list(turns), frozen=frozen)
    (found,) = Overlong(OverlongOptions(limit=100, buffer=20, **options), {}).score([episode])
    return found


@pytest.mark.parametrize(("tokens", "expected"), [(10, 0), (80, 0), (90, -0.5), (100, -1), (130, -1)])
def test_the_penalty_grows_over_the_last_tokens(tokens: int, expected: float) -> None:
    assert score(turn("answer", tokens)) == expected


def test_the_replies_of_trained_or_named_steps_count() -> None:
    turns = [turn("update", 90), turn("answer", 70), turn("judge", 100, trainable=False)]
    assert score(*turns) == -0.25
    assert score(*turns, steps=("update",)) == -0.5
    # In evaluation nothing is trainable.
    assert score(turn("update", 90, trainable=False), frozen=True) == -0.5


def test_without_token_counts_the_penalty_is_unknown() -> None:
    assert score(Turn("answer", (), Reply("long", "stop"), False), frozen=True) is None
    assert score() == 0


def test_a_buffer_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ValidationError, match="begin below 0 tokens"):
        OverlongOptions(limit=10, buffer=20)
