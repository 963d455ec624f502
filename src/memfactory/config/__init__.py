"""Configuration: schema, composition, overrides, validation with every error at its file and line."""

from memfactory.config.components import dataset_component
from memfactory.config.loading import Resolved, agent_name, load_config, load_side_by_side, load_values, with_agent

__all__ = [
    "Resolved",
    "agent_name",
    "dataset_component",
    "load_config",
    "load_side_by_side",
    "load_values",
    "with_agent",
]
