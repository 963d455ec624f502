"""The model in training: log-probabilities and optimizer steps.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

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
from memfactory.policy.forward import ForwardPass, MicroBatch, autocast
from memfactory.policy.kl_control import KlCoefficient
from memfactory.policy.marks import marked
from memfactory.policy.measures import Measures, measured, merged
from memfactory.policy.objective import token_losses
from memfactory.policy.objectives.base import make_objective
from memfactory.policy.optimizer import Schedule, WholeGradients, fitting, kind_for, make_optimizer
from memfactory.policy.processes import check_processes, make_accelerator
from memfactory.policy.reference import Reference
from memfactory.policy.saving import SavedPolicy
from memfactory.policy.self_test import usable_feeding
from memfactory.policy.weights import check_head, check_masters, trainable
from memfactory.seeds import stream_seed

T = TypeVar("T")
log = logging.getLogger("memfactory")


class Policy(SavedPolicy, WholeGradients):
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
        self.device = self._device_of(model, config)
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
        self._warned_uncorrected = False
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
        self._make_equal()
        self.network.eval()
        trial = self._trial()
        with autocast(self.device, self.compute_dtype):
            check_head(trial)
        feeding = usable_feeding(trial, options, self.compute_dtype)
        del trial
        self.forward = ForwardPass(self.model.config, chat, options, self.device, self.compute_dtype, feeding)
        with fitting("the reference model", "train without one (train.loss.kl_coef: 0)"):
            self.reference = self._reference(continued=continued) if self.loss.kl_coef > 0 else None
        self._distribute()
        self.set_optimizer(options.optimizer, options.planned_updates)

    def _device_of(self, model: Network, config: ModelConfig) -> torch.device:
        """The device that the policy computes on."""
        return next(model.parameters()).device

    def _make_equal(self) -> None:
        """Give all processes the same trained weights."""
        for parameter in self.trained:
            broadcast(parameter.data)

    def _trial(self) -> PreTrainedModel:
        """The model on which the self-tests run."""
        return self.model

    def _distribute(self) -> None:
        """Spread the weights over the processes. Here each holds all of them."""

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
                for indices, batch in self._micro_batches(turns, [0.0] * len(turns)):
                    logprobs, _ = self.forward.logprobs(model, batch, self.temperature)
                    if not indices:
                        continue
                    mask = batch.inputs.mask
                    replies = logprobs[mask].cpu().split(mask.sum(-1).tolist())
                    rows |= {index: tuple(reply.tolist()) for index, reply in zip(indices, replies, strict=True)}
            return rows

        return self._own_rows(self._within_memory(turns, score), len(turns))

    def _micro_batches(
        self, turns: Sequence[TrainingTurn], weights: Sequence[float]
    ) -> Iterator[tuple[list[int], MicroBatch]]:
        """The micro-batches of this process with the indices of their turns, for `_own_rows`. A micro-batch without an
        index is passed through the model and counts for nothing."""
        return self.forward.micro_batches(turns, weights)

    def _own_rows(self, rows: Mapping[int, tuple[float, ...]], count: int) -> list[tuple[float, ...]]:
        """The rows of this process's `count` turns, from those of its micro-batches by index."""
        return [rows[index] for index in range(count)]

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
            norm = self._clipped_norm()
            if math.isfinite(norm):
                with fitting("the optimizer's state", "write train.optimizer.kind: adamw_8bit"):
                    self.optimizer.step()
                self.changes += 1
            else:
                # A step with it would make every weight NaN.
                self.skipped_steps += 1
                log.warning("the gradient is not finite (norm %s): this optimizer step is skipped", norm)
        self._zero_gradients()
        rate = self.schedule.step()
        if measures:
            measures |= {"grad_norm": norm, "learning_rate": rate, "skipped_steps": float(self.skipped_steps)}
        return measures

    def with_marks(self, turns: Sequence[TrainingTurn]) -> list[TrainingTurn]:
        """The turns with the tokens that the objective chooses among those of all processes. All must call it."""
        scored = self._scores(self.model, turns)
        draw = Random(stream_seed(self.seed, "marks", self.schedule.steps))
        return marked(self.objective, turns, scored, draw, self.process_index)

    def backward(self, turns: Sequence[TrainingTurn]) -> dict[str, float]:
        """Leave the gradient of a whole optimizer step in the parameters, summed over processes.

        The measures are those of all processes; they are empty if no process has a turn.
        """
        self._warn_uncorrected(turns)
        totals = summed_totals(turns, self.accelerator)
        if totals.tokens == 0:
            return {}
        weights = token_weights(turns, self.loss, totals)
        parts = self._within_memory(turns, lambda: self._accumulate(turns, weights))
        measures = merged(parts, self.accelerator, self.device)
        self._sum_gradients()
        return measures

    def _warn_uncorrected(self, turns: Sequence[TrainingTurn]) -> None:
        """Warn once if the correction that `auto` chose is left out."""
        loss = self.loss
        if self._warned_uncorrected or not (loss.corrects and loss.automatic):
            return
        if any(turn.sampler_logprobs is None for turn in turns):
            self._warned_uncorrected = True
            log.warning(
                "the trainer's turns have no sampler_logprobs, so the loss leaves out %s, which "
                "train.loss.sampler_correction: auto selected. Give each TrainingTurn its reply's "
                "log-probabilities, or write sampler_correction: none",
                loss.sampler_correction,
            )

    def _zero_gradients(self) -> None:
        self.optimizer.zero_grad()

    def _accumulate(self, turns: Sequence[TrainingTurn], weights: Sequence[float]) -> list[Measures]:
        """Leave the gradient of this process's turns in the parameters; the measures of each micro-batch."""
        # Here and not by the caller: after running out of memory it starts over, without half a gradient.
        self._zero_gradients()
        micro_batches = self._micro_batches(turns, weights)
        parts: list[Measures] = []
        self.model.train()
        try:
            with self.forward.ready(self.model):
                for indices, batch in micro_batches:
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
                    if indices:
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
