"""Whether a model can be fed packed rows, and trimmed: tried on a few tokens, since else it would train wrongly."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memfactory.config.training import Packing
from memfactory.model.kernels import can_attend
from memfactory.model.tree_attention import NAME, Forest, attending_in_parts
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.last_layer import LastLayer
from memfactory.policy.layout import MIN_SHARED, Layout, lay_out

log = logging.getLogger("memfactory")
# What transformers calls a layer without a window.
FULL = "full_attention"
# What models raise that do not pass keywords on to their attention, and kernels that do not know a type or a shape.
_CANNOT = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError)
# Relative errors that rounding explains; a token that sees what it should not is far beyond.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def reply_states(model: PreTrainedModel, layout: Layout, *, trimmed: bool = False) -> Tensor:
    """The last hidden states [N, width] that predict the reply tokens of `layout`, turn by turn.

    With `layout.parts` the model must be `attending` in parts, in the backward pass too if that computes again; with
    `trimmed` no other state asks in its last layer.
    """
    decoder = model.get_decoder()
    parts = layout.parts
    if parts is not None and trimmed:
        parts = replace(parts, asked=(model.config.num_hidden_layers - 1, layout.asked))
    if parts is None:
        hidden = decoder(input_ids=layout.input_ids, use_cache=False).last_hidden_state
    else:
        hidden = decoder(
            input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False, attention_parts=parts
        ).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, layout.sources)


def usable_packing(model: PreTrainedModel, wanted: Packing, dtype: torch.dtype) -> Packing:
    """`wanted`, or "padded" with a warning that says why the model, which computes in `dtype`, cannot do it."""
    reason = None if wanted == "padded" else _obstacle(model, dtype)
    if reason is None:
        return wanted
    log.warning(
        "train.packing: %s is not possible here, so conversations are padded, which is slower: %s", wanted, reason
    )
    return "padded"


def _obstacle(model: PreTrainedModel, dtype: torch.dtype) -> str | None:
    config, device = model.config, model.device
    kind = f"models of type {config.model_type!r}"
    if not can_attend(device, dtype):
        return f"attention in parts has no fast kernel for {str(dtype).removeprefix('torch.')} on {device.type}"
    if getattr(config, "attn_logit_softcapping", None):
        return "the model caps its attention scores"
    kinds = getattr(config, "layer_types", None)
    windowed = getattr(config, "sliding_window", None) is not None if kinds is None else set(kinds) != {FULL}
    if windowed:
        return "some of the model's layers do not attend to all that came before"
    try:
        states, gradient = _state_error(model), _gradient_error(model, dtype)
        _try_training(model)
    except _CANNOT as error:
        return f"{kind} fail at it ({str(error).partition(chr(10))[0] or type(error).__name__})"
    worst = max(states, gradient)
    if not worst < _ROUNDING[dtype]:
        return f"{kind} give other results that way (relative error {worst:.2g})"
    return None


@contextmanager
def attending(model: PreTrainedModel, in_parts: bool) -> Iterator[None]:
    """Within it the model attends in parts, if it is to and does not yet."""
    if not in_parts or model.config._attn_implementation == NAME:
        yield
        return
    with attending_in_parts(model):
        yield


@torch.no_grad()
def _state_error(model: PreTrainedModel) -> float:
    """How far the states of packed turns are from those of padded ones, relative to them."""
    plain = reply_states(model, _few_turns(model, "padded"))
    layout = _few_turns(model, "shared")
    assert layout.parts is not None
    noted = _Noted(layout.parts.segments, layout.parts.branches)
    with attending(model, True):
        packed = reply_states(model, replace(layout, parts=noted))
    # Fresh weights attend so little that rounding to bfloat16 would hide what a layer sees.
    if len(noted.layers) < model.config.num_hidden_layers:
        raise ValueError(f"{len(noted.layers)} of {model.config.num_hidden_layers} layers attend in parts")
    return _distance(packed, plain)


@dataclass(frozen=True)
class _Noted(Forest):
    """A forest that notes which layers attend to it."""

    layers: set[int] = field(default_factory=set)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.layers.add(layer)
        return super().attend(layer, query, key, value, scale)


@torch.no_grad()
def _try_training(model: PreTrainedModel) -> None:
    """A pass in training mode, in which some models do more than in eval mode; random numbers stay as they are."""
    training = model.training
    model.train()
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), attending(model, True):
            reply_states(model, _few_turns(model, "shared"))
    finally:
        model.train(training)


@torch.no_grad()
def can_trim(model: PreTrainedModel, packing: Packing, dtype: torch.dtype) -> bool:
    """Whether the last layer can be left out where nothing is read, when fed as `packing` says."""
    layout, last = _few_turns(model, packing), LastLayer()
    with attending(model, packing != "padded"):
        whole = reply_states(model, layout)
        try:
            with last.trimmed(model):
                last.kept = layout.kept
                trimmed = reply_states(model, layout, trimmed=True)
        except _CANNOT as error:
            log.info("all states of the last layer are computed: %s", error)
            return False
    distance = _distance(trimmed, whole)
    if distance >= _ROUNDING[dtype]:
        log.info("all states of the last layer are computed: leaving some out changes the others by %.3g", distance)
    return distance < _ROUNDING[dtype]


def _few_turns(model: PreTrainedModel, packing: Packing) -> Layout:
    common = tuple(range(1, MIN_SHARED + 4))
    turns = [_turn((*common, 5), (6, 7, 8)), _turn((*common, 9), (6, 7, 8)), _turn((3, 4), (9, 8, 7, 6))]
    return lay_out(turns, packing, 0).to(model.device)


def _turn(prompt_ids: tuple[int, ...], reply_ids: tuple[int, ...]) -> TrainingTurn:
    return TrainingTurn(prompt_ids, reply_ids, 0.0, 0, 0, "check")


def _gradient_error(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """How far the gradient of attention in parts is from that under one explicit mask, in the model's sizes."""
    config = model.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    forest = Forest(segments=((0, 5), (5, 8), (8, 12)), branches=(((5, 12), (0, 5)),))
    visible = torch.ones(12, 12, dtype=torch.bool).tril()
    visible[8:, 5:8] = False
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, 12, width) for count in (heads, kv_heads, kv_heads)]
    drawn = [torch.randn(shape, generator=generator).to(model.device, dtype) for shape in shapes]
    slope = torch.randn((1, heads, 12, width), generator=generator).to(model.device)

    ours = [value.detach().requires_grad_() for value in drawn]
    with torch.enable_grad():
        output = forest.attend(0, ours[0], ours[1], ours[2], width**-0.5).transpose(1, 2)
        gradients = torch.autograd.grad((output.float() * slope).sum(), ours)
    exact = [value.detach().float().requires_grad_() for value in drawn]
    with torch.enable_grad():
        query, key, value = exact[0], *(t.repeat_interleave(heads // kv_heads, 1) for t in exact[1:])
        scores = (query @ key.transpose(-1, -2)) * width**-0.5
        weights = scores.masked_fill(~visible.to(model.device), -torch.inf).softmax(-1)
        expected = torch.autograd.grad(((weights @ value) * slope).sum(), exact)
    return max(_distance(one, other) for one, other in zip(gradients, expected, strict=True))


def _distance(one: Tensor, other: Tensor) -> float:
    """||one - other|| / ||other||."""
    return float((one.double() - other.double()).norm() / other.double().norm())
