"""The options of a config, for people (`list --verbose`) and for editors (`config schema`)."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticUndefined

from memfactory.components import ModuleOptions
from memfactory.config.messages import models_in
from memfactory.config.optimizer import OptimizerOptions
from memfactory.config.problems import shown
from memfactory.config.prompt_presets import presets_by_module
from memfactory.config.schema import SECTIONS, DataConfig, PlainSections, RunConfig
from memfactory.engines.options import EngineConfig
from memfactory.memory.options import EmbedderConfig
from memfactory.registry import AGENTS, DATASETS, ENVS, MODULES, REWARDS, TRAINERS, Registry
from memfactory.trackers.options import TrackerConfig

_KINDS = (AGENTS, MODULES, ENVS, REWARDS, TRAINERS, DATASETS)


@dataclass(frozen=True)
class Option:
    """One option: dotted key, type, default as YAML writes it (None: it must be given), sentence."""

    key: str
    type: str
    default: str | None
    doc: str


@dataclass(frozen=True)
class Choice:
    """One of several kinds that a config chooses among: its name, a sentence, its options (None: those of all)."""

    name: str
    summary: str
    options: type[BaseModel] | None


OPTIMIZERS = {
    "adamw": "AdamW with float32 moments.",
    "adamw_8bit": "8-bit moments (extra `bitsandbytes`, CUDA).",
    "adamw_8bit_torchao": "8-bit moments (extra `torchao`).",
    "adamw_4bit_torchao": "4-bit moments (extra `torchao`).",
    "adamw_offload": "float32 moments in the host's memory.",
    "auto": "On CUDA 8-bit moments by the package that is installed, or adamw_offload; else adamw.",
}
_UNIONS: dict[str, object] = {"engines": EngineConfig, "embedders": EmbedderConfig, "trackers": TrackerConfig}


def choices(kind: str) -> Iterator[Choice]:
    """The engines, embedders, trackers or optimizers that a config can choose by `kind`."""
    if kind == "optimizers":
        for name, summary in OPTIMIZERS.items():
            yield Choice(name, summary, OptimizerOptions if name == "adamw" else None)
        return
    for model in models_in(_UNIONS[kind]):
        summary = (model.__doc__ or "").strip().partition("\n")[0]
        yield Choice(str(model.model_fields["kind"].default), summary, model)


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """The sentence under each field of `model` and its bases; nothing for classes without source."""
    docs: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (issubclass(base, BaseModel) and base.__module__ != "pydantic.main"):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                docs[field.target.id] = inspect.cleandoc(text.value.value)
    return docs


def options_of(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """Every option of `model`, options inside options as `outer.inner`."""
    docs = field_docs(model)
    for name, field in model.model_fields.items():
        nested = list(models_in(field.annotation))
        plain = nested and field.annotation in nested
        if not plain:
            default = None if field.is_required() else shown(_plain(field.get_default(call_default_factory=True)))
            yield Option(prefix + name, _type_name(field.annotation), default, docs.get(name, ""))
        for inner in nested:
            yield from options_of(inner, f"{prefix}{name}.")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return None if value is PydanticUndefined else value


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(_type_name, arguments))
    if origin in (tuple, list):
        return f"list of {_type_name(arguments[0])}"
    names = {type(None): "null", str: "text", dict: "mapping"}
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    return names.get(annotation) or str(getattr(annotation, "__name__", annotation))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config, with the options of every registered component. Editors take it as it is."""
    models = _models()
    refs, definitions = models_json_schema(
        [(model, "validation") for model in models.values()], ref_template="#/$defs/{model}"
    )
    schemas = {name: refs[(model, "validation")] for name, model in models.items()}
    defs: dict[str, Any] = {**definitions.get("$defs", {})}
    for model in {inner for outer in models.values() for inner in _with_inner(outer)}:
        _describe(defs.get(model.__name__, {}), model)
    components = {kind.kind: [_component(kind, name, defs, schemas) for name in kind.names()] for kind in _KINDS}
    dataset = {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]}
    sections = dict(defs["PlainSections"]["properties"])
    text = {"type": "string"}
    for name in ("model", "engine"):
        sections[name] = {"anyOf": [text, sections[name]], "description": sections[name].get("description", "")}
    sections["trackers"] = {**sections["trackers"], "items": {"anyOf": [text, sections["trackers"]["items"]]}}
    sections |= {
        "base": {"type": "string", "description": "A config that this one is laid over."},
        "agent": _either(_agents(defs, schemas)),
        "env": _either(components["environment"]),
        "train": _either(components["trainer"]),
        "data": {
            "type": "object",
            "description": "Which datasets train and evaluate.",
            "additionalProperties": False,
            "properties": {
                "train": dataset,
                "eval": {"anyOf": [{"type": "array", "items": dataset}, {"type": "object"}, {"type": "string"}]},
                "shuffle": {"type": "boolean", "description": field_docs(DataConfig)["shuffle"]},
            },
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MemFactory run",
        "description": (RunConfig.__doc__ or "").strip(),
        "type": "object",
        "properties": {name: sections[name] for name in (*SECTIONS, "base")},
        "additionalProperties": False,
        "$defs": defs,
        "components": {kind: [c["properties"]["name"]["const"] for c in listed] for kind, listed in components.items()},
    }


def _models() -> dict[str, type[BaseModel]]:
    """The options models by "kind name", and the plain sections."""
    models: dict[str, type[BaseModel]] = {"sections": PlainSections}
    for kind in _KINDS:
        models |= {f"{kind.kind} {name}": kind.options(name) for name in kind.names()}
    return models


def _with_inner(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """`model` and every options model inside it."""
    yield model
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            yield from _with_inner(inner)
        for argument in get_args(field.annotation):
            for inner in models_in(argument):
                yield from _with_inner(inner)


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Put the sentence under each field into its schema."""
    for name, doc in field_docs(model).items():
        if name in schema.get("properties", {}):
            schema["properties"][name].setdefault("description", doc)


def _component(kind: Registry[Any], name: str, defs: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema of `{name: ..., options...}`."""
    options = defs[str(schemas[f"{kind.kind} {name}"]["$ref"]).rpartition("/")[2]]
    model = kind.options(name)
    presets = model.preset_names() if issubclass(model, ModuleOptions) else ()
    properties = dict(options.get("properties", {}))
    if presets:
        properties["prompts"] = _or_preset(properties.get("prompts"), presets)
    return {
        "type": "object",
        "description": kind.entry(name).summary,
        "properties": {"name": {"const": name}, **properties},
        "required": ["name", *options.get("required", [])],
        "additionalProperties": False,
    }


def _or_preset(texts: dict[str, Any] | None, presets: Sequence[str]) -> dict[str, Any]:
    """The schema of `prompts`: the name of a preset, or the texts of a module with several prompts."""
    name = {"enum": list(presets)}
    if texts is None:
        return {**name, "description": "A preset of prompts by name."}
    own = [schema for schema in texts.get("anyOf", [texts]) if schema.get("type") != "string"]
    return {**{key: value for key, value in texts.items() if key not in ("anyOf", "$ref")}, "anyOf": [name, *own]}


def _agents(defs: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """Agents with their modules; the options of an agent's only module may stand beside the agent's own."""
    modules = [_component(MODULES, name, defs, schemas) for name in MODULES.names()]
    agents = []
    presets = sorted({name for _, presets in presets_by_module() for name in presets})
    for name in AGENTS.names():
        schema = _component(AGENTS, name, defs, schemas)
        slots = AGENTS.get(name).slots
        slot = {"anyOf": [{"type": "string"}, *({**module, "required": []} for module in modules)]}
        schema["properties"]["modules"] = {"type": "object", "properties": dict.fromkeys(slots, slot)}
        if len(slots) == 1:
            for module in modules:
                beside = {key: value for key, value in module["properties"].items() if key != "name"}
                schema["properties"] = {**beside, **schema["properties"]}
        if "prompts" not in AGENTS.options(name).model_fields:
            schema["properties"]["prompts"] = _for_all(presets, modules if len(slots) == 1 else [])
        agents.append(schema)
    return agents


def _for_all(presets: Sequence[str], modules: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The schema of an agent's `prompts`: the name of a preset, or the texts of one of `modules`."""
    of_modules = (module["properties"].get("prompts", {}).get("anyOf", []) for module in modules)
    texts = [schema for schemas in of_modules for schema in schemas if "enum" not in schema]
    name = {"enum": list(presets)}
    doc = "A preset of prompts, for all modules that have one of this name."
    return {"description": doc, "anyOf": [name, *texts]} if texts else {"description": doc, **name}


def _either(components: list[dict[str, Any]]) -> dict[str, Any]:
    """A part's or component's name, a component with its options, or a part with changes."""
    part = {"type": "object", "properties": {"base": {"type": "string"}}, "required": ["base"]}
    return {"anyOf": [{"type": "string"}, {"type": "null"}, *components, part]}
