"""The model of one vLLM server: it takes weights, and is checked to hold the last ones still.

The server is started with the worker extension of `worker.py`; docs/vllm.md gives the command.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from memfactory.engines.endpoint import Refused
from memfactory.engines.options import VllmServerConfig
from memfactory.engines.pool import RetryPolicy, TryAgain, Waiting
from memfactory.engines.vllm.checks import check_version
from memfactory.engines.vllm.http import VllmServer
from memfactory.errors import ConfigError, EngineError

log = logging.getLogger("memfactory")
NEEDED = (
    "VLLM_SERVER_DEV_MODE=1, --worker-extension-cls memfactory.engines.vllm.worker.WeightReceiver and "
    "--logprobs-mode processed_logprobs (docs/vllm.md gives the whole command)"
)
UNKNOWN_STATUS = (400, 404)
"""HTTP statuses with which vLLM refuses to remove an adapter that it does not have."""
Synced = tuple[str, str | None]
"""The name of a model in requests, and the version of its weights; None: those that its server was started with."""
# A token that stands in every vocabulary; which one it is does not matter.
TOKEN = 0
BIAS = 100.0


class RemoteModel:
    """The model of one server.

    `name` is its name in requests; each adapter has its own. `context`: its tokens. `base_differs`: whether its whole
    weights are others than those below the adapter in training. Raises ConfigError if no server answers or it was
    started without NEEDED.
    """

    def __init__(self, server: VllmServer, config: VllmServerConfig, *, random_weights: bool) -> None:
        self.server, self.config = server, config
        self._retry_policy = RetryPolicy(config.retries, config.backoff)
        self._random_weights = random_weights
        served = self._reached()
        self._served: str = served["id"]
        self.name, self.context = self._served, int(served["max_model_len"])
        # The weights that the server holds, by a name that no others have; None: those that it was started with.
        self._held = self._first_version()
        self.base_differs = self._held is not None or random_weights
        self._has_adapter = False
        self._check_logprobs()

    def receive(self, folder: str, version: str) -> None:
        """Take the whole weights in `folder` and clear the prefix cache of the former ones."""
        self._held = version
        self._call("/collective_rpc", {"method": "memfactory_receive", "args": [folder, version]})
        self.confirm()
        answer = self._call("/reset_prefix_cache", {})
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EngineError(f"{self.server.name} did not clear the prefix cache of the former weights")

    def load_adapter(self, name: str, folder: str) -> None:
        """Take the adapter in `folder` on top of the base."""
        try:
            self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        except Refused as error:
            raise EngineError(
                f"{error}. It accepts adapters if it was started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, "
                "--enable-lora and a --max-lora-rank that is large enough; or write engine.adapter: merged"
            ) from error
        self.name, self._has_adapter = name, True
        self.confirm()

    def forget_adapter(self) -> None:
        """Remove the adapter that this process has loaded, if any."""
        name, self.name = self.name, self._served
        had_adapter, self._has_adapter = self._has_adapter, False
        if not had_adapter:
            return
        try:
            self._call("/v1/unload_lora_adapter", {"lora_name": name})
        except Refused as error:
            # A server that was started anew has none.
            if error.status not in UNKNOWN_STATUS:
                raise

    def look(self) -> None:
        """Notice a server that was started anew since the last sync: its base may be another one."""
        version = self._held_there()
        if version != self._held:
            log.warning("%s was restarted; it gets the weights anew", self.server.name)
            self._held, self.base_differs = version, version is not None or self._random_weights

    def synced(self) -> Synced:
        """The name to request the model by, and the version of its weights, after the last sync."""
        return self.name, self._held

    def follow(self, name: str, version: str | None) -> None:
        """Request the weights that another process has synced under these."""
        self.name, self._held = name, version

    def confirm(self) -> None:
        """Raise EngineError unless the server holds the weights of the last sync.

        Each sync has its own version, so replies before the server's answer come from these weights too.
        """
        version = self._held_there()
        if version != self._held:
            started = "the weights of its start"
            raise EngineError(
                f"{self.server.name} does not hold the weights of the last sync ({self._held or started}) but "
                f"{version or started}: it was restarted, or another run uses it. Continue with --resume"
            )

    def _held_there(self) -> str | None:
        return Waiting(0, threading.Event()).retry(self._version, self._retry_policy, self.server.name)

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
