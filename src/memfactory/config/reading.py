"""The limits on the text that the modules of a configuration read, and a configuration without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memfactory.components import ModuleOptions
from memfactory.config.engine_choice import as_written
from memfactory.config.loading import Resolved, plain
from memfactory.config.overrides import COMMAND_LINE_PREFIX
from memfactory.config.schema import AgentSpec


@dataclass(frozen=True)
class Limit:
    """The option that decides how much of a text the module in a slot reads: `key` is `value`, so `tokens` at most."""

    key: str
    value: object
    tokens: int


def reading_all(resolved: Resolved) -> tuple[Resolved, tuple[Limit, ...]]:
    """The configuration with every text read whole, unless the command line sets a limit; the limits that were
    removed."""
    modules, removed = dict(resolved.config.agent.modules), []
    for slot, module in modules.items():
        options = module.options
        if (
            not isinstance(options, ModuleOptions)
            or options.most_tokens is None
            or _is_on_command_line(resolved, slot, options)
        ):
            continue
        name = next(iter(options.limits))
        removed.append(Limit(f"agent.modules.{slot}.{name}", getattr(options, name), options.most_tokens))
        modules[slot] = replace(module, options=options.model_copy(update=dict(options.limits)))
    if not removed:
        return resolved, ()
    agent: AgentSpec = replace(resolved.config.agent, modules=modules)
    config = resolved.config.model_copy(update={"agent": agent})
    return replace(resolved, config=config, values=plain(as_written(config, resolved.choices))), tuple(removed)


def _is_on_command_line(resolved: Resolved, slot: str, options: ModuleOptions) -> bool:
    """Whether the command line limits the text that the module reads."""
    origins: Mapping[str, str] = resolved.origins
    return any(
        origins.get(f"agent.modules.{slot}.{name}", "").startswith(COMMAND_LINE_PREFIX) for name in options.limits
    )
