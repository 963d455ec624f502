"""Passes of a model over turns: micro-batches within the memory there is, and log-probabilities of their replies.

It knows no loss and no optimizer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memfactory.config.training import TrainerOptions
from memfactory.errors import MemFactoryError
from memfactory.model.chat import ChatFormat
from memfactory.policy.batch import Batch, TrainingTurn, collate
from memfactory.policy.last_layer import LastLayer
from memfactory.policy.layout import micro_batches
from memfactory.policy.logprobs import Distribution, chunked_logprobs
from memfactory.policy.packing import attending, can_trim, reply_states, usable_packing

T = TypeVar("T")
log = logging.getLogger("memfactory")


class Passes:
    """How models like `model` go over turns under `options`, computing in `dtype`.

    `packing` is what the model can do of what the options ask for. `micro_batch_tokens` falls when memory runs out.
    """

    def __init__(self, model: PreTrainedModel, chat: ChatFormat, dtype: torch.dtype, options: TrainerOptions) -> None:
        self.chat = chat
        self.device = model.device
        self.dtype = dtype
        self.chunk_tokens = options.logprob_chunk_tokens
        self.micro_batch_tokens = options.micro_batch_tokens
        self.last_layer = LastLayer()
        with self.autocast():
            self.packing = usable_packing(model, options.packing, dtype)
            self.trims = options.trim_last_layer and can_trim(model, self.packing, dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 compute over float32 weights; nothing where the model computes in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        # A pass uses each weight once, so autocast's cache would only keep a second copy of all of them.
        return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False)

    @contextmanager
    def ready(self, model: PreTrainedModel) -> Iterator[None]:
        """Within it the model attends as `packing` wants it and leaves out what is not read.

        Each pass over `batches` is made inside, the backward pass of each batch before the next batch's forward pass.
        """
        trimmed = self.last_layer.trimmed(model) if self.trims else nullcontext()
        with attending(model, self.packing != "padded"), trimmed:
            yield

    def batches(self, turns: Sequence[TrainingTurn], weights: Sequence[float]) -> Iterator[tuple[list[int], Batch]]:
        """The turns in micro-batches, each with its turns' indices."""
        for indices in micro_batches(turns, self.packing, self.micro_batch_tokens):
            chosen, weighed = [turns[i] for i in indices], [weights[i] for i in indices]
            yield indices, collate(chosen, weighed, self.chat.pad_id, self.packing).to(self.device)

    def logprobs(
        self,
        model: PreTrainedModel,
        batch: Batch,
        temperature: float,
        *,
        with_entropy: bool = False,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (and entropies) of the reply tokens, laid out as `batch.reply_mask`, float32, else 0.

        Entropies carry a gradient with `entropy_gradient` alone.
        """
        self.last_layer.kept = batch.layout.kept if self.trims else None
        distribution = Distribution(
            self.chat.vocab_size, temperature, self.chunk_tokens, with_entropy, entropy_gradient
        )
        with self.autocast(), attending(model, batch.layout.parts is not None):
            values, entropies = chunked_logprobs(
                reply_states(model, batch.layout, trimmed=self.trims),
                batch.reply_ids[batch.reply_mask],
                model.get_output_embeddings(),
                distribution,
            )
        return _spread(values, batch.reply_mask), None if entropies is None else _spread(entropies, batch.reply_mask)

    @torch.no_grad()
    def scores(
        self, model: PreTrainedModel, turns: Sequence[TrainingTurn], temperature: float
    ) -> list[tuple[float, ...]]:
        """The log-probabilities of each turn's reply tokens."""

        def score() -> dict[int, tuple[float, ...]]:
            rows: dict[int, tuple[float, ...]] = {}
            with self.ready(model):
                for indices, batch in self.batches(turns, [0.0] * len(turns)):
                    values, _ = self.logprobs(model, batch, temperature)
                    replies = values[batch.reply_mask].cpu().split(batch.reply_mask.sum(-1).tolist())
                    rows |= {index: tuple(reply.tolist()) for index, reply in zip(indices, replies, strict=True)}
            return rows

        rows = self.within_memory(turns, score)
        return [rows[index] for index in range(len(turns))]

    def within_memory(self, turns: Sequence[TrainingTurn], work: Callable[[], T]) -> T:
        """The result of `work`, which is done again from its start with half the micro-batch where memory ran out."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            # Only out here is the failed work's memory free: the exception held on to its tensors.
            longest = max(turn.length for turn in turns)
            if self.micro_batch_tokens <= longest:
                raise MemFactoryError(
                    f"one conversation of {longest} tokens alone does not fit into memory ({reason}). Train adapters "
                    "(train.lora), turn on train.gradient_checkpointing, or make the conversations shorter."
                )
            self.micro_batch_tokens = max(longest, self.micro_batch_tokens // 2)
            log.warning("out of memory: micro_batch_tokens is %d from here on", self.micro_batch_tokens)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """`values` at the places of `mask`, in order, and 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
