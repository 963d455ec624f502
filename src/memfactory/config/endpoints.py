"""Checks of the endpoints that a config names: their addresses and keys."""

from __future__ import annotations

import os
from collections.abc import Iterator

from memfactory.config.problems import Problems
from memfactory.config.schema import RunConfig
from memfactory.config.tree import KeyPath
from memfactory.engines.addresses import address_problem
from memfactory.engines.options import OpenAIEngineConfig, VllmServerConfig
from memfactory.errors import ConfigError
from memfactory.memory.options import OpenAIEmbedderConfig
from memfactory.redaction import environment_value, read_key

Endpoint = OpenAIEngineConfig | VllmServerConfig | OpenAIEmbedderConfig


def endpoints(config: RunConfig) -> Iterator[tuple[KeyPath, Endpoint]]:
    """Every endpoint that the config describes, by its place."""
    places: dict[KeyPath, object] = {("engine",): config.engine, ("memory", "embedder"): config.memory.embedder}
    places |= {("engines", name): engine for name, engine in config.engines.items()}
    for path, described in places.items():
        if isinstance(described, Endpoint):
            yield path, described


def address_key(endpoint: Endpoint) -> str:
    """The key that an endpoint's address is written under."""
    return "url" if isinstance(endpoint, VllmServerConfig) else "base_url"


def addresses(endpoint: Endpoint) -> tuple[str, ...]:
    """The addresses that are written down for an endpoint; none: the user's environment names it."""
    if isinstance(endpoint, VllmServerConfig):
        return endpoint.urls
    return (endpoint.base_url,) if endpoint.base_url else ()


def check_addresses(config: RunConfig, problems: Problems) -> None:
    """Report every address that cannot be used."""
    for path, endpoint in endpoints(config):
        for address in addresses(endpoint):
            problem = address_problem(address)
            if problem:
                problems.add((*path, address_key(endpoint)), problem)


def check_key(path: KeyPath, endpoint: Endpoint, problems: Problems) -> None:
    """Report a key that is missing or malformed, and an address in the environment that cannot be used."""
    model = "the server" if isinstance(endpoint, VllmServerConfig) else repr(endpoint.model)
    variable = endpoint.api_key_env
    if variable and not environment_value(variable).strip():
        problems.add(
            (*path, "api_key_env"),
            f"the key of {model} is expected in the environment variable {variable}, "
            "which is not set; write api_key_env: null for an endpoint without keys",
        )
        return
    try:
        read_key(variable, model)
    except ConfigError as error:
        problems.add((*path, "api_key_env"), str(error))
    address = os.environ.get("OPENAI_BASE_URL")
    if not isinstance(endpoint, VllmServerConfig) and not endpoint.base_url and address:
        problem = address_problem(address)
        if problem:
            problems.add((*path, "base_url"), f"the environment variable OPENAI_BASE_URL: {problem}")
