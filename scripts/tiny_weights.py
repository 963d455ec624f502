"""The embedded model's weights before training: random, except that attention begins as a circuit that can look up.

Recall by attention takes two layers: one that tells each token which tokens stand before it, and one that finds the
place whose predecessors match. From random weights this circuit forms late and slowly (hours of CPU time at this
size); written into the weights it is there from the first step and training only has to refine it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

LAYERS, HIDDEN, HEADS, HEAD_SIZE, INTERMEDIATE = 4, 128, 5, 64, 256
CONTEXT = 32768
ROPE_THETA = 1e6
SPREAD = 0.09
"""Standard deviation of the token embeddings."""
CONSTANT = 4 * SPREAD
"""First coordinate of every token's embedding, which position-only heads read."""
SHARPNESS = 3.0
"""Weight of the query and key norms: attention logits reach at most SHARPNESS^2 x sqrt(HEAD_SIZE)."""
CIRCUIT_LAYERS = 2
"""Layers that the circuit is in."""
SOFTNESS = 1.2
"""The same weight in the layers after the circuit, which begin at random: a sharp random attention hardly learns."""
FAST_PAIRS = 5
"""Rotary pairs, fastest first, that tell neighbouring positions apart."""
SLOW = 0.01
"""Rotary pairs slower than this, in radians per token, hardly turn within a chunk: they compare contents."""
NOISE = 0.3
"""Weight of the random initialisation in the projections of the circuit."""


def make_model(
    vocabulary: int, end_id: int, pad_id: int, twins: Sequence[tuple[int, int]], seed: int
) -> Qwen3ForCausalLM:
    """The untrained model, on the CPU in float32.

    `twins` are the ids of words with and without the space before them: the two begin as nearly the same token.
    """
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=pad_id,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        _write_circuit(model)
        _bind_twins(model.model.embed_tokens.weight, twins)
    return model


def _write_circuit(model: Qwen3ForCausalLM) -> None:
    """Layer 0: head h writes the token h + 1 places back. Layer 1: head h attends to the position whose token h + 1
    places back equals the token h places back here, and copies its token."""
    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(0, SPREAD)
    embeddings[:, 0] = CONSTANT
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            layer = int(name.split(".")[2])
            parameter.fill_(SHARPNESS if layer < CIRCUIT_LAYERS else SOFTNESS)
    share = HIDDEN // HEADS
    read = torch.randn(share, HIDDEN) / math.sqrt(HIDDEN)
    read[:, 0] = 0
    places = _orthogonal_places(share)
    rows = _slow_rows(share)
    earlier, lookup = (layer.self_attn for layer in list(model.model.layers)[:CIRCUIT_LAYERS])
    for head in range(HEADS):
        begin, own = head * HEAD_SIZE, slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
        for projection, direction in zip((earlier.q_proj, earlier.k_proj), _offset_pair(head + 1), strict=True):
            projection.weight[own] *= NOISE
            projection.weight[own, 0] = direction
        earlier.v_proj.weight[own] *= NOISE
        earlier.v_proj.weight[begin : begin + share] = read
        earlier.o_proj.weight[:, own] *= NOISE
        earlier.o_proj.weight[:, begin : begin + share] = places[head] * 2 * SPREAD

        here = read if head == 0 else places[head - 1].T
        for projection, content in ((lookup.q_proj, here), (lookup.k_proj, places[head].T)):
            projection.weight[own] *= NOISE
            projection.weight[begin + rows] = content[: len(rows)]
        copied = torch.randn(HEAD_SIZE, HIDDEN) / math.sqrt(HIDDEN)
        lookup.v_proj.weight[own] = copied
        lookup.o_proj.weight[:, own] = copied.T * 4 * SPREAD


def _bind_twins(embeddings: Tensor, twins: Sequence[tuple[int, int]]) -> None:
    """A word without its space is the word with it, moved in one direction that all words share."""
    spaced, bare = (torch.tensor(ids) for ids in zip(*twins, strict=True))
    shift = torch.randn(HIDDEN) * SPREAD
    shift[0] = 0
    embeddings[bare] = embeddings[spaced] + shift


def _frequencies() -> Tensor:
    """Radians a token of each rotary pair [HEAD_SIZE / 2]; a pair's coordinates are i and i + HEAD_SIZE / 2."""
    half = HEAD_SIZE // 2
    return ROPE_THETA ** (-torch.arange(half) / half)


def _offset_pair(offset: int) -> tuple[Tensor, Tensor]:
    """A query and a key [HEAD_SIZE] whose product, once turned by position, peaks `offset` places back."""
    half, angles = HEAD_SIZE // 2, offset * _frequencies()[:FAST_PAIRS]
    query, key = torch.zeros(HEAD_SIZE), torch.zeros(HEAD_SIZE)
    query[:FAST_PAIRS] = 1
    key[:FAST_PAIRS], key[half : half + FAST_PAIRS] = torch.cos(angles), torch.sin(angles)
    return query, key


def _slow_rows(share: int) -> Tensor:
    """Up to `share` coordinates of a head that compare contents at any distance."""
    slow = torch.nonzero(_frequencies() < SLOW).flatten()[: share // 2]
    return torch.cat([slow, slow + HEAD_SIZE // 2])


def _orthogonal_places(share: int) -> list[Tensor]:
    """For each head of layer 0 the directions [HIDDEN, share] that it writes to; none touches the constant."""
    basis = torch.zeros(HIDDEN, HIDDEN)
    basis[1:, 1:] = torch.linalg.qr(torch.randn(HIDDEN - 1, HIDDEN - 1))[0]
    return list(basis.roll(-1, dims=1).split(share, dim=1))
