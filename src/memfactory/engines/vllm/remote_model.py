"""The model of a vLLM server: weight sync, and checks that the server still holds the last weights.

The server is started with the worker extension of `worker.py`; docs/vllm.md gives the command.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from memfactory.engines.base import Weights
from memfactory.engines.endpoint import Refused
from memfactory.engines.options import VllmServerConfig
from memfactory.engines.pool import RetryPolicy, TryAgain, Waiting
from memfactory.engines.vllm.checks import check_version
from memfactory.engines.vllm.http import VllmServer
from memfactory.engines.vllm.weight_transfer import PassingPlace, write_weights
from memfactory.errors import ConfigError, EngineError

log = logging.getLogger("memfactory")
NEEDED = (
    "VLLM_SERVER_DEV_MODE=1, --worker-extension-cls memfactory.engines.vllm.worker.WeightReceiver and "
    "--logprobs-mode processed_logprobs (docs/vllm.md gives the whole command)"
)
# A token that stands in every vocabulary; which one it is does not matter.
TOKEN = 0
BIAS = 100.0


class RemoteModel:
    """The model of `server`.

    `name` is its name in requests; each adapter has its own. `context`: its tokens. `updated`: whether weights were
    synced. Raises ConfigError if no server answers or it was started without NEEDED.
    """

    def __init__(self, server: VllmServer, config: VllmServerConfig, *, random_weights: bool) -> None:
        self.server, self.config = server, config
        self._retry_policy = RetryPolicy(config.retries, config.backoff)
        served = self._reached()
        self._served: str = served["id"]
        self.name, self.context, self.updated = self._served, int(served["max_model_len"]), False
        # The weights that the server holds, by a name that no others have; None: those that it was started with.
        self._held = self._first_version()
        self._base_differs = self._held is not None or random_weights
        self._run, self._updates = secrets.token_hex(4), 0
        self._place = PassingPlace(config.weights_folder)
        self._adapter: tempfile.TemporaryDirectory[str] | None = None
        self._check_logprobs()

    def take(self, weights: Weights) -> None:
        """Sync `weights`. Raises EngineError if the server does not confirm them."""
        self.updated = False
        self._forget_adapter()
        if self.config.adapter == "lora" and weights.has_adapter:
            if self._base_differs:
                self._sync(weights.base)
                self._base_differs = False
            self._sync_adapter(weights)
        else:
            self._sync(weights.whole)
            self._base_differs = True
        self.updated = True

    def synced(self) -> tuple[str, str | None]:
        """The name to request the model by, and the version of its weights, after the last sync."""
        return self.name, self._held

    def follow(self, name: str, version: str | None) -> None:
        """Request the weights that another process has synced under these."""
        self.name, self._held, self.updated = name, version, True

    def confirm(self) -> None:
        """Raise EngineError unless the server holds the weights of the last sync.

        Each sync has its own version, so replies before the server's answer come from these weights too.
        """
        version = Waiting(0, threading.Event()).retry(self._version, self._retry_policy, self.server.name)
        if version != self._held:
            started = "the weights of its start"
            raise EngineError(
                f"{self.server.name} does not hold the weights of the last sync ({self._held or started}) but "
                f"{version or started}: it was restarted, or another run uses it. Continue with --resume"
            )

    def close(self) -> None:
        """Leave no adapter behind, if the server still answers."""
        try:
            self._forget_adapter()
        except EngineError as error:
            log.warning("an adapter could not be removed from the server: %s", error)

    def _sync(self, weights: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        """Pass a whole model's weights, by the names of the Hugging Face model's parameters."""
        self._updates += 1
        self._held = f"{self._run}-{self._updates}"
        with self._place.written(lambda folder: write_weights(folder, weights())) as folder:
            self._call("/collective_rpc", {"method": "memfactory_receive", "args": [folder, self._held]})
        self.confirm()
        answer = self._call("/reset_prefix_cache", {})
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EngineError(f"{self.server.name} did not clear the prefix cache of the former weights")

    def _sync_adapter(self, weights: Weights) -> None:
        self._updates += 1
        name = f"memfactory-{self._run}-{self._updates}"
        # The server reads an adapter again after it has dropped it, and dies if the files are gone.
        self._adapter = self._place.written(weights.write_adapter)
        try:
            self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": self._adapter.name})
        except Refused as error:
            raise EngineError(
                f"{error}. It accepts adapters if it was started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, "
                "--enable-lora and a --max-lora-rank that is large enough; or write engine.adapter: merged"
            ) from error
        self.name = name
        self.confirm()

    def _forget_adapter(self) -> None:
        name, self.name = self.name, self._served
        files, self._adapter = self._adapter, None
        # Without files of its own another process has synced the adapter, and removes it.
        if files is not None and name != self._served:
            self._call("/v1/unload_lora_adapter", {"lora_name": name})
        if files is not None:
            files.cleanup()

    def _version(self) -> str | None:
        """The weights that the server holds, as all of its workers say."""
        answer = self.server.post("/collective_rpc", {"method": "memfactory_version"})
        try:
            versions = {result["version"] for result in answer["results"]}
        except (LookupError, TypeError) as error:
            raise EngineError(f"{self.server.name} does not say which weights it holds: {str(answer)[:200]}") from error
        if len(versions) != 1:
            raise EngineError(f"the workers of {self.server.name} hold different weights: {versions}")
        (version,) = versions
        return version

    def _call(self, path: str, body: object) -> Any:
        """The answer to a request that must not be sent twice."""
        try:
            return self.server.post_once(path, body, self.config.update_timeout)
        except TryAgain as failure:
            raise EngineError(f"{self.server.name} failed at {path}: {failure}") from failure

    # How it was started

    def _reached(self) -> dict[str, Any]:
        """The server's description of its model, once the server is up."""
        deadline, is_logged = time.monotonic() + self.config.startup_timeout, False
        while True:
            try:
                check_version(self.server.get("/version")["version"])
                return next(model for model in self.server.get("/v1/models")["data"] if model.get("parent") is None)
            except TryAgain as failure:
                reason: Exception = failure
            except (Refused, LookupError, TypeError, StopIteration) as error:
                raise ConfigError(f"engine.url: at {self.server.url} there is no vLLM server: {error}") from error
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"engine.url: no vLLM server answers at {self.server.url} ({reason}). Start one with {NEEDED}, or "
                    "write engine.kind: vllm or hf"
                )
            if not is_logged:
                log.info("waiting for %s (%s)", self.server.name, reason)
                is_logged = True
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))

    def _first_version(self) -> str | None:
        try:
            return self._version()
        except (EngineError, TryAgain) as error:
            raise ConfigError(f"{self.server.name} accepts no weights ({error}); start it with {NEEDED}") from error

    def _check_logprobs(self) -> None:
        """Refuse a server whose log-probabilities are not those of the distribution that it samples from.

        With so large a bias one token is certain; where the model's own probability comes back, biases (and so the
        temperature) are left out of it.
        """
        fields = {"model": self._served, "prompt": [TOKEN], "max_tokens": 1, "logprobs": 0, "temperature": 1.0}
        try:
            answer = self.server.post("/v1/completions", {**fields, "logit_bias": {str(TOKEN): BIAS}})
            logprob = answer["choices"][0]["logprobs"]["token_logprobs"][0]
        except (Refused, TryAgain, LookupError, TypeError) as error:
            raise ConfigError(f"{self.server.name} gives no log-probabilities: {error}") from error
        if abs(logprob) > 1e-3:
            raise ConfigError(
                f"{self.server.name} gives log-probabilities before temperature, not those that it samples from; start "
                f"it with {NEEDED}"
            )
