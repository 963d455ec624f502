"""Components as a config knows them: the options that modules and rewards share, and the contract of a slot."""

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
PROMPTS = "prompts"
"""The option that names a preset of prompts."""
DEFAULT_PRESET = "default"
"""The preset of prompts that every module with presets has: its own wording."""


class ModuleOptions(Options):
    """Options every module has.

    `limits` maps the options that drop part of a text to the values that read all of it; the first one decides how much
    is read. A module that drops text counts it in the episode (`note_reading`).

    `presets` are sets of prompts that a config names by `prompts: NAME`: each name maps to the options that it stands
    for, such as `{"short": {"prompt": "..."}}`. Options beside the name win. `default` stands for the options' own
    defaults and needs no entry.
    """

    limits: ClassVar[Mapping[str, object]] = MappingProxyType({})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    interface: Interface = "generate"
    """The interface of the module: generate or rollout (trained), inference (frozen)."""
    engine: str = POLICY
    """The engine that generates under `interface: inference`: policy, or a name from `engines:`."""

    @model_validator(mode="before")
    @classmethod
    def _with_named_preset(cls, values: Any) -> Any:
        return cls.with_preset(values)

    @classmethod
    def with_preset(cls, values: Any) -> Any:
        """`values` with the preset that `prompts` names written out. Raises ValueError for an unknown name."""
        name = values.get(PROMPTS) if isinstance(values, dict) else None
        if not isinstance(name, str):
            return values
        if name not in cls.preset_names():
            names = cls.preset_names()
            reason = unknown("preset of prompts", name, names) if names else "this module has no presets"
            raise ValueError(f"prompts: {reason}")
        others = {key: value for key, value in values.items() if key != PROMPTS}
        return {**cls.preset(name, others), **others}

    @classmethod
    def preset(cls, name: str, others: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options that the preset `name` stands for beside the options `others`."""
        return cls.presets.get(name, {})

    @classmethod
    def wording_keys(cls) -> frozenset[str]:
        """The options that word the prompts: a preset replaces those of the layers below it."""
        of_presets = {key for options in cls.presets.values() for key in options}
        return frozenset({PROMPTS, "answer_form", *of_presets} & {PROMPTS, *cls.model_fields})

    @classmethod
    def preset_names(cls) -> tuple[str, ...]:
        """The names of the presets, `default` first; none for a module without presets."""
        return (DEFAULT_PRESET, *sorted({*cls.presets} - {DEFAULT_PRESET})) if cls.presets else ()

    def worded(self) -> dict[str, Any]:
        """The options that word the prompts, as plain values; null ones are left out."""
        values = self.model_dump(mode="json", include={*self.wording_keys()}, exclude_none=True)
        return {key: values[key] for key in sorted(values)}

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of a text that the module reads; None: all."""
        return None

    @property
    def requested_form(self) -> AnswerForm | None:
        """The form in which the module asks for the answer; None: it gives no answer, or does not say."""
        return None


class RewardOptions(Options):
    """Options every reward has."""

    weight: float = Field(1.0, allow_inf_nan=False)
    """The weight of this reward in the total; 0: it is only logged."""

    @property
    def reads_form(self) -> AnswerForm | None:
        """The form that an answer must have to earn this reward; None: any form."""
        return None


class ModuleContract(Protocol):
    """The attribute that decides whether a module fits a slot; see `memfactory.dialogue.Module`."""

    roles: ClassVar[tuple[str, ...]]


class AgentContract(Protocol):
    """The attributes that decide which modules fit an agent's slots; see `memfactory.dialogue.Agent`."""

    slots: ClassVar[Mapping[str, str]]
    needs: ClassVar[Mapping[str, str]]
