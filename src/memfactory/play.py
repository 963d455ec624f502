"""The driver: plays the dialogues of all episodes over the engines at once and never waits for the slowest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from memfactory.components import POLICY
from memfactory.dialogue import Agent, Ask, Dialogue, ScoreRequest, Shared, as_generator, check_texts, close
from memfactory.engines.base import Engine
from memfactory.episode import Episode
from memfactory.errors import ConfigError, EngineError, PromptTooLong, RequestRefused
from memfactory.plugins.boundary import broken, guarded
from memfactory.seeds import stream_seed
from memfactory.types import Reply, Reward, Sampling, SamplingParams, Turn

REFUSALS = 8
"""This number of refusals in a row, with no reply in between, means that the policy's engine is set up wrongly."""
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
    `window` is the most episodes under way at one time, so that the first end long before the last begin.
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


@dataclass
class _Work:
    """One dialogue under way: that of an episode, or shared work under a key. `waiting` are the dialogues that need
    its result."""

    episode: Episode
    dialogue: Dialogue[Any]
    key: str | None = None
    waiting: list[_Work] = field(default_factory=list)
    has_begun: bool = False
    has_ended: bool = False
    result: object = None
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
        agent = sampler.agent
        self.engines = sampler.engines
        self.sampling_params = sampler.sampling_params
        self.settings = settings
        self.score = score
        self.on_turn = on_turn
        self.keep_prompts = settings.keep_prompts or not settings.frozen
        self.agent = type(agent)
        self.components = (self.agent, *(type(module) for module in agent.modules.values()))
        with guarded(*self.components):
            dialogues = [as_generator(self.agent, agent.dialogue(episode)) for episode in episodes]
        self.upcoming = deque(map(_Work, episodes, dialogues))
        self.pending: dict[int, tuple[_Work, Ask]] = {}
        self.shared: dict[str, _Work] = {}
        self.under_way = 0
        self.submitted = 0
        self.refused = 0

    def run(self) -> Iterator[Episode]:
        try:
            yield from self._admit()
            while self.pending:
                for number, reply in list(_replies(self.engines, {ask.engine for _, ask in self.pending.values()})):
                    yield from self._receive(number, reply)
                yield from self._admit()
        finally:
            if self.pending:
                for engine in set(self.engines.values()):
                    engine.cancel()

    def _admit(self) -> Iterator[Episode]:
        """Begin upcoming episodes as far as the window allows; yield those that end at once."""
        while self.upcoming and (self.settings.window is None or self.under_way < self.settings.window):
            work = self.upcoming.popleft()
            work.episode.frozen = self.settings.frozen
            self.under_way += 1
            yield from self._advance(work, None)

    def _advance(self, work: _Work, value: object) -> Iterator[Episode]:
        """Send `value` into a dialogue (None begins it) and serve its requests up to the next Ask; yield the episodes
        that end by it."""
        while True:
            try:
                with guarded(*self.components, doing=f"on the task {work.episode.task.id!r}", letting=(StopIteration,)):
                    request = work.dialogue.send(value)
            except StopIteration as end:
                check_texts(self.agent, work.episode)
                work.result = end.value
                yield from self._end(work)
                return
            except EngineError as error:
                # A dialogue that calls an endpoint by itself, such as an embedder's, fails like an engine.
                yield from self._end(work, error)
                return
            if isinstance(request, Ask):
                yield from self._submit(work, request)
                return
            if isinstance(request, ScoreRequest):
                value = self.score([work.episode])[0] if self.score else Reward(None)
                continue
            source = self._shared_work(work, _well_formed(self.agent, request))
            if not source.has_begun:
                # It begins before any dialogue waits for it: works without asks end here one by one, not nested.
                source.has_begun = True
                yield from self._advance(source, None)
            if not source.has_ended:
                source.waiting.append(work)
                return
            if source.failure is not None:
                yield from self._end(work, source.failure)
                return
            work.episode.share(source.episode)
            value = source.result

    def _shared_work(self, work: _Work, request: Shared[Any]) -> _Work:
        """The shared work that `request` names, new or under way. In training every group has its own."""
        episode = work.episode
        seed, index = (self.settings.seed, episode.index) if episode.frozen else (episode.seed, 0)
        key = f"{request.key} {seed} {index}"
        if key not in self.shared:
            shared_episode = Episode(request.task, index, stream_seed("shared", key), frozen=episode.frozen)
            self.shared[key] = _Work(shared_episode, request.dialogue(shared_episode), key)
        return self.shared[key]

    def _submit(self, work: _Work, ask: Ask) -> Iterator[Episode]:
        """Submit an ask to its engine; yield the episodes that end because the engine refuses it."""
        if work.key is not None and ask.trainable and not self.settings.frozen:
            raise ConfigError(f"the step {ask.step!r} is trained, so it cannot be shared by several episodes")
        episode = work.episode
        seed = stream_seed(episode.seed, episode.index, len(episode.turns))
        params = self.sampling_params.get(ask.engine, SamplingParams())
        self.submitted += 1
        try:
            sampling = Sampling(ask.max_tokens, params, ask.stop, seed)
            self.engines[ask.engine].submit(self.submitted, ask.messages, sampling)
        except EngineError as error:
            yield from self._fail(work, ask, error)
            return
        self.pending[self.submitted] = work, ask

    def _receive(self, number: int, reply: Reply | EngineError) -> Iterator[Episode]:
        """Record the turn of a reply and go on with its dialogue; yield the episodes that end by it."""
        work, ask = self.pending.pop(number)
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
        """End the dialogue of an ask that has no reply, or raise if the policy's engine takes no requests at all."""
        if self._is_policy(ask.engine) and not isinstance(error, PromptTooLong):
            self.refused += 1
            if not isinstance(error, RequestRefused) or self.refused == REFUSALS:
                raise error
        yield from self._end(work, error)

    def _is_policy(self, engine: str) -> bool:
        return self.engines[engine] is self.engines[POLICY]

    def _end(self, work: _Work, failure: EngineError | None = None) -> Iterator[Episode]:
        """Yield the episode of a dialogue that has ended; after shared work, go on with the dialogues that wait."""
        work.has_ended = True
        if failure is not None:
            with guarded(*self.components, doing=f"on the task {work.episode.task.id!r}, which cannot continue"):
                close(self.agent, work.dialogue)
            work.failure = failure
            work.episode.failure, work.episode.overlong = str(failure), isinstance(failure, PromptTooLong)
        if work.key is None:
            self.under_way -= 1
            yield work.episode
            return
        for waiting in work.waiting:
            if failure is not None:
                yield from self._end(waiting, failure)
            else:
                waiting.episode.share(work.episode)
                yield from self._advance(waiting, work.result)


def _well_formed(agent: type, request: object) -> Shared[Any]:
    """The request that an agent's dialogue yielded besides asks. Raises PluginError unless it is Shared work."""
    if isinstance(request, Shared):
        return request
    hint = "an agent plays its modules by `yield from self.modules[slot].play(episode)`"
    raise broken(agent, "dialogue", f"yielded {type(request).__name__}; {hint}")


def _replies(engines: Mapping[str, Engine], names: set[str]) -> Iterator[tuple[Any, Reply | EngineError]]:
    """The replies that the named engines have ready; two names for one engine step it once."""
    stepped: list[Engine] = []
    for name in sorted(names):
        engine = engines[name]
        if not any(engine is earlier for earlier in stepped):
            stepped.append(engine)
            yield from engine.step()
