"""The reward `judge`: a language model says whether the answer is right. What it cannot say is unknown, never 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, field_validator
from typing_extensions import TypeVar

from memfactory.engines.base import Engine
from memfactory.envs.judge import PROMPT, Case, Judge
from memfactory.envs.rewards.answers import ExtractOptions, answer_of
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.errors import ConfigError, unknown
from memfactory.registry import REWARDS
from memfactory.text import placeholders


class JudgeOptions(ExtractOptions):
    """Options of `judge`."""

    engine: str = "judge"
    """Which of `engines:` judges."""
    prompt: str = PROMPT
    """The question to the judge; {question}, {answers} (the gold answers, one a line) and {answer} are filled in."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply of the judge, its thinking included."""
    temperature: float = Field(0.0, ge=0)
    """The judge's sampling temperature."""

    @field_validator("prompt")
    @classmethod
    def _placeholders_are_there(cls, prompt: str) -> str:
        missing = [f"{{{name}}}" for name in ("question", "answers", "answer") if name not in placeholders(prompt)]
        if missing:
            raise ValueError(f"the judge's prompt lacks {', '.join(missing)}")
        return prompt


JudgeT = TypeVar("JudgeT", bound=JudgeOptions, default=JudgeOptions, covariant=True)


@REWARDS.register("judge")
class JudgeReward(RewardFunction[JudgeT]):
    """1 when a language model finds the answer right, 0 when it finds it wrong; unknown when it gives no verdict."""

    asks_a_model = True

    def __init__(self, options: JudgeT, engines: Mapping[str, Engine]) -> None:
        super().__init__(options, engines)
        if options.engine not in engines:
            raise ConfigError(
                f"the reward 'judge' asks an engine: {unknown('engine', options.engine, engines)} "
                f"Describe it under engines.{options.engine}, such as {{kind: openai, model: ..., base_url: ...}}"
            )
        self._judge = Judge(
            engines[options.engine],
            name=options.engine,
            prompt=options.prompt,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
        )

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Without gold answers unknown, without an answer 0; neither is asked about."""
        cases = [self._case(episode) for episode in episodes]
        asked = [case for case in cases if case is not None]
        verdicts = dict(zip(asked, self._judge.verdicts(asked), strict=True))
        return [self._score(episode, case, verdicts) for episode, case in zip(episodes, cases, strict=True)]

    def _case(self, episode: Episode) -> Case | None:
        """What the judge is asked about; None when there is nothing to ask."""
        answer = answer_of(episode, self.options.extract)
        if not episode.task.answers or answer is None or not answer.strip():
            return None
        return Case(episode.task.question, episode.task.answers, answer)

    def _score(self, episode: Episode, case: Case | None, verdicts: Mapping[Case, bool | None]) -> float | None:
        if case is None:
            return 0.0 if episode.task.answers else None
        verdict = verdicts[case]
        return None if verdict is None else float(verdict)
