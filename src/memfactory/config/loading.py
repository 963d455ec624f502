"""`load_config`: from a file, run, checkpoint or model and overrides to a validated configuration, or every problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from memfactory.components import ModuleOptions
from memfactory.config.agent_file import AgentFile
from memfactory.config.components import Checker
from memfactory.config.datasets import anchored
from memfactory.config.endpoints import check_addresses
from memfactory.config.engine_choice import EngineChoice, as_written, choose_engines
from memfactory.config.ignored import POLICY_DECODING, refuse_policy_decoding, without_effect
from memfactory.config.interpolation import escape, resolve
from memfactory.config.key_places import keys_called
from memfactory.config.messages import unknown_key
from memfactory.config.model_sources import Like, fill_in_agent, note_withheld, of_another_agent, tree_of_model
from memfactory.config.overrides import COMMAND_LINE, apply_overrides, parse_overrides, with_present_names
from memfactory.config.parts import PART_FOLDERS, compose_file, config_folders, expand_sections, merge, part_names
from memfactory.config.plugin_code import leave_out_training, load_plugins, withhold_remote_code
from memfactory.config.problems import Problems
from memfactory.config.readiness import Command, Readiness
from memfactory.config.renames import restore_own_names, use_present_names, warnings_of
from memfactory.config.rules import check_rules
from memfactory.config.schema import SECTIONS, AgentSpec, Component, DataConfig, PlainSections, RunConfig
from memfactory.config.secrets import resolved_secrets, written_secrets
from memfactory.config.short_forms import origins_of, write_out
from memfactory.config.sources import Source, find_source
from memfactory.config.strange_endpoints import refuse_strange_endpoints
from memfactory.config.trained import check_trained
from memfactory.config.tree import Origin, Tree, dotted, dump, leaves
from memfactory.config.unused import with_unused
from memfactory.errors import ConfigError, unknown
from memfactory.plugins.loading import Plugin
from memfactory.registry import AGENTS, Options

C = TypeVar("C", bound=Component)
_LISTS = {"trackers": [tracker.kind for tracker in PlainSections().trackers]}
_EXAMPLES = {"agent": "memory_agent", "env": "longcontext"}


@dataclass(frozen=True)
class Resolved:
    """A validated configuration.

    `values` is the whole of it as plain values, defaults written out; it holds no secrets. `source` is the file it
    came from. Relative paths in it are looked for in the working directory first, then in `base_dir`. `run` is the
    run folder it was read from, if any. `plugins` are those that were imported, as they were read. `origins` says
    where each dotted key was written; a key that is not in it has its default.
    """

    config: RunConfig
    values: dict[str, Any]
    source: Path | None
    base_dir: Path
    name: str = "run"
    run: Path | None = None
    warnings: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[EngineChoice, ...] = ()

    def to_yaml(self) -> str:
        """YAML that `load_config` reads back to an equal configuration, independent of the parts that exist then."""
        return dump(escape(self.values))


def load_config(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    command: str | None = None,
    like: Resolved | None = None,
    beside: Resolved | None = None,
    trust: bool = False,
) -> Resolved:
    """The configuration that `source` names, with `key=value` overrides, validated.

    `source` is a YAML file, a run folder, a checkpoint, a model folder or `tiny`. With a `command` (train, eval, infer,
    traces) the files, keys, extras and hardware it needs are checked as well. A model by itself takes the whole config
    from `like`, except for the model, or from `beside` the settings that its memfactory.yaml leaves open; a config or
    run takes nothing. `trust`: the code that a run folder brings may run. Raises ConfigError with every problem.
    """
    if command is not None and command not in get_args(Command):
        raise ValueError(f"no command {command!r}; there are {get_args(Command)}")
    located = find_source(source, trained=command in ("eval", "infer"))
    reference = like or beside
    if reference is not None and located.file is None:
        located = replace(located, base_dir=reference.base_dir)
        likeness = Like(reference.name, reference.values, strictly=like is not None)
    else:
        likeness = None
    tree, folders, agent_file = _composed(located, overrides, likeness)
    problems = Problems(tree.origins, located.shown)
    for path, message in written_secrets(tree.values):
        problems.add(path, message)
    tree.values = resolve(tree.values, problems)
    for path, message in resolved_secrets(tree.values):
        problems.add(path, message)
    refuse_policy_decoding(tree, problems, COMMAND_LINE)
    _anchor(tree.values, located.base_dir)
    withheld = withhold_remote_code(tree, located)
    if command == "infer" and located.file is None and agent_file is not None and agent_file.plugins:
        leave_out_training(tree)
    plugins = load_plugins(tree, located, problems, command=command, trusting=trust)
    restore_own_names(tree)
    parts = {section: part_names(section, folders) for section in PART_FOLDERS}
    checker = Checker(problems, tree.origins, located.base_dir, parts, tree.named)
    config = _validated(tree, problems, checker)
    _name_baselines({*AGENTS.names(), *parts["agent"]}, config, problems)
    written = config
    config, choices = choose_engines(written)
    check_rules(config, problems)
    warnings = [*tree.warnings, *warnings_of(tree), *withheld, *checker.warnings]
    check_addresses(config, problems)
    if command in (None, "train"):
        warnings += check_trained(config, problems)
    warnings += [] if located.note is None else [located.note]
    if agent_file is not None:
        note_withheld(agent_file, tree, problems)
        if located.file is not None:
            warnings += of_another_agent(plain(config)["agent"], agent_file)
    if not problems:
        warnings += without_effect(written, tree, training=command in (None, "train"), written_by_user=COMMAND_LINE)
    if command is not None:
        warnings += Readiness(config, located.base_dir, problems, cast("Command", command)).check()
    problems.raise_any()
    # Settings that a model takes from a run beside it come from that run's folder too.
    brought_by = located.run if located.file is not None or reference is None else reference.run
    if command not in (None, "traces") and brought_by is not None:
        refuse_strange_endpoints(config, tree, brought_by, trusting=trust)
    values = plain(written)
    resolved = Resolved(
        config=config,
        values=values,
        source=located.file,
        base_dir=located.base_dir,
        name=located.name,
        run=located.run,
        warnings=tuple(warnings),
        plugins=plugins,
        origins={dotted(path): str(tree.origins[path]) for path, _ in leaves(values) if path in tree.origins},
        choices=choices,
    )
    if command in (None, "eval"):
        _check_baselines(resolved, problems)
    return resolved


def _name_baselines(existing: set[str], config: RunConfig, problems: Problems) -> None:
    """Add a problem for each of `eval.baselines` that is not an agent or a part."""
    for index, baseline in enumerate(config.eval.baselines):
        name = agent_name(baseline)
        if name not in existing:
            problems.add(("eval", "baselines", index), unknown("agent", name, existing))


def _check_baselines(resolved: Resolved, problems: Problems) -> None:
    """Raise ConfigError if an agent of `eval.baselines` cannot stand in the place of the configured one."""
    for index, baseline in enumerate(resolved.config.eval.baselines):
        try:
            with_agent(resolved, baseline)
        except ConfigError as error:
            problems.add(("eval", "baselines", index), "; ".join(error.problems))
    problems.raise_any()


def load_side_by_side(
    sources: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    command: str,
    like: str | None = None,
    trust: bool = False,
) -> list[Resolved]:
    """The configurations of several sources that are to be compared; the overrides count for all of them.

    A model by itself is run like `like`, a run or config; without one, it takes the settings that it leaves open
    from the first run or config among the sources. Raises ConfigError with every problem of the first that has any.
    """
    if like is not None:
        reference = load_config(like, overrides, trust=trust)
        return [load_config(source, overrides, command=command, like=reference, trust=trust) for source in sources]
    first = next((source for source in sources if find_source(source, trained=False).file is not None), None)
    beside = None if first is None else load_config(first, overrides, command=command, trust=trust)
    return [
        beside
        if beside is not None and source == first
        else load_config(source, overrides, command=command, beside=beside, trust=trust)
        for source in sources
    ]


def agent_name(agent: str | Mapping[str, object]) -> str:
    """The name of an agent, written as under `agent:`."""
    return agent if isinstance(agent, str) else str(agent.get("name", agent.get("base")))


def with_agent(resolved: Resolved, agent: str | Mapping[str, object]) -> Resolved:
    """The configuration with another agent, written as under `agent:`, such as the name of a part or an agent.

    A slot that both agents have keeps its engine: the new module takes over interface and engine from a frozen one.
    Raises ConfigError with every problem.
    """
    folders = config_folders(resolved.base_dir)
    here = Origin(f"the agent {agent_name(agent)!r}")
    values = {"agent": deepcopy(agent)}
    tree = use_present_names(Tree(values, origins_of(values, here)))
    expand_sections(tree, folders)
    write_out(tree)
    problems = Problems(tree.origins, here.source)
    tree.values = resolve(tree.values, problems)
    parts = {"agent": part_names("agent", folders)}
    checker = Checker(problems, tree.origins, resolved.base_dir, parts, tree.named)
    spec = checker.agent(tree.values["agent"])
    problems.raise_any()
    if spec is None:
        raise ConfigError(f"{here}: this is not an agent")
    modules = {
        slot: _on_same_engine(resolved.config.agent.modules.get(slot), new) for slot, new in spec.modules.items()
    }
    config = resolved.config.model_copy(update={"agent": replace(spec, modules=modules)})
    check_rules(config, problems)
    problems.raise_any()
    warnings = (*resolved.warnings, *checker.warnings)
    return replace(resolved, config=config, values=plain(as_written(config, resolved.choices)), warnings=warnings)


def _on_same_engine(before: Component | None, new: Component) -> Component:
    """The module `new`, frozen and on the same engine if the module before it in its slot is frozen."""
    options = None if before is None else before.options
    if not isinstance(options, ModuleOptions) or options.interface != "inference":
        return new
    return replace(new, options=new.options.model_copy(update={"interface": "inference", "engine": options.engine}))


def load_values(path: Path) -> dict[str, Any]:
    """The plain values of a written config.yaml, as `Resolved.values` was when it was written."""
    tree = compose_file(path)
    restore_own_names(tree)
    return resolve(tree.values, Problems(tree.origins, str(path)))


def _composed(
    located: Source, overrides: Sequence[str], like: Like | None
) -> tuple[Tree, list[Path], AgentFile | None]:
    """The file with its parts under the values of the source and the overrides; the folders of parts; and the
    memfactory.yaml that defines the agent, if any."""
    parsed, renamed = with_present_names(parse_overrides(overrides))
    folders = config_folders(located.base_dir if located.file is not None or like is not None else None)
    agent_file = located.agent
    if located.file is None:
        tree = tree_of_model(located, like, folders)
    else:
        tree = compose_file(located.file)
        if located.values:
            tree = merge(write_out(tree), Tree(located.values, origins_of(located.values, Origin(located.shown))))
        if located.run is None:
            agent_file = fill_in_agent(tree, parsed, located.base_dir)
    tree.renamed += renamed
    apply_overrides(tree, parsed, folders, _LISTS)
    return with_unused(write_out(tree), folders), folders, agent_file


def _anchor(values: dict[str, Any], base_dir: Path) -> None:
    """Make paths absolute that exist beside the config only: a run's written config lies elsewhere."""
    engines, plugins = values.get("engines"), values.get("plugins")
    named = engines.values() if isinstance(engines, dict) else ()
    for model in (values.get("model"), *(engine.get("model") for engine in named if isinstance(engine, dict))):
        for key in ("path", "adapter", "chat_template"):
            if isinstance(model, dict) and isinstance(model.get(key), str):
                model[key] = anchored(model[key], base_dir)
    agent = values.get("agent")
    modules = agent.get("modules") if isinstance(agent, dict) else None
    for module in modules.values() if isinstance(modules, dict) else ():
        if isinstance(module, dict) and isinstance(module.get("weights"), str):
            module["weights"] = anchored(module["weights"], base_dir)
    if isinstance(plugins, list):
        values["plugins"] = [anchored(p, base_dir) if str(p).endswith(".py") else p for p in plugins]


def _validated(tree: Tree, problems: Problems, checker: Checker) -> RunConfig:
    """The whole config. A wrong value is reported to `problems` and replaced by its default or an empty component."""
    values = {key: value for key, value in tree.values.items() if key != "resolved"}
    for key in values:
        if key not in SECTIONS:
            problems.add((key,), unknown_key(key, [*SECTIONS, "base"], RunConfig, keys_called))
    plain_values = {key: value for key, value in values.items() if key in PlainSections.model_fields}
    sections = checker.options(PlainSections, plain_values, ()) or PlainSections()
    return RunConfig(
        **{name: getattr(sections, name) for name in PlainSections.model_fields},
        agent=_required("agent", values, problems, checker.agent) or AgentSpec("", Options(), {}),
        env=_required("env", values, problems, checker.env) or Component("", Options()),
        train=checker.train(values.get("train")),
        data=checker.data(values.get("data")) or DataConfig(),
    )


def _required(
    section: str, values: Mapping[str, Any], problems: Problems, check: Callable[[object], C | None]
) -> C | None:
    if values.get(section) is None:
        problems.add((section,), f"is missing; write for example `{section}: {_EXAMPLES[section]}`")
        return None
    return check(values[section])


def plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values, in the order in which configs are written, defaults included."""
    values: dict[str, Any] = {"resolved": True}
    for name in SECTIONS:
        value = getattr(config, name)
        if isinstance(value, AgentSpec):
            modules = {slot: _plain_component(module) for slot, module in value.modules.items()}
            values[name] = {**_plain_component(value), "modules": modules}
        elif isinstance(value, DataConfig):
            sets = {title: _plain_component(dataset) for title, dataset in value.eval.items()}
            train = None if value.train is None else _plain_component(value.train)
            values[name] = {"train": train, "eval": sets, "shuffle": value.shuffle}
        elif isinstance(value, Component):
            values[name] = _plain_component(value)
        elif name == "engine":
            values[name] = _plain_engine(config.engine, set(POLICY_DECODING))
        elif name == "engines":
            values[name] = {title: _plain_engine(engine) for title, engine in config.engines.items()}
        else:
            values[name] = config.model_dump(mode="json", include={name})[name]
    return values


def _plain_engine(engine: Options, without: set[str] | None = None) -> dict[str, Any]:
    """An engine's options, its kind before those of every kind."""
    values = engine.model_dump(mode="json", exclude=without)
    return {"kind": values["kind"], **values}


def _plain_component(component: Component) -> dict[str, Any]:
    return {"name": component.name, **component.options.model_dump(mode="json")}
