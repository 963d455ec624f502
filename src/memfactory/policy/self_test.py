"""Whether a model can be fed packed rows and trimmed: a trial on a few tokens, since otherwise it would train wrongly.

Models differ in how they pass masks and keywords to their attention. Each trial compares the fast way with padded rows
or with the formula; where they differ, training takes the slower way and says why.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memfactory.config.training import Packing, TrainerOptions
from memfactory.model.kernels import can_attend
from memfactory.model.tree_attention import Forest, tree_attention
from memfactory.model.trial import EXACT, ordinary_ids, relative_distance, rounding
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.forward import Feeding, LastLayer, autocast, reply_states
from memfactory.policy.layout import MIN_SHARED, Layout, lay_out

log = logging.getLogger("memfactory")
# The name that transformers gives a layer without a window.
FULL = "full_attention"
# Errors of models that do not pass keywords on to their attention, and of kernels that lack a type or a shape.
_CANNOT = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError)
# Relative errors of one attention call that rounding explains; a token that sees a token it must not see is far beyond.
_ROUNDING = {torch.float32: EXACT, torch.bfloat16: 5e-2}


def usable_feeding(model: PreTrainedModel, options: TrainerOptions, dtype: torch.dtype) -> Feeding:
    """The feeding that `options` ask for, as far as `model`, which computes in `dtype`, supports it."""
    with autocast(model.device, dtype):
        packing = usable_packing(model, options.packing, dtype)
        return Feeding(packing, options.trim_last_layer and can_trim(model, packing, dtype))


def usable_packing(model: PreTrainedModel, packing: Packing, dtype: torch.dtype) -> Packing:
    """`packing`, or "padded" with a warning that says why the model, which computes in `dtype`, cannot do it."""
    reason = None if packing == "padded" else _obstacle(model, dtype)
    if reason is None:
        return packing
    log.warning(
        "train.packing: %s is not possible here, so conversations are padded, which is slower: %s", packing, reason
    )
    return "padded"


@torch.no_grad()
def can_trim(model: PreTrainedModel, packing: Packing, dtype: torch.dtype) -> bool:
    """Whether the last layer can be computed only at the states that are read, under `packing`."""
    layout, last = _few_turns(model, packing), LastLayer()
    with tree_attention(model, packing != "padded"):
        whole = reply_states(model, layout)
        try:
            with last.trimmed(model):
                last.places = layout.last_layer_places
                trimmed = reply_states(model, layout, trimmed=True)
        except _CANNOT as error:
            log.info("all states of the last layer are computed: %s", error)
            return False
    distance = relative_distance(trimmed, whole)
    # Fewer states are summed in another order, which a kernel's own rounding need not show.
    if distance < _ROUNDING[dtype] or distance < _rounding_of_states(model, dtype):
        return True
    log.info("all states of the last layer are computed: leaving some out changes the others by %.3g", distance)
    return False


def _obstacle(model: PreTrainedModel, dtype: torch.dtype) -> str | None:
    """Why the model cannot be fed packed rows; None: it can."""
    config, device = model.config, model.device
    kind = f"models of type {config.model_type!r}"
    if not can_attend(device, dtype):
        return f"tree attention has no fast kernel for {str(dtype).removeprefix('torch.')} on {device.type}"
    # Only large scores reach the cap, which so few tokens need not have: the trial would not notice.
    if getattr(config, "attn_logit_softcapping", None):
        return "the model caps its attention scores"
    kinds = getattr(config, "layer_types", None)
    windowed = getattr(config, "sliding_window", None) is not None if kinds is None else set(kinds) != {FULL}
    # Nor would it notice a window that is longer than its turns.
    if windowed:
        return "some of the model's layers do not attend to all earlier tokens"
    try:
        states, gradient = _state_error(model), _gradient_error(model, dtype)
        _try_training(model)
    except _CANNOT as error:
        return f"{kind} fail under tree attention ({str(error).partition(chr(10))[0] or type(error).__name__})"
    # Not `error >= bound`: a NaN must count as an obstacle.
    if not gradient < _ROUNDING[dtype]:
        return f"{kind} give other gradients under tree attention (relative error {gradient:.2g})"
    if not states < EXACT and not states < (bound := _rounding_of_states(model, dtype)):
        return (
            f"{kind} give other results under tree attention (relative error {states:.2g}, of which rounding explains "
            f"{bound:.2g})"
        )
    return None


@torch.no_grad()
def _rounding_of_states(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """The relative error of the states of padded turns that rounding explains."""
    layout = _few_turns(model, "padded")
    return rounding(model, dtype, lambda: reply_states(model, layout))


@torch.no_grad()
def _state_error(model: PreTrainedModel) -> float:
    """The relative distance of the states of packed turns from those of padded ones."""
    padded = reply_states(model, _few_turns(model, "padded"))
    layout = _few_turns(model, "shared")
    forest = layout.forest or Forest(())
    recorder = _Recorder(forest.segments, forest.branches)
    with tree_attention(model):
        packed = reply_states(model, replace(layout, forest=recorder))
    # Fresh weights attend so little that rounding to bfloat16 would hide a layer that ignores the forest.
    if len(recorder.layers) < model.config.num_hidden_layers:
        raise ValueError(f"{len(recorder.layers)} of {model.config.num_hidden_layers} layers compute tree attention")
    return relative_distance(packed, padded)


@dataclass(frozen=True)
class _Recorder(Forest):
    """A forest that records in `layers` which layers attend to it."""

    layers: set[int] = field(default_factory=set)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.layers.add(layer)
        return super().attend(layer, query, key, value, scale)


@torch.no_grad()
def _try_training(model: PreTrainedModel) -> None:
    """A pass in training mode, in which some models do more than in eval mode; the random state is left alone."""
    training = model.training
    model.train()
    try:
        with (
            torch.random.fork_rng([model.device] if model.device.type == "cuda" else []),
            tree_attention(model),
        ):
            reply_states(model, _few_turns(model, "shared"))
    finally:
        model.train(training)


def _gradient_error(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """The relative distance of tree attention's gradient from that under one explicit mask, in the model's sizes."""
    config = model.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Segments 0-4 (root), 5-7 and 8-11 (its children): both children see the root, neither sees the other.
    forest = Forest(segments=((0, 5), (5, 8), (8, 12)), branches=(((5, 12), (0, 5)),))
    visible = torch.ones(12, 12, dtype=torch.bool).tril()
    visible[8:, 5:8] = False
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, 12, width) for count in (heads, kv_heads, kv_heads)]
    inputs = [torch.randn(shape, generator=generator).to(model.device, dtype) for shape in shapes]
    slope = torch.randn((1, heads, 12, width), generator=generator).to(model.device)

    ours = [value.detach().requires_grad_() for value in inputs]
    with torch.enable_grad():
        output = forest.attend(0, ours[0], ours[1], ours[2], width**-0.5).transpose(1, 2)
        gradients = torch.autograd.grad((output.float() * slope).sum(), ours)
    exact = [value.detach().float().requires_grad_() for value in inputs]
    with torch.enable_grad():
        query, key, value = exact[0], *(t.repeat_interleave(heads // kv_heads, 1) for t in exact[1:])
        scores = (query @ key.transpose(-1, -2)) * width**-0.5
        weights = scores.masked_fill(~visible.to(model.device), -torch.inf).softmax(-1)
        expected = torch.autograd.grad(((weights @ value) * slope).sum(), exact)
    return max(relative_distance(one, other) for one, other in zip(gradients, expected, strict=True))


def _few_turns(model: PreTrainedModel, packing: Packing) -> Layout:
    """Three short turns: two with a shared prefix just long enough to be shared, one alone."""
    ids = ordinary_ids(model.config.get_text_config().vocab_size, MIN_SHARED + 16)
    common, (one, other, *rest) = tuple(ids[: MIN_SHARED + 3]), ids[MIN_SHARED + 3 :]
    reply, prompt, last = tuple(rest[:3]), tuple(rest[3:5]), tuple(rest[5:9])
    turns = [_turn((*common, one), reply), _turn((*common, other), reply), _turn(prompt, last)]
    return lay_out(turns, packing, 0).to(model.device)


def _turn(prompt_ids: tuple[int, ...], reply_ids: tuple[int, ...]) -> TrainingTurn:
    return TrainingTurn(prompt_ids, reply_ids, 0.0, 0, 0, "self-test")
