"""A stack of given parts: no model, no chat template, and engines that follow a script."""

from memfactory.build import Runtime


def scripted_stack(agent, env, engines):
    """The stack of `agent` in `env` over `engines`."""
    return Runtime(agent, env, engines, {}, None, None, None)
