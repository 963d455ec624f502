r"""Rewards that read an answer in a form (`\boxed{}`) for which the agent's prompt never asks: no episode can earn
them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from memfactory.components import ModuleOptions, RewardOptions
from memfactory.config.schema import AgentSpec
from memfactory.registry import REWARDS, Options
from memfactory.types import AnswerForm

WORDS: Mapping[AnswerForm, str] = MappingProxyType(
    {
        "boxed": "inside \\boxed{}",
        "marker": "after **Answer:**",
        "the_answer_is": 'after "the answer is"',
        "plain": "in no particular form",
    }
)


def forms_by_slot(agent: AgentSpec) -> dict[str, AnswerForm]:
    """The form in which each module asks for the answer, by its slot; modules that do not say are left out."""
    forms = {
        slot: module.options.requested_form
        for slot, module in agent.modules.items()
        if isinstance(module.options, ModuleOptions)
    }
    return {slot: form for slot, form in forms.items() if form is not None}


def options_of_reward(name: str, entry: object) -> Options:
    """The options of the reward called `name` by its entry under `env.rewards`: a weight, or a mapping of options."""
    return REWARDS.options(name).model_validate(entry if isinstance(entry, dict) else {"weight": entry})


def reward_options(entries: Mapping[str, object], names: Iterable[str] | None = None) -> dict[str, RewardOptions]:
    """The options of the rewards called `names` (None: of all entries); one without an entry has its defaults."""
    chosen: dict[str, RewardOptions] = {}
    for name in entries if names is None else names:
        options = options_of_reward(name, entries.get(name, {}))
        if isinstance(options, RewardOptions):
            chosen[name] = options
    return chosen


def unearned(agent: AgentSpec, rewards: Mapping[str, RewardOptions]) -> Iterator[tuple[str, str]]:
    """Each of `rewards` that reads a form which no module of `agent` asks for, with the reason; none if no module
    says."""
    forms = forms_by_slot(agent)
    for name, options in rewards.items():
        form = options.reads_form
        if form is None or not forms or form in forms.values():
            continue
        requests = ", ".join(f"{slot} asks for it {WORDS[other]}" for slot, other in forms.items())
        yield (
            name,
            f"reads an answer {WORDS[form]}, but {agent.name} never asks for one ({requests}), so no episode earns it. "
            "Leave the reward out, or ask for that form in the prompt; `answer_form` names the form that a prompt of "
            "your own asks for",
        )
