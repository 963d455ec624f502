"""The vLLM servers of a run, which all hold the same model: weight sync to each, and a choice for each request."""

from __future__ import annotations

import logging
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from torch import Tensor

from memfactory.engines.base import Weights
from memfactory.engines.options import VllmServerConfig
from memfactory.engines.vllm.http import VllmServer
from memfactory.engines.vllm.remote_model import RemoteModel, Synced
from memfactory.engines.vllm.weight_transfer import PassingPlace, write_weights
from memfactory.environment import process_rank
from memfactory.errors import EngineError

log = logging.getLogger("memfactory")


class Servers:
    """The servers of `config`. `updated`: whether weights were synced; `context`: the tokens of the shortest model.

    Raises ConfigError if one of them does not answer or was started without a needed option.
    """

    def __init__(self, config: VllmServerConfig, *, random_weights: bool) -> None:
        self.config = config
        servers = [VllmServer(config, url) for url in config.urls]
        self.models = [RemoteModel(server, config, random_weights=random_weights) for server in servers]
        self.context = min(model.context for model in self.models)
        self.updated = False
        self._run, self._updates = secrets.token_hex(4), 0
        self._place = PassingPlace(config.weights_folder)
        self._adapter: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._open, self._requests = [0] * len(self.models), [0] * len(self.models)
        self._unconfirmed: set[int] = set()
        self._first = process_rank()

    @contextmanager
    def least_loaded(self) -> Iterator[RemoteModel]:
        """The model with the fewest open requests of this process, while it works on one more."""
        count = len(self.models)
        with self._lock:
            loads = zip(self._open, self._requests, strict=True)
            # At equal load the one with fewer requests so far; at first each process has another one.
            ranked = [(*load, (index - self._first) % count, index) for index, load in enumerate(loads)]
            chosen = min(ranked)[-1]
            self._open[chosen] += 1
            self._requests[chosen] += 1
        try:
            yield self.models[chosen]
            with self._lock:
                # It has answered by now, so a later check of its weights holds for the answer.
                self._unconfirmed.add(chosen)
        finally:
            with self._lock:
                self._open[chosen] -= 1

    def confirm(self) -> None:
        """Raise EngineError unless every server that has replied since the last call holds the weights of the last
        sync."""
        with self._lock:
            replied, self._unconfirmed = sorted(self._unconfirmed), set()
        _each([self.models[index] for index in replied], RemoteModel.confirm)

    def take(self, weights: Weights) -> None:
        """Sync `weights` to every server. Raises EngineError if one does not confirm them."""
        self.updated = False
        self._forget_adapter()
        if self.config.adapter == "lora" and weights.has_adapter:
            _each(self.models, RemoteModel.look)
            self._sync([model for model in self.models if model.base_differs], weights.base, differs=False)
            self._sync_adapter(weights)
        else:
            self._sync(self.models, weights.whole, differs=True)
        self.updated = True

    def synced(self) -> tuple[Synced, ...]:
        """Name and version of the last sync at each server."""
        return tuple(model.synced() for model in self.models)

    def follow(self, synced: Sequence[Synced]) -> None:
        """Request the weights that another process has synced under these names."""
        for model, (name, version) in zip(self.models, synced, strict=True):
            model.follow(name, version)
        self.updated = True

    def close(self) -> None:
        """Leave no adapter behind at servers that still answer."""
        try:
            self._forget_adapter()
        except EngineError as error:
            log.warning("an adapter could not be removed from the server: %s", error)

    def _sync(
        self, models: Sequence[RemoteModel], weights: Callable[[], Iterable[tuple[str, Tensor]]], *, differs: bool
    ) -> None:
        """Pass a whole model's weights, by the names of the Hugging Face model's parameters, in files that all read."""
        if not models:
            return
        self._updates += 1
        version = f"{self._run}-{self._updates}"
        with self._place.written(lambda folder: write_weights(folder, weights())) as folder:
            _each(models, lambda model: model.receive(folder, version))
        for model in models:
            model.base_differs = differs

    def _sync_adapter(self, weights: Weights) -> None:
        self._updates += 1
        name = f"memfactory-{self._run}-{self._updates}"
        # A server reads an adapter again after it has dropped it, and dies if the files are gone.
        self._adapter = self._place.written(weights.write_adapter)
        folder = self._adapter.name
        _each(self.models, lambda model: model.load_adapter(name, folder))

    def _forget_adapter(self) -> None:
        files, self._adapter = self._adapter, None
        try:
            _each(self.models, RemoteModel.forget_adapter)
        finally:
            if files is not None:
                files.cleanup()


def _each(models: Sequence[RemoteModel], work: Callable[[RemoteModel], None]) -> None:
    """Do `work` at all servers at one time. Raises the first error, after all have ended."""
    if len(models) == 1:
        work(models[0])
    elif models:
        with ThreadPoolExecutor(len(models), "vllm-sync") as threads:
            for done in [threads.submit(work, model) for model in models]:
                done.result()
