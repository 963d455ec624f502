"""A stack of given parts: no model, no chat template, and engines that follow a script."""

from memfactory.build import Stack


def scripted_stack(agent, env, engines):
    """The stack of `agent` in `env` over `engines`."""
    return Stack(agent, env, engines, {}, None, None, None)
