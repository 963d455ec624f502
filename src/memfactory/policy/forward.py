"""The forward pass of training: turns into micro-batches, through a model, to the log-probabilities of their replies.

Read from top to bottom it is one pass:

    turns -> rows of ids (layout.py) -> micro-batch -> decoder -> states before reply tokens -> log-probabilities

It computes no loss and takes no optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from memfactory.config.training import Packing, TrainerOptions
from memfactory.model.chat import ChatFormat
from memfactory.model.free_memory import return_free_memory
from memfactory.model.tree_attention import LayerQueries, tree_attention
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.layout import Layout, Rows, micro_layouts
from memfactory.policy.logprobs import Distribution, chunked_logprobs
from memfactory.policy.objective import LossInputs
from memfactory.policy.pass_size import pass_size

Scores: TypeAlias = "tuple[Tensor, Tensor | None]"


@dataclass(frozen=True)
class MicroBatch:
    """Turns as tensors, [turns, longest reply] where they are per token: reply tokens alone, padded on the right.

    `layout` holds the ids in the rows that the model reads. `weights` [turns] are those of `batch.token_weights`.
    """

    layout: Layout
    reply_ids: Tensor
    weights: Tensor
    inputs: LossInputs


@dataclass(frozen=True)
class Feeding:
    """How a model reads its turns: in which rows, and whether its last layer computes only the states that are read.

    `self_test.usable_feeding` finds out which of the options a model can follow.
    """

    packing: Packing
    trims_last_layer: bool


class ForwardPass:
    """Passes over turns of models of this `config`, which compute in `dtype` on `device`.

    `micro_batch_tokens` bounds the tokens of one pass; the policy lowers it when memory runs out. `run` calls a
    function of a model, and is another one for a model that has work to do around it.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        chat: ChatFormat,
        options: TrainerOptions,
        device: torch.device,
        dtype: torch.dtype,
        feeding: Feeding,
    ) -> None:
        self.chat = chat
        self.device = device
        self.dtype = dtype
        self.feeding = feeding
        self.run: Callable[[PreTrainedModel, Callable[[PreTrainedModel], Scores]], Scores] = _run
        size = pass_size(options, config, cpu=device.type == "cpu")
        self.chunk_tokens, self.micro_batch_tokens = size.chunk_tokens, size.micro_batch_tokens
        self._large = size.bounded
        self._last_layer = LastLayer()

    @contextmanager
    def ready(self, model: PreTrainedModel) -> Iterator[None]:
        """Within it `model` attends as its packing needs, and its last layer is trimmed.

        All passes over `micro_batches` happen inside, and the backward pass of each before the next forward pass:
        gradient checkpointing runs the layers again in the backward pass, which must meet the same attention and hooks.
        """
        trimmed = self._last_layer.trimmed(model) if self.feeding.trims_last_layer else nullcontext()
        with tree_attention(model, self.feeding.packing != "padded"), trimmed:
            yield

    def micro_batches(
        self, turns: Sequence[TrainingTurn], weights: Sequence[float]
    ) -> Iterator[tuple[list[int], MicroBatch]]:
        """The turns in micro-batches, each with the indices of its turns."""
        rows = Rows(self.feeding.packing, self.chat.pad_id, self.device)
        for indices, layout in micro_layouts(turns, rows, self.micro_batch_tokens):
            yield indices, collate([turns[i] for i in indices], [weights[i] for i in indices], layout)
            if self._large:
                # Each pass is of another length than the one before, so its tensors do not fit the gaps that are left.
                return_free_memory()

    def logprobs(
        self,
        model: PreTrainedModel,
        batch: MicroBatch,
        temperature: float,
        *,
        with_entropy: bool = False,
        entropy_gradient: bool = False,
    ) -> Scores:
        """Log-probabilities of the reply tokens and, `with_entropy`, the entropies, [turns, longest reply], else 0.

        The distribution is softmax(logits / temperature) over all tokens of the tokenizer, as engines sample from.
        Both are float32 in every compute type. Entropies carry a gradient with `entropy_gradient` alone.
        """
        trims, mask = self.feeding.trims_last_layer, batch.inputs.mask
        # Set, not passed: the backward pass of this batch may run the last layer again, after this call.
        self._last_layer.places = batch.layout.last_layer_places if trims else None
        distribution = Distribution(
            self.chat.vocab_size, temperature, self.chunk_tokens, with_entropy, entropy_gradient
        )

        def score(model: PreTrainedModel) -> Scores:
            states = reply_states(model, batch.layout, trimmed=trims)
            return chunked_logprobs(states, batch.reply_ids[mask], model.get_output_embeddings(), distribution)

        with autocast(self.device, self.dtype), tree_attention(model, batch.layout.forest is not None):
            values, entropies = self.run(model, score)
        # Values come turn by turn, as the mask is read row by row, so each lands in the row of its own turn.
        rows = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
        return rows.masked_scatter(mask, values), None if entropies is None else rows.masked_scatter(mask, entropies)


def _run(model: PreTrainedModel, work: Callable[[PreTrainedModel], Scores]) -> Scores:
    return work(model)


def collate(turns: Sequence[TrainingTurn], weights: Sequence[float], layout: Layout) -> MicroBatch:
    """The turns as one micro-batch on the device of `layout`, which holds them in the same order."""
    device = layout.input_ids.device
    lengths = torch.tensor([len(turn.reply_ids) for turn in turns])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    replies = torch.tensor([token for turn in turns for token in turn.reply_ids])
    # All is filled on the CPU and moved once: on a GPU each of these small steps would be a launch of its own.
    reply_ids = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(mask, replies)
    old_logprobs, reference_logprobs, sampler_logprobs = (
        _per_token([getattr(turn, name) for turn in turns], mask)
        for name in ("old_logprobs", "reference_logprobs", "sampler_logprobs")
    )
    marked = _marks(turns, mask)
    return MicroBatch(
        layout=layout,
        reply_ids=reply_ids.to(device),
        weights=torch.tensor(weights, dtype=torch.float32).to(device),
        inputs=LossInputs(
            advantages=torch.tensor([turn.advantage for turn in turns], dtype=torch.float32).to(device),
            mask=mask.to(device),
            old_logprobs=None if old_logprobs is None else old_logprobs.to(device),
            reference_logprobs=None if reference_logprobs is None else reference_logprobs.to(device),
            sampler_logprobs=None if sampler_logprobs is None else sampler_logprobs.to(device),
            marked=None if marked is None else marked.to(device),
        ),
    )


def _per_token(rows: Sequence[tuple[float, ...] | None], mask: Tensor) -> Tensor | None:
    """Values of reply tokens in the shape of `mask`, 0 elsewhere; None if no row has any."""
    known = [row for row in rows if row is not None]
    if not known:
        return None
    if len(known) < len(rows):
        raise ValueError(f"{len(known)} of {len(rows)} turns have log-probabilities; all or none must")
    flat = torch.tensor([value for row in known for value in row], dtype=torch.float32)
    return torch.zeros(mask.shape).masked_scatter(mask, flat)


def _marks(turns: Sequence[TrainingTurn], mask: Tensor) -> Tensor | None:
    """The marks of the reply tokens in the shape of `mask`; None if no turn has any."""
    if all(turn.marks is None for turn in turns):
        return None
    flat = torch.tensor([mark for turn in turns for mark in turn.marks or (False,) * len(turn.reply_ids)])
    return torch.zeros(mask.shape, dtype=torch.bool).masked_scatter(mask, flat)


def reply_states(model: PreTrainedModel, layout: Layout, *, trimmed: bool = False) -> Tensor:
    """The last hidden states [N, width] that predict the reply tokens of `layout`, turn by turn.

    With `layout.forest` the model must be under `tree_attention`, in the backward pass too if that runs layers again.
    With `trimmed` the tokens of `layout.last_layer_ranges` are the only queries in the last layer.
    """
    decoder = model.get_decoder()
    forest = layout.forest
    if forest is None:
        # No attention mask: padding is on the right, and a causal model never looks there.
        hidden = decoder(input_ids=layout.input_ids, use_cache=False).last_hidden_state
    else:
        if trimmed:
            queries = LayerQueries(model.config.num_hidden_layers - 1, layout.last_layer_ranges)
            forest = replace(forest, trimmed=queries)
        hidden = decoder(
            input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False, attention_plan=forest
        ).last_hidden_state
    # Gathered before the head: logits of prompt tokens would be most of the memory of the step.
    return hidden.flatten(0, 1).index_select(0, layout.sources)


class LastLayer:
    """The last layer's feed-forward block on the states alone that are read.

    Every other layer's states become keys and values of the next. Of the last layer's output only the states before
    reply tokens are read, so the block's work on prompt tokens, two thirds of a layer, changes nothing. `places` are
    the places of the flattened rows x width states that are read; None: all of them.
    """

    def __init__(self) -> None:
        self.places: Tensor | None = None

    @contextmanager
    def trimmed(self, model: PreTrainedModel) -> Iterator[None]:
        """Within it the feed-forward block of `model` gives 0 at all other places, in the backward pass as well."""
        module = _feed_forward(model)
        if module is None:
            yield
            return
        hooks = [module.register_forward_pre_hook(self._select), module.register_forward_hook(self._scatter)]
        try:
            yield
        finally:
            self.places = None
            for hook in hooks:
                hook.remove()

    def _select(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.places is None:
            return None
        self._shape = inputs[0].shape
        return (inputs[0].flatten(0, 1).index_select(0, self.places)[None], *inputs[1:])

    def _scatter(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.places is None:
            return None
        # 0 is safe: the residual stream carries the other states on, and nobody reads them.
        whole = output.new_zeros(self._shape).flatten(0, 1)
        return whole.index_copy(0, self.places, output[0]).view(self._shape)


def _feed_forward(model: PreTrainedModel) -> nn.Module | None:
    """The feed-forward block of the last layer, under the names that most models use."""
    layers = getattr(model.get_decoder(), "layers", None)
    module = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    return module if isinstance(module, nn.Module) else None


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """bfloat16 compute over float32 weights; nothing for a model that computes in float32."""
    if dtype == torch.float32:
        return nullcontext()
    # A pass uses each weight once, so autocast's cache would only keep a second copy of all of them.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)
