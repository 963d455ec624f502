"""The model in training: log-probabilities, optimizer steps, saving.

One optimizer step reads like this:

    update: marks (if the objective chooses tokens) -> backward -> clip -> optimizer -> schedule
    backward: totals of all processes -> weight of each turn's tokens -> micro-batches -> sum over processes
    each micro-batch: forward pass -> per-token losses -> backward pass -> measures

Gradients are summed over processes here, once an optimizer step (docs/decisions/0001). It does not know where turns
come from, nor when a step is due.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from peft import PeftModel
from transformers import PreTrainedModel

from memfactory.config.losses import LossOptions
from memfactory.config.optimizer import OptimizerOptions
from memfactory.config.training import TrainerOptions
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.model.adapters import Network, base_model
from memfactory.model.chat import ChatFormat
from memfactory.model.fused_layers import keep_products
from memfactory.model.loading import compute_dtype
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn, summed_totals, token_weights
from memfactory.policy.dropout import silence_dropout
from memfactory.policy.forward import ForwardPass, autocast
from memfactory.policy.kl_control import KlCoefficient
from memfactory.policy.marks import marked
from memfactory.policy.measures import Measures, measured, merged
from memfactory.policy.objective import token_losses
from memfactory.policy.objectives.base import make_objective
from memfactory.policy.optimizer import Schedule, check_kind, fitting, kind_for, make_optimizer, sum_gradients
from memfactory.policy.processes import check_processes, make_accelerator
from memfactory.policy.reference import Reference
from memfactory.policy.self_test import usable_feeding
from memfactory.policy.weights import (
    PolicyWeights,
    check_head,
    check_masters,
    load_weights,
    save_weights,
    trainable,
)
from memfactory.seeds import stream_seed

T = TypeVar("T")
log = logging.getLogger("memfactory")


class Policy:
    """A causal language model that is trained whole (float32 weights, or bfloat16) or through LoRA adapters (float32).

    `model` is loaded for training (`load_model(..., training=True)`). It is changed in place, so an engine that holds
    it samples with the trained weights at once. Training of a model with an adapter continues that adapter.
    The loss is that of `options`: for a trainer without a loss of its own the negative log-likelihood of turns with
    advantage 1. The model is in eval mode except while a gradient is computed. `seed` fixes new adapters.
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
        self.set_loss(options.policy_loss)
        self.temperature = options.sampling.temperature
        self.skipped_steps = 0
        self.changes = 0
        # Optimizer steps, taken or skipped, since the process began: a resumed run counts from 0.
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
        with autocast(self.device, self.compute_dtype):
            check_head(self.model)
        feeding = usable_feeding(self.model, options, self.compute_dtype)
        self.forward = ForwardPass(self.model, chat, options, self.compute_dtype, feeding)
        with fitting("the reference model", "train without one (train.loss.kl_coef: 0)"):
            self.reference = self._reference(continued=continued) if self.loss.kl_coef > 0 else None
        self.set_optimizer(options.optimizer, options.planned_updates)

    def _reference(self, *, continued: bool) -> Reference:
        moves = self.loss.moving_reference
        averaged = moves and self.loss.reference_mixup < 1
        return Reference(self.network, self.compute_dtype, continued=continued, moves=moves, averaged=averaged)

    def set_loss(self, loss: LossOptions) -> None:
        """Train with `loss` from here on; its KL coefficient starts at its first value."""
        self.loss = loss
        self.objective = make_objective(loss)
        self.kl = KlCoefficient(loss)

    def set_optimizer(self, options: OptimizerOptions, total_steps: int) -> None:
        """A fresh optimizer, and a schedule over `total_steps` steps from here on."""
        self.max_grad_norm = options.max_grad_norm
        # Accelerate would hold on to the previous optimizer, and so to its moments.
        self.accelerator.free_memory()
        self.optimizer = self.accelerator.prepare(make_optimizer(self.trained, options, self.seed))
        self.chosen_kind = kind_for(self.trained, options) if options.kind == "auto" else None
        # Accelerate's own scheduler would advance once for every process.
        self.schedule = Schedule(self.optimizer, options, total_steps)

    @property
    def process_index(self) -> int:
        """This process's rank among those that train together."""
        return self.accelerator.process_index

    @property
    def process_count(self) -> int:
        """The number of processes that train together."""
        return self.accelerator.num_processes

    def wait_for_everyone(self) -> None:
        """Wait until every process has called it."""
        self.accelerator.wait_for_everyone()

    def in_any_process(self, holds: bool) -> bool:
        """Whether `holds` is true in at least one process. Every process must call it."""
        return any(gather_object([holds]))

    # Log-probabilities

    def score_old(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """The turns with the policy's log-probabilities as they are now: before the first of several updates."""
        scored = self._scores(self.model, turns)
        return [replace(turn, old_logprobs=row) for turn, row in zip(turns, scored, strict=True)]

    def score_reference(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """The turns with the reference's log-probabilities."""
        if self.reference is None:
            raise ValueError("there is no reference: kl_coef is 0")
        with self.reference.model() as model:
            scored = self._scores(model, turns)
        return [replace(turn, reference_logprobs=row) for turn, row in zip(turns, scored, strict=True)]

    @torch.no_grad()
    def _scores(self, model: PreTrainedModel, turns: Sequence[TrainingTurn]) -> list[tuple[float, ...]]:
        """The log-probabilities under `model` of each turn's reply tokens."""

        def score() -> dict[int, tuple[float, ...]]:
            rows: dict[int, tuple[float, ...]] = {}
            with self.forward.ready(model):
                for indices, batch in self.forward.micro_batches(turns, [0.0] * len(turns)):
                    logprobs, _ = self.forward.logprobs(model, batch, self.temperature)
                    mask = batch.inputs.mask
                    replies = logprobs[mask].cpu().split(mask.sum(-1).tolist())
                    rows |= {index: tuple(reply.tolist()) for index, reply in zip(indices, replies, strict=True)}
            return rows

        rows = self._within_memory(turns, score)
        return [rows[index] for index in range(len(turns))]

    def after_step(self, step: int, kl: float | None, trajectories: int) -> None:
        """After the last update on a rollout: adapt the KL coefficient, move the reference when it is due.

        `kl` is the mean over trained tokens of all processes (None: nothing was trained), `trajectories` their number.
        """
        if kl is not None:
            self.kl.adapt(kl, trajectories)
        if self.reference is not None and self.loss.moving_reference and step % self.loss.reference_sync_steps == 0:
            self.reference.move(self.loss.reference_mixup)

    # Optimizer steps

    def update(self, turns: Sequence[TrainingTurn]) -> dict[str, float]:
        """One optimizer step on this process's part of the turns; the measures are those of all processes.

        Every process must call it, also one without any turn. If no process has a turn, no step is taken and the result
        is empty. A step whose gradient is not finite is skipped and counted in `skipped_steps`. Either way the schedule
        goes on, so that it ends with the run.
        """
        if self.objective.marks:
            turns = self.with_marks(turns)
        measures = self.backward(turns)
        # From here on the weights or their schedule change, and an interrupted step cannot be taken again.
        self.updates += 1
        norm = 0.0
        if measures:
            norm = float(self.accelerator.clip_grad_norm_(self.trained, self.max_grad_norm))
            if math.isfinite(norm):
                with fitting("the optimizer's state", "write train.optimizer.kind: adamw_8bit"):
                    self.optimizer.step()
                self.changes += 1
            else:
                # A step with it would make every weight NaN.
                self.skipped_steps += 1
                log.warning("the gradient is not finite (norm %s): this optimizer step is skipped", norm)
        self.optimizer.zero_grad()
        rate = self.schedule.step()
        if measures:
            measures |= {"grad_norm": norm, "learning_rate": rate, "skipped_steps": float(self.skipped_steps)}
        return measures

    def with_marks(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """The turns with the tokens that the objective chooses among those of all processes. All must call it."""
        scored = self._scores(self.model, turns) if turns else []
        draw = Random(stream_seed(self.seed, "marks", self.schedule.steps))
        return marked(self.objective, turns, scored, draw, self.process_index)

    def backward(self, turns: Sequence[TrainingTurn]) -> dict[str, float]:
        """Leave the gradient of a whole optimizer step in the parameters, summed over processes.

        The measures are those of all processes; they are empty if no process has a turn.
        """
        totals = summed_totals(turns, self.accelerator)
        if totals.tokens == 0:
            return {}
        weights = token_weights(turns, self.loss, totals)
        parts = self._within_memory(turns, lambda: self._accumulate(turns, weights))
        measures = merged(parts, self.accelerator, self.device)
        sum_gradients(self.accelerator, self.trained)
        return measures

    def _accumulate(self, turns: Sequence[TrainingTurn], weights: Sequence[float]) -> list[Measures]:
        """Leave the gradient of this process's turns in the parameters; the measures of each micro-batch."""
        # Here and not by the caller: after running out of memory it starts over, without half a gradient.
        self.optimizer.zero_grad()
        parts: list[Measures] = []
        self.model.train()
        try:
            with self.forward.ready(self.model):
                for _, batch in self.forward.micro_batches(turns, weights):
                    logprobs, entropies = self.forward.logprobs(
                        self.model,
                        batch,
                        self.temperature,
                        with_entropy=True,
                        entropy_gradient=self.loss.entropy_coef > 0,
                    )
                    losses = token_losses(
                        logprobs,
                        batch.inputs,
                        self.loss,
                        objective=self.objective,
                        kl_coef=self.kl.value,
                        entropies=entropies,
                    )
                    parts.append(measured(batch, logprobs, losses, entropies))
                    self.accelerator.backward((batch.weights[:, None] * losses.loss).sum())
        finally:
            self.model.eval()
        return parts

    def _within_memory(self, turns: Sequence[TrainingTurn], work: Callable[[], T]) -> T:
        """The result of `work`, which starts over with half the micro-batch whenever memory runs out."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            # Only out here is the failed work's memory free: the exception held on to its frames and their tensors.
            longest = max(turn.length for turn in turns)
            budget = self.forward.micro_batch_tokens
            if budget <= longest:
                raise MemFactoryError(
                    f"one conversation of {longest} tokens alone does not fit into memory ({reason}). Train adapters "
                    "(train.lora), turn on train.gradient_checkpointing, or make the conversations shorter."
                )
            self.forward.micro_batch_tokens = max(longest, budget // 2)
            log.warning("out of memory: micro_batch_tokens is %d from here on", self.forward.micro_batch_tokens)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    # Weights

    def weights(self) -> PolicyWeights:
        """The model as it is now, in its compute type: for engines with a copy of their own."""
        return PolicyWeights(self.network, self.compute_dtype, self.changes)

    def optimizer_state(self) -> dict[str, object]:
        """Optimizer, schedule and counters: with the weights of `save_masters` all that a step depends on."""
        adaptive = {"kl_coef": self.kl.value} if self.kl.adapts else {}
        chosen = {} if self.chosen_kind is None else {"kind": self.chosen_kind}
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "skipped_steps": self.skipped_steps,
            **adaptive,
            **chosen,
        }

    def save_masters(self, folder: Path) -> None:
        """Write the trained weights in their own type and the tokenizer, for `from_pretrained` or PEFT to load.

        A reference that moves is written beside them.
        """
        save_weights(self.network, folder, self.masters)
        if self.reference is not None:
            self.reference.save(folder)
        self.chat.tokenizer.save_pretrained(str(folder))

    def save_pretrained(self, folder: Path) -> None:
        """Write the model in its compute type (an adapter in float32) and the tokenizer, as safetensors."""
        save_weights(self.network, folder, self.compute_dtype)
        self.chat.tokenizer.save_pretrained(str(folder))

    def load(self, folder: Path, optimizer: Mapping[str, Any]) -> None:
        """Restore the weights that `save_masters` wrote to `folder`, and `optimizer`, an `optimizer_state`.

        Raises ConfigError if `optimizer.kind: auto` selected another kind then.
        """
        check_kind(optimizer.get("kind"), self.chosen_kind)
        load_weights(self.network, folder)
        self.changes += 1
        self.optimizer.load_state_dict(optimizer["optimizer"])
        self.schedule.load_state_dict(optimizer["schedule"])
        self.skipped_steps = int(optimizer["skipped_steps"])
        self.kl.value = float(optimizer.get("kl_coef", optimizer.get("kl_weight", self.loss.kl_coef)))
        if self.reference is not None:
            self.reference.load(folder)
