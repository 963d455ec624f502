"""An extension of a vLLM server's workers that lets a training run in another process sync weights.

The server is started with `--worker-extension-cls memfactory.engines.vllm.worker.WeightReceiver`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

from memfactory.engines.vllm.checks import unpack_linear_layers
from memfactory.engines.vllm.weight_transfer import read_weights

# A worker imports this file before it loads its model.
if current_platform.is_cpu():
    unpack_linear_layers()


class WeightReceiver:
    """Methods of a vLLM worker, called by `/collective_rpc`. Their names must be no worker's own."""

    memfactory_held: str | None = None

    def memfactory_receive(self, folder: str, version: str) -> dict[str, str | None]:
        """Take the weights in `folder` and know them as `version` from then on."""
        self.memfactory_held = None
        worker: Any = self
        worker.reload_weights(weights_iterator=read_weights(Path(folder)))
        self.memfactory_held = version
        return {"version": version}

    def memfactory_version(self) -> dict[str, str | None]:
        """The version of the worker's weights; None: those that it was started with."""
        return {"version": self.memfactory_held}
