"""The driver: plays the dialogues of all episodes at once over the engines, and never waits for the slowest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
"""After so many refusals in a row, without a reply in between, the policy's engine is taken to be set up wrongly."""
Score = Callable[[Sequence[Episode]], list[Reward]]


def _share(agent: type, wanted: object) -> Shared:
    """What an agent's dialogue yielded beside asks, which must be work to share."""
    if isinstance(wanted, Shared):
        return wanted
    hint = "an agent plays its modules by `yield from self.modules[slot].play(episode)`"
    raise broken(agent, "dialogue", f"yielded {type(wanted).__name__}; {hint}")


def play(
    agent: Agent,
    episodes: Sequence[Episode],
    engines: Mapping[str, Engine],
    *,
    decodings: Mapping[str, SamplingParams] | None = None,
    score: Score | None = None,
    frozen: bool = False,
    seed: int = 0,
    window: int | None = None,
    keep_prompts: bool = True,
    on_turn: Callable[[Episode, Turn], None] | None = None,
) -> Iterator[Episode]:
    """Play every episode to its end and yield each as it finishes; the slowest never holds up the others.

    An ask goes to its engine at once; whichever replies are ready are sent back into their dialogues. With `frozen`
    nothing is marked trainable (evaluation, inference), so an engine without token ids may speak as the policy.
    With `window` at most so many episodes are under way at one time, so the first end long before the last begin.
    Without `keep_prompts` frozen episodes keep of each turn what was said and its lengths, so that what they hold does
    not grow with what they read.
    `decodings` says how each engine's replies are drawn (default: the model's own distribution); `seed` names the
    random streams of work that frozen attempts share. `score` answers the requests of modules played through
    `rollout`; without it they are sent an unknown reward. `on_turn` is told of every finished turn, shared ones too,
    once the dialogue has taken it in. A helper engine (or an embedder) that fails ends that episode with a `failure`,
    and so does a request that the policy's engine refuses, such as a prompt beyond the context. Other errors of the
    policy's engine, refusals in a row (see REFUSALS) and errors of a dialogue propagate, after the engines were told to
    forget their pending work.
    """
    return _Play(agent, episodes, engines, decodings or {}, score, frozen, seed, window, keep_prompts, on_turn).run()


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
    """What `play` keeps while it plays."""

    def __init__(
        self,
        agent: Agent,
        episodes: Sequence[Episode],
        engines: Mapping[str, Engine],
        decodings: Mapping[str, SamplingParams],
        score: Score | None,
        frozen: bool,
        seed: int,
        window: int | None,
        keep_prompts: bool,
        on_turn: Callable[[Episode, Turn], None] | None,
    ) -> None:
        self.engines = engines
        self.decodings = decodings
        self.score = score
        self.frozen = frozen
        self.seed = seed
        self.window = window
        self.keep_prompts = keep_prompts or not frozen
        self.on_turn = on_turn
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
        while self.upcoming and (self.window is None or self.under_way < self.window):
            work = self.upcoming.popleft()
            work.episode.frozen = self.frozen
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
        if work.shared is not None and wanted.trainable and not self.frozen:
            raise ConfigError(f"the step {wanted.step!r} is trained, so it cannot be shared by several episodes")
        yield from self._submit(work, wanted)

    def _part(self, work: _Work, wanted: Shared) -> _Work:
        """The shared work that `wanted` names, there already or new. In training a group has its own."""
        episode = work.episode
        seed, index = (self.seed, episode.index) if episode.frozen else (episode.seed, 0)
        key = f"{wanted.key} {seed} {index}"
        if key not in self.shared:
            scratch = Episode(wanted.task, index, stream_seed("shared", key), frozen=episode.frozen)
            self.shared[key] = _Work(scratch, wanted.dialogue(scratch), key)
        return self.shared[key]

    def _submit(self, work: _Work, ask: Ask) -> Iterator[Episode]:
        """Hand an ask to its engine; the episodes that end because it takes no such prompt."""
        episode = work.episode
        stream = stream_seed(episode.seed, episode.index, len(episode.turns))
        sampling_params = self.decodings.get(ask.engine, SamplingParams())
        self.submitted += 1
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
        turn = Turn(ask.step, ask.messages, reply, ask.trainable and not self.frozen, engine=ask.engine)
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
