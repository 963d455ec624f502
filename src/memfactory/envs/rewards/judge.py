"""The reward `judge`: a language model judges the answer. Without a verdict the score is unknown, never 0."""

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
    """The judging engine, one of `engines:`."""
    prompt: str = PROMPT
    """The judge's prompt, with {question}, {answers} (the gold answers, one per line) and {answer}."""
    max_tokens: int = Field(1024, ge=1)
    """The longest reply of the judge in tokens, thinking included."""
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
    """1 if a language model judges the answer right, 0 if wrong; unknown without a verdict."""

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
        """Unknown without gold answers, 0 without an answer; in neither case is the judge asked."""
        cases = [self._case(episode) for episode in episodes]
        open_cases = [case for case in cases if case is not None]
        verdicts = dict(zip(open_cases, self._judge.verdicts(open_cases), strict=True))
        return [self._score(episode, case, verdicts) for episode, case in zip(episodes, cases, strict=True)]

    def _case(self, episode: Episode) -> Case | None:
        """The case for the judge; None if the score is known without it."""
        answer = answer_of(episode, self.options.extract)
        if not episode.task.answers or answer is None or not answer.strip():
            return None
        return Case(episode.task.question, episode.task.answers, answer)

    def _score(self, episode: Episode, case: Case | None, verdicts: Mapping[Case, bool | None]) -> float | None:
        if case is None:
            return 0.0 if episode.task.answers else None
        verdict = verdicts[case]
        return None if verdict is None else float(verdict)
