"""What a config must know of components: the options that modules and rewards share, and the contract of a slot."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from memfactory.errors import unknown
from memfactory.registry import Options
from memfactory.types import AnswerForm

Interface = Literal["generate", "rollout", "inference"]


POLICY = "policy"


class ModuleOptions(Options):
    """Options every module has.

    `limits` maps those that leave out part of a text to the values under which all of it is read; the first one decides
    how much. A module that leaves out text notes how much in the episode (`note_reading`).

    `presets` are wordings that a config names by `prompts: NAME` in place of prompts of its own: for each name the
    options that it stands for, such as `{"short": {"prompt": "..."}}`. Options that are given beside the name win.
    """

    limits: ClassVar[Mapping[str, object]] = MappingProxyType({})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    interface: Interface = "generate"
    """How the module is played: generate or rollout (trained), inference (frozen)."""
    engine: str = POLICY
    """Which engine speaks under `interface: inference`: policy, or a name from `engines:`."""

    @model_validator(mode="before")
    @classmethod
    def _wording_by_name(cls, values: Any) -> Any:
        return cls.with_preset(values)

    @classmethod
    def with_preset(cls, values: Any) -> Any:
        """`values` with the wording that `prompts` names written out. Raises ValueError for an unknown name."""
        name = values.get("prompts") if isinstance(values, dict) else None
        if not isinstance(name, str):
            return values
        if name not in cls.presets:
            there = unknown("preset of prompts", name, cls.presets) if cls.presets else "this module has no presets"
            raise ValueError(f"prompts: {there}")
        return {**cls.presets[name], **{key: value for key, value in values.items() if key != "prompts"}}

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of a text that are read; None: all."""
        return None

    @property
    def requested_form(self) -> AnswerForm | None:
        """The form in which the module asks for the answer; None: it gives none, or does not say."""
        return None


class RewardOptions(Options):
    """Options every reward has."""

    weight: float = Field(1.0, allow_inf_nan=False)
    """How much this reward counts in the total; 0: it is only logged."""

    @property
    def reads_form(self) -> AnswerForm | None:
        """The form that an answer must have to earn this reward; None: any, since the agent has taken it out of it."""
        return None


class ModuleContract(Protocol):
    """What decides whether a module fits a slot; see `memfactory.dialogue.Module`."""

    roles: ClassVar[tuple[str, ...]]


class AgentContract(Protocol):
    """What decides which modules fit an agent's slots; see `memfactory.dialogue.Agent`."""

    slots: ClassVar[Mapping[str, str]]
    needs: ClassVar[Mapping[str, str]]
