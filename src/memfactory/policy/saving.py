"""A policy's weights and optimizer, written to and read from the files of a run. It computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.nn import Parameter

from memfactory.config.losses import LossOptions
from memfactory.errors import MemFactoryError
from memfactory.files.checkpoints import SHARDS
from memfactory.model.adapters import Network
from memfactory.model.chat import ChatFormat
from memfactory.policy.kl_control import KlCoefficient
from memfactory.policy.optimizer import Schedule, check_kind
from memfactory.policy.reference import Reference
from memfactory.policy.weights import PolicyWeights, load_weights, save_weights


class SavedPolicy:
    """The part of a policy that is saved: weights, optimizer, schedule and counters.

    The first process writes all files. Where it needs the others for it, they call the method of the same name with
    `help_` before it at the same time.
    """

    network: Network
    chat: ChatFormat
    compute_dtype: torch.dtype
    masters: torch.dtype
    trained: list[Parameter]
    optimizer: AcceleratedOptimizer
    schedule: Schedule
    loss: LossOptions
    kl: KlCoefficient
    reference: Reference | None
    skipped_steps: int
    changes: int
    chosen_kind: str | None

    def weights(self) -> PolicyWeights:
        """The model as it is now, in its compute type: for engines with a copy of their own."""
        return PolicyWeights(self.network, self.compute_dtype, self.changes)

    def ready_to_sample(self) -> None:
        """Give engines that sample from the policy itself its newest weights. Every process must call it."""
        # They sample from the very weights that are trained.

    @property
    def saves_alone(self) -> bool:
        """Whether the first process can save without the others."""
        return True

    def optimizer_state(self) -> dict[str, object]:
        """Optimizer, schedule and counters: with the weights of `save_masters` all that a step depends on."""
        return {"optimizer": self.optimizer.state_dict(), **self._counters()}

    def _counters(self) -> dict[str, object]:
        adaptive = {"kl_coef": self.kl.value} if self.kl.adapts else {}
        chosen = {} if self.chosen_kind is None else {"kind": self.chosen_kind}
        return {"schedule": self.schedule.state_dict(), "skipped_steps": self.skipped_steps, **adaptive, **chosen}

    def save_masters(self, folder: Path) -> None:
        """Write the trained weights in their own type and the tokenizer, for `from_pretrained` or PEFT to load.

        A reference that moves is written beside them.
        """
        save_weights(self.network, folder, self.masters)
        if self.reference is not None:
            self.reference.save(folder)
        self.chat.tokenizer.save_pretrained(str(folder))

    def help_save_masters(self) -> None:
        """Do this process's part of `save_masters`."""

    def save_pretrained(self, folder: Path) -> None:
        """Write the model in its compute type (an adapter in float32) and the tokenizer, as safetensors."""
        save_weights(self.network, folder, self.compute_dtype)
        self.chat.tokenizer.save_pretrained(str(folder))

    def help_save_pretrained(self) -> None:
        """Do this process's part of `save_pretrained`."""

    def load(self, folder: Path, optimizer: Mapping[str, Any]) -> None:
        """Restore the weights that `save_masters` wrote to `folder`, and `optimizer`, an `optimizer_state`.

        Sharded ones are read, too. Raises MemFactoryError for those of another model, and ConfigError if
        `optimizer.kind: auto` selected another kind then.
        """
        check_kind(optimizer.get("kind"), self.chosen_kind)
        self._load_weights(folder, optimizer)
        self.changes += 1
        self.schedule.load_state_dict(optimizer["schedule"])
        self.skipped_steps = int(optimizer["skipped_steps"])
        self.kl.value = float(optimizer.get("kl_coef", optimizer.get("kl_weight", self.loss.kl_coef)))
        if self.reference is not None:
            self.reference.load(folder)

    def _load_weights(self, folder: Path, optimizer: Mapping[str, Any]) -> None:
        """Restore the weights and the optimizer's own state."""
        if (folder / SHARDS).is_dir():
            self._load_shards(folder)
            return
        load_weights(self.network, folder)
        self.optimizer.load_state_dict(optimizer["optimizer"])

    def _load_shards(self, folder: Path) -> None:
        """Read the shards of any number of processes."""
        from memfactory.policy.shard_checkpoint import read_shards

        if not isinstance(self.optimizer.optimizer, torch.optim.AdamW):
            raise MemFactoryError(
                f"{folder / SHARDS} holds the moments of train.optimizer.kind: adamw; resume it with that kind"
            )
        weights = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        read_shards(folder, weights, dict(zip(weights, self.trained, strict=True)), self.optimizer.optimizer)
