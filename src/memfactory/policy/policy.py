"""The model in training: log-probabilities, optimizer steps, saving.

Gradients are summed over processes here, once an optimizer step (docs/decisions/0001). It does not know where turns
come from, nor when a step is due.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from memfactory.config.training import OptimizerOptions, TrainerOptions
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.model.adapters import Network, base_model
from memfactory.model.chat import ChatFormat
from memfactory.model.fused_layers import keep_products
from memfactory.model.loading import compute_dtype
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import Batch, TrainingTurn, count, token_weights
from memfactory.policy.dropout import silence_dropout
from memfactory.policy.kl_control import KlCoefficient
from memfactory.policy.marks import marked
from memfactory.policy.measures import Measures
from memfactory.policy.objective import Extras, token_losses
from memfactory.policy.objectives.base import make_objective
from memfactory.policy.optimizer import Schedule, make_optimizer
from memfactory.policy.passes import Passes
from memfactory.policy.processes import check_processes, make_accelerator, sum_gradients, summed_totals
from memfactory.policy.reference import Reference
from memfactory.policy.weights import (
    PolicyWeights,
    check_head,
    check_masters,
    load_weights,
    save_weights,
    trainable,
)
from memfactory.seeds import stream_seed

log = logging.getLogger("memfactory")


class Policy:
    """A causal language model that is trained whole (float32 weights, or bfloat16) or through LoRA adapters (float32).

    `model` is loaded for training (`load_model(..., training=True)`); it is changed in place, so an engine that holds
    it speaks with the trained weights at once. A model that already carries an adapter goes on training that adapter.
    The loss is that of `options`: the negative log-likelihood of turns with advantage 1 for a trainer without a loss.
    The model is in eval mode except while a gradient is computed. `seed` fixes new adapters.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        chat: ChatFormat,
        config: ModelConfig,
        options: TrainerOptions,
        *,
        accelerator: Accelerator | None = None,
        seed: int = 0,
    ) -> None:
        self.device = next(model.parameters()).device
        self.accelerator = accelerator or make_accelerator(self.device)
        check_processes(self.accelerator)
        self.compute_dtype = compute_dtype(config, self.device)
        if self.compute_dtype == torch.float16:
            raise ConfigError("model.dtype: float16 is too narrow to train in; write bfloat16 or float32")
        self.chat = chat
        self.options = options
        self.loss = options.policy_loss
        self.objective = make_objective(self.loss)
        self.kl = KlCoefficient(self.loss)
        self.temperature = options.sampling.temperature
        self.skipped_steps = 0
        self.changes = 0
        # Optimizer steps taken or skipped by this process, whatever optimizer took them.
        self.updates = 0

        continued = isinstance(model, PeftModel)
        self.seed = seed
        self.masters = torch.bfloat16 if options.stochastic and not continued else torch.float32
        check_masters(self.masters, self.compute_dtype)
        if not options.model_dropout:
            silence_dropout(model)
        if options.gradient_checkpointing:
            keep_products(model)
            # transformers 5.17 renamed it.
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        self.network: Network = trainable(model, options.lora, self.compute_dtype, seed, self.masters)
        self.model: PreTrainedModel = base_model(self.network)
        self.trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        for parameter in self.trained:
            broadcast(parameter.data)
        self.network.eval()
        self.passes = Passes(self.model, chat, self.compute_dtype, options)
        with self.autocast():
            check_head(self.model)
        kept = self.loss.kl_coef > 0
        with _fitting("the reference model", "train without one (train.loss.kl_coef: 0)"):
            self.reference = self._reference(continued=continued) if kept else None
        self.set_optimizer(options.optimizer, options.planned_updates)

    def _reference(self, *, continued: bool) -> Reference:
        moves = self.loss.moving_reference
        averaged = moves and self.loss.reference_mixup < 1
        return Reference(self.network, self.compute_dtype, continued=continued, moves=moves, averaged=averaged)

    def set_optimizer(self, options: OptimizerOptions, total_steps: int) -> None:
        """A fresh optimizer, and a schedule over `total_steps` steps from here on."""
        self.max_grad_norm = options.max_grad_norm
        # Accelerate would hold on to the optimizer before, and so to its state.
        self.accelerator.free_memory()
        self.optimizer = self.accelerator.prepare(make_optimizer(self.trained, options, self.seed))
        # Accelerate's own scheduler would advance once for every process.
        self.schedule = Schedule(self.optimizer, options, total_steps)

    @property
    def process_index(self) -> int:
        return self.accelerator.process_index

    @property
    def process_count(self) -> int:
        return self.accelerator.num_processes

    def wait_for_everyone(self) -> None:
        self.accelerator.wait_for_everyone()

    def in_any_process(self, holds: bool) -> bool:
        """Whether `holds` is true in one of the processes at least. Every process must call it."""
        return any(gather_object([holds]))

    # Log-probabilities

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 compute over float32 weights; nothing where the model computes in float32."""
        return self.passes.autocast()

    def logprobs(
        self, batch: Batch, temperature: float | None = None, *, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (and entropies) of the reply tokens, [turns, longest reply] as `batch.reply_mask`, else 0.

        The distribution is softmax(logits / temperature) over all tokens of the tokenizer, as engines sample from;
        None: the temperature in training. float32 whatever the model computes in; entropies carry a gradient only
        where the loss has an entropy bonus.
        """
        graded = with_entropy and self.loss.entropy_coef > 0
        return self.passes.logprobs(
            self.model, batch, temperature or self.temperature, with_entropy=with_entropy, entropy_gradient=graded
        )

    def score_old(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """The turns with the policy's log-probabilities as they are now: before the first of several updates."""
        scored = self.passes.scores(self.model, turns, self.temperature)
        return [replace(turn, old_logprobs=row) for turn, row in zip(turns, scored, strict=True)]

    def score_reference(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """The turns with the reference's log-probabilities."""
        if self.reference is None:
            raise ValueError("no reference is kept: kl_coef is 0")
        with self.reference.model() as model:
            scored = self.passes.scores(model, turns, self.temperature)
        return [replace(turn, reference_logprobs=row) for turn, row in zip(turns, scored, strict=True)]

    def after_step(self, step: int, kl: float | None, trajectories: int) -> None:
        """What follows the last update on a rollout: the KL coefficient adapts, the reference moves when it is due.

        `kl` is the mean over trained tokens of all processes (None: nothing was trained), `trajectories` their number.
        """
        if kl is not None:
            self.kl.adapt(kl, trajectories)
        if self.reference is not None and self.loss.moving_reference and step % self.loss.reference_sync_steps == 0:
            self.reference.move(self.loss.reference_mixup)

    # Optimizer steps

    def update(self, turns: Sequence[TrainingTurn]) -> dict[str, float]:
        """One optimizer step on this process's share of the turns, and what was measured over all processes.

        Every process must call it, also one without any turn. Where no process has a turn, no step is taken and the
        result is empty. A step whose gradient is not finite is skipped and counted in `skipped_steps`. Either way
        the schedule goes on, so that it ends with the run.
        """
        rate = self.schedule.learning_rate
        if self.objective.marks:
            turns = self.with_marks(turns)
        measured = self.backward(turns)
        # From here on what is trained, or its schedule, changes.
        self.updates += 1
        if measured:
            norm = float(self.accelerator.clip_grad_norm_(self.trained, self.max_grad_norm))
            if math.isfinite(norm):
                with _fitting("the optimizer's state", "write train.optimizer.kind: adamw_8bit"):
                    self.optimizer.step()
                self.changes += 1
            else:
                self.skipped_steps += 1
                log.warning("the gradient is not finite (norm %s): this optimizer step is skipped", norm)
            measured |= {"grad_norm": norm, "learning_rate": rate, "skipped_steps": float(self.skipped_steps)}
        self.optimizer.zero_grad()
        self.schedule.step()
        return measured

    def with_marks(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """The turns with the tokens that the objective chooses among those of all processes. All must call it."""
        scored = self.passes.scores(self.model, turns, self.temperature) if turns else []
        draw = Random(stream_seed(self.seed, "marks", self.schedule.steps))
        return marked(self.objective, turns, scored, draw, self.process_index)

    def backward(self, turns: Sequence[TrainingTurn]) -> dict[str, float]:
        """Leave the gradient of a whole optimizer step in the parameters, summed over processes.

        The result is what was measured over all processes; it is empty where no process has a turn.
        """
        totals = summed_totals(self.accelerator, count(turns))
        if totals.tokens == 0:
            return {}
        weights = token_weights(turns, self.loss, totals)
        measures = self.passes.within_memory(turns, lambda: self._accumulate(turns, weights))
        sum_gradients(self.accelerator, self.trained)
        return measures.merged(self.accelerator)

    def _accumulate(self, turns: Sequence[TrainingTurn], weights: Sequence[float]) -> Measures:
        """Leave the gradient of this process's turns in the parameters."""
        self.optimizer.zero_grad()
        measures = Measures(self.device)
        self.model.train()
        try:
            with self.passes.ready(self.model):
                for _, batch in self.passes.batches(turns, weights):
                    logprobs, entropies = self.logprobs(batch, with_entropy=True)
                    losses = token_losses(
                        logprobs,
                        batch.old_logprobs,
                        batch.advantages,
                        batch.reply_mask,
                        self.loss,
                        batch.reference_logprobs,
                        batch.sampler_logprobs,
                        Extras(self.kl.value if self.kl.adapts else None, entropies, batch.marked),
                    )
                    measures.add(batch, logprobs, losses, entropies)
                    self.accelerator.backward((batch.weights[:, None] * losses.loss).sum())
        finally:
            self.model.eval()
        return measures

    # Weights

    def weights(self) -> PolicyWeights:
        """The model as it is now, in the type it computes in: for engines that keep a copy of their own."""
        return PolicyWeights(self.network, self.compute_dtype, self.changes)

    def optimizer_state(self) -> dict[str, object]:
        """Optimizer, schedule and counters: with the weights of `save_masters` all that a step depends on."""
        adapted = {"kl_coef": self.kl.value} if self.kl.adapts else {}
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "skipped_steps": self.skipped_steps,
            **adapted,
        }

    def save_masters(self, folder: Path) -> None:
        """Write the trained weights as they are and the tokenizer, as `from_pretrained` or PEFT loads them.

        A reference that moves is written beside them.
        """
        save_weights(self.network, folder, self.masters)
        if self.reference is not None:
            self.reference.save(folder)
        self.chat.tokenizer.save_pretrained(str(folder))

    def save_pretrained(self, folder: Path) -> None:
        """Write the model in the type it computes in (an adapter in float32) and the tokenizer, as safetensors."""
        save_weights(self.network, folder, self.compute_dtype)
        self.chat.tokenizer.save_pretrained(str(folder))

    def load(self, folder: Path, optimizer: Mapping[str, Any]) -> None:
        """Go back to what `save_masters` wrote to `folder` and to the state that `optimizer_state` gave."""
        load_weights(self.network, folder)
        self.changes += 1
        self.optimizer.load_state_dict(optimizer["optimizer"])
        self.schedule.load_state_dict(optimizer["schedule"])
        self.skipped_steps = int(optimizer["skipped_steps"])
        self.kl.value = float(optimizer.get("kl_coef", optimizer.get("kl_weight", self.loss.kl_coef)))
        if self.reference is not None:
            self.reference.load(folder)


@contextmanager
def _fitting(what: str, remedy: str) -> Iterator[None]:
    """Raise MemFactoryError where memory runs out for `what`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise MemFactoryError(
            f"{what} does not fit into memory ({reason}). Train adapters (train.lora), or {remedy}"
        ) from error
