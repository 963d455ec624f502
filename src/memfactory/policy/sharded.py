"""The policy with its weights sharded over the processes: `train.shard: fsdp2` (docs/decisions/0009).

Each process holds a part of the weights, gradients and moments, and of the reference. Under adapters the base alone is
sharded; adapters are small and stay whole, with their optimizer, as without shards. Engines sample from a whole copy
that exists between the passes of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast, gather_object
from peft import PeftModel
from torch.nn import Parameter
from transformers import PreTrainedModel

from memfactory.config.optimizer import OptimizerOptions
from memfactory.errors import MemFactoryError
from memfactory.files.checkpoints import SHARDS
from memfactory.model.adapters import Network, base_model
from memfactory.model.loading import resolve_device
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.dealing import dealt
from memfactory.policy.forward import MicroBatch, collate
from memfactory.policy.layout import lay_out
from memfactory.policy.optimizer import fitting
from memfactory.policy.policy import Policy
from memfactory.policy.processes import of_first_process
from memfactory.policy.shard_checkpoint import sharded_state, take_shard, write_shards
from memfactory.policy.shards import (
    Twin,
    check_torch,
    local_parameters,
    local_part,
    run_inside,
    same_modules,
    shard,
    trial_model,
)
from memfactory.policy.weights import PolicyWeights, save_weights, saved_weights

T = TypeVar("T")


class ShardedPolicy(Policy):
    """A `Policy` of which each of several processes holds a part. All methods that compute must be called by all.

    Turns are dealt anew for each pass, in micro-batches: their owner is who rolled them out, and need not train them.
    """

    def _device_of(self, model: Network, config: ModelConfig) -> torch.device:
        # The model may wait in host memory: whole it need not fit the device.
        return resolve_device(config.device)

    def _make_equal(self) -> None:
        check_torch()
        self.sharded_weights = not isinstance(self.network, PeftModel)
        if self.sharded_weights:
            # Each process has read them from the same files.
            return
        for parameter in self.trained:
            parameter.data = parameter.data.to(self.device)
            broadcast(parameter.data)

    def _trial(self) -> PreTrainedModel:
        return trial_model(self.model, self.device)

    def _distribute(self) -> None:
        adapters = set() if self.sharded_weights else set(self.trained)
        whole = self.network
        self.network = same_modules(whole)
        self.model = base_model(self.network)
        shard(self.model, self.device, self.compute_dtype, adapters)
        self.twin = Twin(whole, self.network, self.device)
        self.forward.run = run_inside
        if self.sharded_weights:
            self.trained = local_parameters(self.network)
        if self.reference is not None:
            self.reference.network, self.reference.trained = self.network, self.trained
            if self.reference.copy is not None:
                shard(self.reference.copy, self.device, self.compute_dtype, set(), frozen=True)

    def set_optimizer(self, options: OptimizerOptions, total_steps: int) -> None:
        # Moments are divided by the processes, and those of other kinds cannot be read by another number of them.
        kind = "adamw" if self.sharded_weights else options.kind
        super().set_optimizer(options.model_copy(update={"kind": kind}), total_steps)

    # Passes

    def _micro_batches(
        self, turns: Sequence[TrainingTurn], weights: Sequence[float]
    ) -> Iterator[tuple[list[int], MicroBatch]]:
        self.twin.release()
        every = gather_object(list(zip(turns, weights, strict=True)))
        packing, budget = self.forward.feeding.packing, self.forward.micro_batch_tokens
        rounds = dealt([turn for turn, _ in every], packing, budget, self.process_count)
        shortest = min(every, key=lambda pair: pair[0].length, default=None)
        for batches in rounds:
            indices = batches[self.process_index]
            # The others gather their layers now, which needs every process: one without turns passes a short one.
            chosen = [every[index] for index in indices] or [(shortest[0], 0.0)] if shortest else []
            batch = [turn for turn, _ in chosen]
            layout = lay_out(batch, packing, self.chat.pad_id).to(self.device)
            yield indices, collate(batch, [weight for _, weight in chosen], layout)

    def _own_rows(self, rows: Mapping[int, tuple[float, ...]], count: int) -> list[tuple[float, ...]]:
        merged = {index: row for part in gather_object([dict(rows)]) for index, row in part.items()}
        first = [0, *accumulate(gather_object([count]))][self.process_index]
        return [merged[first + index] for index in range(count)]

    def _within_memory(self, turns: Sequence[TrainingTurn], work: Callable[[], T]) -> T:
        # The others wait in the middle of a pass, so this process cannot begin anew.
        try:
            return work()
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
            raise MemFactoryError(
                f"memory ran out in a pass of {self.forward.micro_batch_tokens} tokens ({reason}). A sharded model "
                "cannot begin a pass anew with fewer; lower train.micro_batch_tokens and continue with --resume"
            ) from error

    # Gradients

    def _zero_gradients(self) -> None:
        super()._zero_gradients()
        self.network.zero_grad()

    def _sum_gradients(self) -> None:
        if not self.sharded_weights:
            super()._sum_gradients()
            return
        # FSDP has summed them, and left each process those of its shards.
        for own, parameter in zip(self.trained, self._sharded_parameters().values(), strict=True):
            own.grad = None if parameter.grad is None else local_part(parameter.grad)

    def _clipped_norm(self) -> float:
        if not self.sharded_weights:
            return super()._clipped_norm()
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        own = torch.nn.utils.get_total_norm(gradients).double().to(self.device)
        # The shards are disjoint: the square of the whole norm is the sum of their squares.
        norm = float(self.accelerator.reduce(own.square(), reduction="sum").sqrt())
        if math.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(self.trained, self.max_grad_norm, torch.tensor(norm))
        return norm

    # Weights

    @property
    def saves_alone(self) -> bool:
        return not self.sharded_weights

    def weights(self) -> PolicyWeights:
        # The engine hf samples from the twin; vLLM servers are sent its weights. vLLM in a training process is refused.
        return PolicyWeights(self.twin.network, self.compute_dtype, self.changes)

    def ready_to_sample(self) -> None:
        if not self.twin.filled:
            with fitting("the whole model for sampling", "sample on more or larger devices"):
                self.twin.fill(self.compute_dtype)

    def save_masters(self, folder: Path) -> None:
        if not self.sharded_weights:
            super().save_masters(folder)
            return
        self._write_shards(of_first_process(folder))
        self.chat.tokenizer.save_pretrained(str(folder))

    def help_save_masters(self) -> None:
        if self.sharded_weights:
            self._write_shards(of_first_process(None))

    def _write_shards(self, folder: Path) -> None:
        weights = self._sharded_parameters()
        own = dict(zip(weights, self.trained, strict=True))
        write_shards(folder, weights, own, self.optimizer.optimizer)

    def optimizer_state(self) -> dict[str, object]:
        return self._counters() if self.sharded_weights else super().optimizer_state()

    def save_pretrained(self, folder: Path) -> None:
        if not self.sharded_weights:
            super().save_pretrained(folder)
            return
        self.twin.release()
        for name, value in self.twin.weights(self.compute_dtype):
            self.twin.set(name, value.cpu())
        save_weights(self.twin.network, folder, self.compute_dtype)
        self.twin.release()
        self.chat.tokenizer.save_pretrained(str(folder))

    def help_save_pretrained(self) -> None:
        if self.sharded_weights:
            for _ in self.twin.weights(self.compute_dtype):
                pass

    def _load_weights(self, folder: Path, optimizer: Mapping[str, Any]) -> None:
        self.twin.release()
        if not self.sharded_weights or (folder / SHARDS).is_dir():
            super()._load_weights(folder, optimizer)
            return
        weights = self._sharded_parameters()
        for target, whole in zip(weights.values(), saved_weights(self.twin.network, folder), strict=True):
            take_shard(target, whole)
        own = dict(zip(map(id, self.trained), weights.values(), strict=True))
        for saved, group in zip(optimizer["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            for index, parameter in zip(saved["params"], group["params"], strict=True):
                state = optimizer["optimizer"]["state"].get(index)
                if state is not None:
                    self.optimizer.state[parameter] = sharded_state(state, parameter, own[id(parameter)], group)

    def _sharded_parameters(self) -> dict[str, Parameter]:
        return {name: value for name, value in self.network.named_parameters() if value.requires_grad}
