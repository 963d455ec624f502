"""Endpoints that a run's folder names: texts and keys go there only if the user trusts them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from memfactory.config.endpoints import Endpoint, address_key, addresses, endpoints
from memfactory.config.overrides import on_command_line
from memfactory.config.schema import RunConfig
from memfactory.config.tree import Tree, dotted
from memfactory.engines.addresses import is_on_this_machine, shown_address
from memfactory.errors import ConfigError
from memfactory.plugins.trust import trust, trusted
from memfactory.redaction import shown_variable


def endpoint_marks(config: RunConfig) -> dict[str, str]:
    """The description of each endpoint that a run names, by the digest of its address and its key's variable."""
    return {mark: text for _, endpoint in endpoints(config) for mark, text in _marks(endpoint).items()}


def refuse_strange_endpoints(config: RunConfig, tree: Tree, run: Path, *, trusting: bool) -> None:
    """Raise ConfigError that lists the endpoints which `run` names and this user has not trusted.

    Not those on this machine, nor those that the command line names.
    """
    known = trusted()
    strange = [
        (path, endpoint, mark, text)
        for path, endpoint in endpoints(config)
        if not on_command_line(tree, (*path, address_key(endpoint)))
        for mark, text in _marks(endpoint).items()
        if mark not in known
    ]
    if strange and not trusting:
        listed = "".join(f"\n  {dotted(path)}: {text}" for path, _, _, text in strange)
        path, endpoint, *_ = strange[0]
        raise ConfigError(
            f"{run}: this run sends texts and keys to endpoints that you have not used before:{listed}\nAdd --trust "
            f"if you trust the author of this folder, or name your own, such as "
            f"{dotted((*path, address_key(endpoint)))}=ADDRESS"
        )
    if strange:
        trust({mark: text for _, _, mark, text in strange})


def _marks(endpoint: Endpoint) -> dict[str, str]:
    """The description of each address that is written down and not on this machine, by its digest."""
    going_out = [address for address in addresses(endpoint) if not is_on_this_machine(address)]
    return {_mark(address, endpoint): _described(address, endpoint) for address in going_out}


def _mark(address: str, endpoint: Endpoint) -> str:
    return sha256(f"{address}\n{endpoint.api_key_env or ''}".encode()).hexdigest()


def _described(address: str, endpoint: Endpoint) -> str:
    key = f", with the key in {shown_variable(endpoint.api_key_env)}" if endpoint.api_key_env else ", without a key"
    return f"{shown_address(address)}{key}"
