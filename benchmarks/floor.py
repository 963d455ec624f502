"""The least work of a step, counted and not measured: each distinct prefix once, no padding, nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memfactory.config.grpo import GrpoOptions
from memfactory.model.prefix_tree import shared_length
from memfactory.plan.footprint import BYTES, Architecture
from memfactory.policy.batch import TrainingTurn
from memfactory.types import Group

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Distinct:
    """Tokens that are left when equal beginnings count once, and the positions that they attend to in all."""

    tokens: int
    attended: int


def distinct(sequences: Sequence[Ids]) -> Distinct:
    """The tree of all `sequences`: two that begin alike share those tokens. A token attends to itself as well."""
    tokens = attended = 0
    before: Ids = ()
    for ids in sorted(sequences):
        shared = shared_length(before, ids)
        tokens += len(ids) - shared
        attended += (len(ids) * (len(ids) + 1) - shared * (shared + 1)) // 2
        before = ids
    return Distinct(tokens, attended)


@dataclass(frozen=True)
class Needed:
    """Tokens and floating-point operations of a step by phase, and the bytes that decoding has to read."""

    flops: dict[str, float]
    tokens: dict[str, int]

    @property
    def total(self) -> float:
        return sum(self.flops.values())


def needed(sizes: Architecture, groups: Sequence[Group], turns: Sequence[TrainingTurn], options: GrpoOptions) -> Needed:
    """The least work of the step that sampled `groups` and trained on `turns`.

    Prompts are prefilled once where they begin alike, each reply token but the last is decoded once; training goes
    through the tree of all conversations, forwards, backwards (twice the work; once under adapters) and, with a KL
    term, once more for the reference. Old log-probabilities of a single update are those of the forward pass.
    Positions that predict no reply token need keys and values alone in the last layer.
    """
    replies = [
        (tokens.prompt_ids, tokens.reply_ids)
        for group in groups
        for trajectory in group.trajectories
        for turn in trajectory.turns
        if (tokens := turn.reply.tokens) is not None
    ]
    prompts = distinct([prompt for prompt, _ in replies])
    decoded = sum(len(reply) - 1 for _, reply in replies)
    sampled = sum(len(reply) for _, reply in replies)
    behind = sum(len(prompt) + at for prompt, reply in replies for at in range(1, len(reply)))
    # The last token of a conversation predicts nothing.
    tree = distinct([turn.prompt_ids + turn.reply_ids[:-1] for turn in turns])
    trained = sum(len(turn.reply_ids) for turn in turns)
    forward = sizes.forward_flops(tree.tokens, trained, tree.attended)
    forward -= spared(sizes, distinct([turn.prompt_ids[:-1] for turn in turns]))
    prefilled = sizes.forward_flops(prompts.tokens, 0, prompts.attended)
    flops = {
        "prefill": prefilled - spared(sizes, distinct([prompt[:-1] for prompt, _ in replies])),
        "decode": sizes.forward_flops(decoded, sampled, behind),
        "reference": forward if options.loss.kl_coef > 0 else 0.0,
        "forward": forward * options.epochs,
        "backward": forward * options.epochs * (2 if options.lora is None else 1),
    }
    passes = {name: tree.tokens for name in ("reference", "forward", "backward") if flops[name]}
    return Needed(flops, {"prefill": prompts.tokens, "decode": sampled, **passes})


def spared(sizes: Architecture, positions: Distinct) -> float:
    """Operations of the last layer that `positions` do without, as nothing is predicted from them."""
    weights = 2 * sizes.hidden * sizes.attention_width + 3 * sizes.hidden * sizes.intermediate
    return 2.0 * weights * positions.tokens + 4.0 * sizes.attention_width * positions.attended


def lengths(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """Prompt and reply tokens of every conversation."""
    turns = (turn for group in groups for trajectory in group.trajectories for turn in trajectory.turns)
    tokens_of_turns = (turn.reply.tokens for turn in turns)
    return [(len(tokens.prompt_ids), len(tokens.reply_ids)) for tokens in tokens_of_turns if tokens is not None]


def decode_bytes(conversations: Sequence[tuple[int, int]], sizes: Architecture, dtype: str, iterations: int) -> float:
    """Bytes that decoding reads without any sharing: all weights an iteration, and each token's keys and values.

    `conversations` are `lengths`; `iterations` is the number of decoding passes, each one token a row.
    """
    contexts = sum(reply * prompt + reply * (reply - 1) // 2 for prompt, reply in conversations)
    return float(iterations) * sizes.parameters * BYTES[dtype] + contexts * sizes.kv_bytes(dtype)
