"""`load_agent`: every shipped agent reads, remembers and answers on the embedded model."""

from pathlib import Path

import pytest

import memfactory
from memfactory import ConfigError, DataError, MemoryBank
from memfactory.errors import PluginError

FIRST = [{"role": "Irene", "content": "I live in Oslo.", "time": "May 7"}]
SECOND = [{"role": "Klaus", "content": "I paint in olive.", "time": "May 9"}]


def load(name: str, **options) -> memfactory.LoadedAgent:
    return memfactory.load_agent("tiny", f"agent={name}", "env=memory_bank", **options)


@pytest.mark.parametrize("name", ["memory_r1", "memory_rmm", "naive_rag"])
def test_an_agent_with_a_bank_reads_at_once_and_asks_without_writing(name):
    with load(name) as agent:
        agent.read(FIRST)
        first = agent.memory.list()
        agent.read(SECOND)
        second = agent.memory.list()
        assert isinstance(agent.memory, MemoryBank) and agent.unread == ()
        answers = [agent.ask("Where does Irene live?").text for _ in range(2)]
        assert answers[0] == answers[1]
        assert agent.memory.list() == second
        assert {item.id for item in first} <= {event.id for item in second for event in agent.memory.history(item.id)}


@pytest.mark.parametrize("name", ["full_context", "no_memory"])
def test_an_agent_without_memory_keeps_the_text_for_every_question(name):
    with load(name) as agent:
        agent.read(FIRST)
        agent.read("Klaus paints in olive.", question="Where does Irene live?")
        assert (agent.memory, len(agent.unread)) == ("", 2)
        assert isinstance(str(agent.ask("Where does Irene live?")), str)


def test_a_recurrent_agent_goes_on_from_its_memory():
    question = "Which colour does Klaus paint in?"
    with memfactory.load_agent("quickstart") as agent:
        agent.read("Klaus paints in olive. It was late.", question)
        assert agent.memory == "- Klaus paints in olive."
        agent.read("Snow fell again.", question)
        assert (agent.memory, agent.unread) == ("- Klaus paints in olive.", ())
        assert agent.ask(question).text == "olive"
        assert agent.memory == "- Klaus paints in olive."


def test_texts_read_for_a_later_question_answer_like_one_text():
    question = "Which colour does Klaus paint in?"
    with memfactory.load_agent("quickstart") as agent:
        agent.read("Klaus paints in olive.")
        agent.read("It was late.")
        assert (agent.memory, len(agent.unread)) == ("", 2)
        assert agent.ask(question).text == "olive"
        assert (agent.memory, len(agent.unread)) == ("", 2)


def test_a_saved_memory_goes_on_with_its_ids_and_history(tmp_path):
    with load("naive_rag") as agent:
        agent.read(FIRST)
        agent.memory.add("Ben has a dog.")
        agent.memory.delete("said1")
        agent.memory.save(tmp_path / "bank")
    with load("naive_rag", memory=MemoryBank.load(tmp_path / "bank")) as agent:
        agent.read(SECOND)
        assert [item.id for item in agent.memory.list()] == ["m1", "said1"]
        assert agent.memory.add("New.") == "m2"


def test_a_memory_of_the_other_kind_is_refused():
    with pytest.raises(ConfigError, match="the memory of this agent is a MemoryBank, not str"):
        load("naive_rag", memory="a text")
    with pytest.raises(ConfigError, match="the memory of this agent is a text, not MemoryBank"):
        load("no_memory", memory=MemoryBank())


def test_an_utterance_without_a_speaker_is_named():
    with load("naive_rag") as agent, pytest.raises(DataError, match=r"conversation\[0\]' has no speaker"):
        agent.read([{"text": "I live in Oslo."}])


def test_reading_a_path_names_the_mistake():
    with load("memory_agent") as agent, pytest.raises(DataError, match="a text or a list of utterances, not Pos"):
        agent.read(Path("book.txt"))


def test_a_list_of_overrides_is_refused():
    with pytest.raises(ConfigError, match=r"an override is a text .* or a mapping, not list"):
        memfactory.load_agent("quickstart", ["seed=1"])


def test_a_config_may_be_a_mapping_and_its_mistakes_name_their_keys():
    with pytest.raises(ConfigError, match=r"^config: trian: unknown key; did you mean 'train'\?"):
        memfactory.load_agent({"base": "quickstart", "trian": 1})


FORGETFUL = '''
from memfactory import Agent
from memfactory.registry import AGENTS


@AGENTS.register("forgetful")
class Forgetful(Agent):
    """Reads nothing."""

    slots = {"memory": "recurrent_memory"}

    def dialogue(self, episode):
        yield from self.modules["memory"].play(episode)

    def read(self, episode):
        raise KeyError("the notes")
'''


@pytest.mark.usefixtures("own_components")
def test_a_mistake_in_an_agents_own_reading_names_the_agent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("forgetful.py").write_text(FORGETFUL)
    config = {"base": "quickstart", "agent": "forgetful", "plugins": ["forgetful.py"]}
    with (
        memfactory.load_agent(config) as agent,
        pytest.raises(PluginError, match=r"agent 'forgetful' failed in reading at .*forgetful\.py:16: KeyError"),
    ):
        agent.read("A text.", "Which text?")
