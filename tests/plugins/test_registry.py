"""Registries: lookup by name, errors that help, a user's own files."""

import pytest

from memfactory.components import RewardOptions
from memfactory.envs.rewards.base import RewardFunction
from memfactory.errors import ConfigError
from memfactory.plugins.loading import find_plugin, load_plugin
from memfactory.registry import AGENTS, ALL, MODULES, Registry


def test_a_builtin_is_found_by_its_registered_name():
    assert MODULES.get("recurrent_memory").__name__ == "RecurrentMemoryModule"
    assert AGENTS.get("memory_agent").slots == {"memory": "recurrent_memory"}


def test_an_unknown_name_tells_the_nearest_and_what_exists():
    with pytest.raises(ConfigError) as caught:
        MODULES.get("recurent_memory")
    assert "no module is called 'recurent_memory'; did you mean 'recurrent_memory'?" in str(caught.value)
    assert "There are: " in str(caught.value)


def test_a_type_argument_declares_the_options_of_a_component():
    class BrevityOptions(RewardOptions):
        characters: int = 40

    class Brevity(RewardFunction[BrevityOptions]):
        pass

    class Terse(Brevity):
        pass

    class Plain(RewardFunction):
        pass

    class Named(RewardFunction):
        Options = BrevityOptions

    options = [reward.Options for reward in (Brevity, Terse, Plain, Named)]
    assert options == [BrevityOptions, BrevityOptions, RewardOptions, BrevityOptions]


def test_a_name_can_be_held_only_once():
    registry = Registry("thing", "memfactory.modules")

    @registry.register("mine")
    class First:
        """First."""

    with pytest.raises(ConfigError, match="registered twice"):

        @registry.register("mine")
        class Second:
            """Second."""

    assert registry.get("mine") is First


def test_every_builtin_has_a_sentence_and_can_be_imported():
    for registry in ALL:
        for name in registry.names():
            entry = registry.entry(name)
            assert entry.summary.endswith("."), f"{registry.kind} {name} has no one-sentence docstring"
            assert registry.get(name) is not None
            assert registry.options(name).model_json_schema()["type"] == "object"


def test_every_option_of_a_builtin_is_documented():
    undocumented = [
        f"{registry.kind} {name}: {field}"
        for registry in ALL
        for name in registry.names()
        for field, about in registry.options(name).model_fields.items()
        if not (about.description or "").strip()
    ]
    assert undocumented == []


def test_a_plugin_file_registers_its_components_and_loads_once(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from memfactory.dialogue import Module\n"
        "from memfactory.registry import MODULES\n"
        '@MODULES.register("from_a_file")\n'
        "class Mine(Module):\n"
        '    """Mine."""\n'
        "    def dialogue(self, episode):\n"
        "        yield from ()\n"
    )
    load_plugin(find_plugin("mine.py", tmp_path))
    load_plugin(find_plugin("mine.py", tmp_path))
    assert MODULES.get("from_a_file").__name__ == "Mine"


def test_a_plugin_that_is_not_there_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file 'nowhere\.py' \(looked at"):
        find_plugin("nowhere.py", tmp_path)
    with pytest.raises(ConfigError, match=r"plugin 'no_such_package\.thing' cannot be imported"):
        find_plugin("no_such_package.thing", tmp_path)
