"""`load_agent`: a trained agent that reads texts, remembers them and answers questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from memfactory.api.sources import Overrides, Source, resolved_config
from memfactory.build import Runtime, build_runtime
from memfactory.data.base import Row
from memfactory.dialogue import Agent, Dialogue
from memfactory.envs.memory_rows import MemoryRowReader
from memfactory.episode import Episode
from memfactory.errors import ConfigError, DataError, EngineError
from memfactory.formats.render import utterances_of
from memfactory.inference import GREEDY, Answer
from memfactory.memory.bank import MemoryBank
from memfactory.play import PlaySettings, play
from memfactory.plugins.boundary import guarded
from memfactory.seeds import stream_seed
from memfactory.types import SamplingParams, Task, Utterance

UNKNOWN_QUESTION = "(none yet: the memory is being built)"
Text = str | Sequence[Utterance | Mapping[str, object]]
"""A text, or the utterances of a conversation: `{"role": "Anna", "content": "I moved to Oslo.", "time": "May 7"}`."""


class LoadedAgent:
    """An agent with its engines and its memory. `load_agent` makes one.

    >>> import memfactory
    >>> with memfactory.load_agent("quickstart") as agent:
    ...     agent.read("Irene lives in Oslo. Klaus paints in olive.")
    ...     print(agent.ask("Where does Irene live?"))
    ...     print(agent.ask("Which colour does Klaus paint in?"))
    Oslo
    olive

    The greedy replies of `tiny` are the same on every machine. `close` releases the model; a `with` statement calls
    it. A LoadedAgent is not thread-safe.
    """

    def __init__(self, runtime: Runtime, sampling: SamplingParams = GREEDY, *, seed: int = 0) -> None:
        self._runtime = runtime
        self._sampling = sampling
        self._seed = seed
        self._calls = 0
        self._bank = runtime.agent.banks.open() if runtime.agent.keeps_bank else None
        self._text = ""
        self._unread: tuple[Text, ...] = ()

    @property
    def memory(self) -> str | MemoryBank:
        """The memory: the MemoryBank of an agent that keeps one, else the text memory ("" while nothing is read).

        >>> import memfactory
        >>> with memfactory.load_agent("quickstart") as agent:
        ...     agent.read("Klaus paints in olive. It was late.", question="Which colour does Klaus paint in?")
        ...     agent.memory
        '- Klaus paints in olive.'
        """
        return self._text if self._bank is None else self._bank

    @memory.setter
    def memory(self, memory: str | MemoryBank) -> None:
        if isinstance(memory, MemoryBank) != (self._bank is not None):
            expected = "a text" if self._bank is None else "a MemoryBank"
            raise ConfigError(f"the memory of this agent is {expected}, not {type(memory).__name__}")
        if isinstance(memory, MemoryBank):
            self._bank = memory
        else:
            self._text = memory

    @property
    def unread(self) -> tuple[Text, ...]:
        """Texts that the agent reads anew for every question, since it reads only when it knows the question."""
        return self._unread

    def read(self, text: Text, question: str | None = None) -> None:
        """Read a text or a conversation, starting from the present memory.

        >>> import memfactory
        >>> with memfactory.load_agent("tiny", "agent=naive_rag", "env=memory_bank") as agent:
        ...     agent.read([{"role": "Anna", "content": "I moved to Oslo.", "time": "May 7"}])
        ...     [item.value for item in agent.memory.list()]
        ['Anna: I moved to Oslo.']

        An agent with a memory bank reads at once. A recurrent agent writes its memory for a question: with `question`
        it reads at once too, without one it keeps the text (see `unread`) and reads it for each question of `ask`,
        exactly as evaluations do. Agents without a memory keep the text in either case. Raises EngineError if an engine
        fails (the memory is then as before) and DataError for another form of text; a file is
        `Path(name).read_text()`.
        """
        if not isinstance(text, str | Sequence):
            raise DataError(f"`read` takes a text or a list of utterances, not {type(text).__name__}")
        texts = (*self._unread, text)
        if question is None and self._bank is None:
            self._unread = texts
            return
        episode = self._episode(question or UNKNOWN_QUESTION, texts)
        agent = self._runtime.agent
        with guarded(type(agent), doing="in reading"):
            dialogue = agent.read(episode)
            if dialogue is None:
                self._unread = texts
                return
            self._play(_Reading(agent, dialogue), episode)
        self._text, self._bank, self._unread = episode.memory, episode.bank, ()

    def ask(self, question: str) -> Answer:
        """Answer a question from the memory and the unread texts. The memory stays as it is.

        >>> import memfactory
        >>> with memfactory.load_agent("quickstart") as agent:
        ...     agent.read("Klaus paints in olive. It was late.")
        ...     answer = agent.ask("Which colour does Klaus paint in?")
        >>> answer.text, answer.memory
        ('olive', '- Klaus paints in olive.')

        Raises EngineError if an engine fails or the prompt does not fit its context.
        """
        episode = self._episode(question, self._unread)
        self._play(self._runtime.agent, episode)
        return Answer.of(episode)

    def close(self) -> None:
        """Release the engines and their models. The memory stays readable."""
        self._runtime.close()

    def __enter__(self) -> LoadedAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _episode(self, question: str, texts: Sequence[Text]) -> Episode:
        self._calls += 1
        context, conversation = _merged(texts)
        memory = () if self._bank is None else tuple(self._bank.list())
        if self._bank is not None:
            self._runtime.agent.banks.adopt(self._bank)
        task = Task(f"call-{self._calls}", question, (), context, memory=memory, conversation=conversation)
        return Episode(task, seed=stream_seed(self._seed, self._calls), memory=self._text)

    def _play(self, agent: Agent, episode: Episode) -> None:
        sampler = replace(self._runtime.sampler(self._sampling), agent=agent)
        for played in play(sampler, [episode], PlaySettings(frozen=True)):
            if played.failure is not None:
                raise EngineError(played.failure)


class _Reading(Agent):
    """Plays only the reading of another agent."""

    def __init__(self, agent: Agent, dialogue: Dialogue) -> None:
        super().__init__(agent.options, agent.modules, agent.banks)
        self._dialogue = dialogue

    def dialogue(self, episode: Episode) -> Dialogue:
        return self._dialogue


def load_agent(
    source: Source,
    *overrides: Overrides,
    memory: str | MemoryBank | None = None,
    sampling: SamplingParams = GREEDY,
    trust: bool = False,
) -> LoadedAgent:
    """Load the agent of a run, a checkpoint, a model folder or a config, with its model and engines.

    >>> import memfactory
    >>> with memfactory.load_agent("quickstart") as agent:
    ...     agent.read("Klaus paints in olive. It was late.")
    ...     print(agent.ask("Which colour does Klaus paint in?"))
    olive

    A run folder stands for its trained weights: `load_agent("runs/quickstart-20250101-120000")`. `overrides` are those
    of the command line (`"engine.kind=vllm"` or `{"engine.kind": "vllm"}`). `memory` is an earlier memory to start
    from, such as `MemoryBank.load("bank")`. Replies are greedy unless `sampling` says otherwise. `trust` allows the
    code of plugins that a run folder brings. Raises ConfigError if the source or an override is wrong.
    """
    resolved = resolved_config(source, overrides, "infer", trust=trust)
    agent = LoadedAgent(build_runtime(resolved, training=False), sampling, seed=resolved.config.eval.seed)
    if memory is not None:
        agent.memory = memory
    return agent


def _merged(texts: Sequence[Text]) -> tuple[str, tuple[Utterance, ...]]:
    """Several texts as one text, or as one conversation if any of them is a conversation."""
    if all(isinstance(text, str) for text in texts):
        return "\n\n".join(str(text) for text in texts), ()
    return "", tuple(utterance for text in texts for utterance in _utterances(text))


def _utterances(text: Text) -> tuple[Utterance, ...]:
    """The utterances of a conversation, or the paragraphs of a text. Raises DataError for another form."""
    if isinstance(text, str):
        return utterances_of(Task("text", UNKNOWN_QUESTION, (), text))
    values = [_fields(utterance) if isinstance(utterance, Utterance) else utterance for utterance in text]
    row = Row({"question": UNKNOWN_QUESTION, "conversation": values}, "read")
    return MemoryRowReader(needs_answers=False).task(row).conversation


def _fields(utterance: Utterance) -> dict[str, object]:
    """The utterance as a row of a conversation writes it."""
    return {
        "speaker": utterance.speaker,
        "text": utterance.text,
        "id": utterance.id,
        "time": utterance.time,
        "session": utterance.session,
    }
