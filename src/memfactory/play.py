"""The driver: plays the dialogues of all episodes over the engines at once and never waits for the slowest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from memfactory.components import POLICY
from memfactory.dialogue import Agent, Ask, Dialogue, ScoreRequest, Shared, as_generator, check_left, close
from memfactory.engines.base import Engine
from memfactory.episode import Episode
from memfactory.errors import ConfigError, EngineError, PromptTooLong, RequestRefused
from memfactory.plugins.boundary import broken, guarded
from memfactory.seeds import stream_seed
from memfactory.types import Reply, Reward, Sampling, SamplingParams, Turn

REFUSALS = 8
"""So many refusals in a row, with no reply in between, mean that the policy's engine is set up wrongly."""
Score = Callable[[Sequence[Episode]], list[Reward]]
OnTurn = Callable[[Episode, Turn], None]


@dataclass(frozen=True)
class Sampler:
    """An agent, its engines by name, and the sampling parameters of each engine.

    An engine that is not in `sampling_params` samples from the model's own distribution.
    """

    agent: Agent
    engines: Mapping[str, Engine]
    sampling_params: Mapping[str, SamplingParams] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class PlaySettings:
    """How episodes are played.

    `frozen`: no turn is trainable (evaluation, inference), so an engine without token ids may be the policy.
    `seed` names the random streams of the work that frozen episodes share.
    `window`: at most so many episodes are under way at one time, so the first end long before the last begin.
    `keep_prompts`: False drops the prompt of every turn of a frozen episode, so that an episode's size does not grow
    with the text it reads.
    """

    frozen: bool = False
    seed: int = 0
    window: int | None = None
    keep_prompts: bool = True


def play(
    sampler: Sampler,
    episodes: Sequence[Episode],
    settings: PlaySettings = PlaySettings(),
    *,
    score: Score | None = None,
    on_turn: OnTurn | None = None,
) -> Iterator[Episode]:
    """Play every episode to its end and yield each as it finishes; the slowest never holds up the others.

    An ask goes to its engine at once, and every reply goes back to its dialogue as soon as it is ready.
    `score` answers the requests of modules played through `rollout`; without it their reward is unknown. `on_turn` is
    called with every finished turn, those of shared work too, after the dialogue has received the reply.

    An engine other than the policy's (or an embedder) that fails ends the episode with a `failure`, and so does a
    request that the policy's engine refuses, such as a prompt beyond the context. All other errors of the policy's
    engine, REFUSALS refusals in a row and errors of a dialogue propagate, after every engine has cancelled its pending
    requests.
    """
    return _Play(sampler, episodes, settings, score, on_turn).run()


def _share(agent: type, wanted: object) -> Shared:
    """What an agent's dialogue yielded beside asks, which must be work to share."""
    if isinstance(wanted, Shared):
        return wanted
    hint = "an agent plays its modules by `yield from self.modules[slot].play(episode)`"
    raise broken(agent, "dialogue", f"yielded {type(wanted).__name__}; {hint}")


@dataclass
class _Work:
    """One dialogue under way: an episode's own, or one that several episodes wait for (`wanted_by`)."""

    episode: Episode
    dialogue: Dialogue
    shared: str | None = None
    wanted_by: list[_Work] = field(default_factory=list)
    begun: bool = False
    ended: bool = False
    failure: EngineError | None = None


class _Play:
    """The state of one call of `play`."""

    def __init__(
        self,
        sampler: Sampler,
        episodes: Sequence[Episode],
        settings: PlaySettings,
        score: Score | None,
        on_turn: OnTurn | None,
    ) -> None:
        self.engines = sampler.engines
        self.sampling_params = sampler.sampling_params
        self.settings = settings
        self.score = score
        self.keep_prompts = settings.keep_prompts or not settings.frozen
        self.on_turn = on_turn
        agent = sampler.agent
        self.agent = type(agent)
        self.components = (self.agent, *(type(module) for module in agent.modules.values()))
        with guarded(*self.components):
            self.upcoming = deque(_Work(episode, as_generator(agent, agent.dialogue(episode))) for episode in episodes)
        self.waiting: dict[int, tuple[_Work, Ask]] = {}
        self.shared: dict[str, _Work] = {}
        self.under_way = 0
        self.submitted = 0
        self.refused = 0

    def run(self) -> Iterator[Episode]:
        try:
            yield from self._admit()
            while self.waiting:
                for key, reply in list(_ready(self.engines, {ask.engine for _, ask in self.waiting.values()})):
                    yield from self._receive(key, reply)
                yield from self._admit()
        finally:
            if self.waiting:
                for engine in set(self.engines.values()):
                    engine.cancel()

    def _admit(self) -> Iterator[Episode]:
        while self.upcoming and (self.settings.window is None or self.under_way < self.settings.window):
            work = self.upcoming.popleft()
            work.episode.frozen = self.settings.frozen
            self.under_way += 1
            yield from self._advance(work, None)

    def _advance(self, work: _Work, value: Reply | Reward | Episode | None) -> Iterator[Episode]:
        """Send `value` into a dialogue and see to what it wants next; the episodes that have ended by it."""
        while True:
            if isinstance(value, Episode):
                work.episode.shared.append(value)
            try:
                with guarded(*self.components, doing=f"on the task {work.episode.task.id!r}", letting=(StopIteration,)):
                    wanted = next(work.dialogue) if value is None else work.dialogue.send(value)
            except StopIteration:
                check_left(self.agent, work.episode)
                yield from self._end(work)
                return
            except EngineError as error:
                # What a dialogue asks by itself, such as an embedder's endpoint, is a helper too.
                yield from self._end(work, error)
                return
            if isinstance(wanted, Ask):
                break
            if isinstance(wanted, ScoreRequest):
                value = self.score([work.episode])[0] if self.score else Reward(None)
                continue
            part = self._part(work, _share(self.agent, wanted))
            if not part.begun:
                # Before anyone waits for it: parts that ask for nothing end here one by one, not one in another.
                part.begun = True
                yield from self._advance(part, None)
            if not part.ended:
                part.wanted_by.append(work)
                return
            if part.failure is not None:
                yield from self._end(work, part.failure)
                return
            value = part.episode
        if work.shared is not None and wanted.trainable and not self.settings.frozen:
            raise ConfigError(f"the step {wanted.step!r} is trained, so it cannot be shared by several episodes")
        yield from self._submit(work, wanted)

    def _part(self, work: _Work, wanted: Shared) -> _Work:
        """The shared work that `wanted` names, there already or new. In training a group has its own."""
        episode = work.episode
        seed, index = (self.settings.seed, episode.index) if episode.frozen else (episode.seed, 0)
        key = f"{wanted.key} {seed} {index}"
        if key not in self.shared:
            scratch = Episode(wanted.task, index, stream_seed("shared", key), frozen=episode.frozen)
            self.shared[key] = _Work(scratch, wanted.dialogue(scratch), key)
        return self.shared[key]

    def _submit(self, work: _Work, ask: Ask) -> Iterator[Episode]:
        """Hand an ask to its engine; the episodes that end because it takes no such prompt."""
        episode = work.episode
        stream = stream_seed(episode.seed, episode.index, len(episode.turns))
        self.submitted += 1
        sampling_params = self.sampling_params.get(ask.engine, SamplingParams())
        sampling = Sampling(ask.max_tokens, sampling_params, ask.stop, stream)
        try:
            self.engines[ask.engine].submit(self.submitted, ask.messages, sampling)
        except EngineError as error:
            yield from self._fail(work, ask, error)
            return
        self.waiting[self.submitted] = work, ask

    def _receive(self, key: int, reply: Reply | EngineError) -> Iterator[Episode]:
        work, ask = self.waiting.pop(key)
        if isinstance(reply, EngineError):
            yield from self._fail(work, ask, reply)
            return
        if self._is_policy(ask.engine):
            self.refused = 0
        turn = Turn(ask.step, ask.messages, reply, ask.trainable and not self.settings.frozen, engine=ask.engine)
        work.episode.turns.append(turn if self.keep_prompts else turn.without_prompt())
        ended = list(self._advance(work, reply))
        bank = work.episode.bank
        work.episode.changed_times.append(0 if bank is None else bank.changed_times)
        if self.on_turn:
            self.on_turn(work.episode, turn)
        yield from ended

    def _fail(self, work: _Work, ask: Ask, error: EngineError) -> Iterator[Episode]:
        """`ask` has no reply: what waited for it ends, unless the policy's engine cannot be asked anything."""
        if self._is_policy(ask.engine) and not isinstance(error, PromptTooLong):
            self.refused += 1
            if not isinstance(error, RequestRefused) or self.refused == REFUSALS:
                raise error
        yield from self._end(work, error)

    def _is_policy(self, engine: str) -> bool:
        return self.engines[engine] is self.engines[POLICY]

    def _end(self, work: _Work, failure: EngineError | None = None) -> Iterator[Episode]:
        """A dialogue has ended: those who wait for it go on, or it is an episode that has been played."""
        work.ended = True
        if failure is not None:
            with guarded(*self.components, doing=f"on the task {work.episode.task.id!r}, which could not be played on"):
                close(self.agent, work.dialogue)
            work.failure = failure
            work.episode.failure, work.episode.overlong = str(failure), isinstance(failure, PromptTooLong)
        if work.shared is None:
            self.under_way -= 1
            yield work.episode
            return
        for other in work.wanted_by:
            if failure is not None:
                yield from self._end(other, failure)
            else:
                yield from self._advance(other, work.episode)


def _ready(engines: Mapping[str, Engine], wanted: set[str]) -> Iterator[tuple[Any, Reply | EngineError]]:
    """The replies that every engine with pending work has ready, each engine stepped once."""
    stepped: list[Engine] = []
    for name in sorted(wanted):
        engine = engines[name]
        if not any(engine is other for other in stepped):
            stepped.append(engine)
            yield from engine.step()
