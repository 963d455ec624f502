"""Endpoints that a run's folder names: texts and keys go there only if the user trusts them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from memfactory.config.endpoints import Endpoint, address_key, endpoints
from memfactory.config.overrides import on_command_line
from memfactory.config.schema import RunConfig
from memfactory.config.tree import Tree, dotted
from memfactory.engines.addresses import is_on_this_machine, shown_address
from memfactory.errors import ConfigError
from memfactory.plugins.trust import trust, trusted
from memfactory.redaction import shown_variable


def endpoint_marks(config: RunConfig) -> dict[str, str]:
    """The description of each endpoint that a run names, by the digest of its address and its key's variable."""
    return {_mark(endpoint): _described(endpoint) for _, endpoint in endpoints(config) if _goes_out(endpoint)}


def refuse_strange_endpoints(config: RunConfig, tree: Tree, run: Path, *, trusting: bool) -> None:
    """Raise ConfigError that lists the endpoints which `run` names and this user has not trusted.

    Not those on this machine, nor those that the command line names.
    """
    known = trusted()
    strange = {
        path: endpoint
        for path, endpoint in endpoints(config)
        if _goes_out(endpoint)
        and _mark(endpoint) not in known
        and not on_command_line(tree, (*path, address_key(endpoint)))
    }
    if strange and not trusting:
        listed = "".join(f"\n  {dotted(path)}: {_described(endpoint)}" for path, endpoint in strange.items())
        path, endpoint = next(iter(strange.items()))
        raise ConfigError(
            f"{run}: this run sends texts and keys to endpoints that you have not used before:{listed}\nAdd --trust "
            f"if you trust the author of this folder, or name your own, such as "
            f"{dotted((*path, address_key(endpoint)))}=ADDRESS"
        )
    if strange:
        trust({_mark(endpoint): _described(endpoint) for endpoint in strange.values()})


def _goes_out(endpoint: Endpoint) -> bool:
    """Whether the address is written down and not on this machine; without one the user's environment names it."""
    address = getattr(endpoint, address_key(endpoint))
    return address is not None and not is_on_this_machine(address)


def _mark(endpoint: Endpoint) -> str:
    return sha256(f"{getattr(endpoint, address_key(endpoint))}\n{endpoint.api_key_env or ''}".encode()).hexdigest()


def _described(endpoint: Endpoint) -> str:
    key = f", with the key in {shown_variable(endpoint.api_key_env)}" if endpoint.api_key_env else ", without a key"
    return f"{shown_address(getattr(endpoint, address_key(endpoint)))}{key}"
