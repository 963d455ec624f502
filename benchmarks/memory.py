"""The memory that `train --dry-run` predicts against torch's allocations in a training step, setting by setting.

    python -m benchmarks.memory

Each setting makes a Qwen3 of random weights, scores the reference, takes two optimizer steps of several micro-batches,
and counts every allocation and release of torch's CPU allocator from the start: the peak that a GPU's allocator would
report, without the memory of libraries below torch. docs/decisions/0005 has the table.
"""

from __future__ import annotations

import argparse
import gc
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3Config, Qwen3ForCausalLM

from memfactory.config.grpo import GrpoOptions
from memfactory.environment import process_count, process_rank
from memfactory.model.fused_layers import fuse_layers
from memfactory.model.loading import load_chat
from memfactory.model.options import ModelConfig
from memfactory.plan.footprint import Load, architecture, memory_by_component, peak_bytes
from memfactory.plan.shards import is_sharded, per_process
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.making import make_policy
from memfactory.policy.policy import Policy
from memfactory.policy.processes import leave_processes

T = TypeVar("T")
MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """A way to train; `options` are those of GRPO."""

    name: str
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def cannot_shard(self) -> bool:
        """Whether `train.shard: fsdp2` refuses it."""
        return "optimizer" in self.options or "master_weights" in self.options


KL = {"loss": {"kl_coef": 0.1}}
CHECKPOINTED = {"gradient_checkpointing": True}
SETTINGS = (
    Setting("full, float32"),
    Setting("full, float32, checkpointing, KL", options={**CHECKPOINTED, **KL}),
    Setting("full, bfloat16", "bfloat16"),
    Setting("full, bfloat16, checkpointing, KL", "bfloat16", {**CHECKPOINTED, **KL}),
    Setting("full, bfloat16, checkpointing, half the tokens", "bfloat16", {**CHECKPOINTED, "micro_batch_tokens": 512}),
    Setting("full, bfloat16, adamw_offload", "bfloat16", {"optimizer": {"kind": "adamw_offload"}}),
    Setting(
        "full, bfloat16_stochastic, checkpointing, KL",
        "bfloat16",
        {**CHECKPOINTED, **KL, "master_weights": "bfloat16_stochastic"},
    ),
    Setting("LoRA, float32, KL", options={"lora": {"rank": 8}, **KL}),
    Setting("LoRA, bfloat16", "bfloat16", {"lora": {"rank": 8}}),
    Setting("LoRA, bfloat16, checkpointing, KL", "bfloat16", {"lora": {"rank": 8}, **CHECKPOINTED, **KL}),
)


def qwen3(hidden: int, layers: int) -> Qwen3Config:
    """A Qwen3 in the proportions of the 4B model, with the vocabulary of `tiny`."""
    return Qwen3Config(
        vocab_size=2405,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 40,
        num_key_value_heads=hidden // 160,
        head_dim=64,
        intermediate_size=hidden * 19 // 5,
        tie_word_embeddings=True,
    )


def turns(count: int, prompt: int, reply: int) -> list[TrainingTurn]:
    """Turns that have nothing in common, all of one length."""
    draw = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 2000) for _ in range(length))

    return [
        TrainingTurn(ids(prompt), ids(reply), 1.0 if n % 2 else -1.0, n, n // 2, "answer", (-1.0,) * reply)
        for n in range(count)
    ]


def counted(work: Callable[[], T]) -> tuple[T, int, int]:
    """The result of `work`, the bytes it left allocated, and the most that it had allocated at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = work()
    changes: list[tuple[int, int]] = []
    events = list(recorded.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = most = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        now += size
        most = max(most, now)
    return result, now, most


def measured(
    config: Qwen3Config, setting: Setting, options: GrpoOptions, work: list[TrainingTurn], *, fused: bool = True
) -> int:
    """The most bytes allocated at one time, from an empty memory to the second optimizer step."""
    model_config = ModelConfig(path="tiny", dtype=setting.dtype, device="cpu", fused_layers=fused)
    loaded = getattr(torch, setting.dtype if options.lora is not None else options.masters)

    def build() -> Policy:
        torch.manual_seed(0)
        model = Qwen3ForCausalLM._from_config(config, dtype=loaded)
        if fused:
            fuse_layers(model)
        return make_policy(model, load_chat(model_config), model_config, options, seed=0)

    # The last setting's garbage would be released while this one is counted.
    gc.collect()
    policy, standing, _ = counted(build)
    most = 0
    for _ in range(2):
        scored = work
        if policy.reference is not None:
            scored, _, passing = counted(lambda: policy.score_reference(work))
            most = max(most, standing + passing)
        _, left, passing = counted(lambda turns=scored: policy.update(turns))
        most = max(most, standing + passing)
        standing += left
    return most


def compare(
    config: Qwen3Config, setting: Setting, tokens: int, length: int = 256, *, fused: bool = True
) -> tuple[int, int]:
    """Bytes predicted and measured for two micro-batches of `tokens` (or as the setting has it) a step."""
    args: dict[str, Any] = {"micro_batch_tokens": tokens, "logprob_chunk_tokens": tokens // 4, **setting.options}
    options = GrpoOptions.model_validate(args)
    sizes, count = architecture(config), process_count()
    load = Load(
        dtype=setting.dtype,
        kv_tokens=0,
        micro_tokens=args["micro_batch_tokens"],
        chunk_tokens=args["logprob_chunk_tokens"],
        reference=options.loss.needs_reference,
        cuda=False,
        fused_layers=fused,
    )
    planned = memory_by_component(sizes, options, load)
    planned = per_process(planned, sizes, options, load, count) if is_sharded(options, count) else planned
    work = turns(count * 2 * args["micro_batch_tokens"] // length, length * 3 // 4, length // 4)[
        process_rank() :: count
    ]
    return peak_bytes(planned), measured(config, setting, options, work, fused=fused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=320)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=1024, help="micro_batch_tokens")
    parser.add_argument("--plain-layers", action="store_true", help="model.fused_layers: false")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = qwen3(args.hidden, args.layers)
    sharded = process_count() > 1
    say = print if process_rank() == 0 else _silent
    say(f"{architecture(config).parameters / 1e6:.1f} M parameters, micro-batches of {args.tokens} tokens")
    say(f"{process_count()} processes, each with a part of the model\n" if sharded else "")
    say("| setting | foretold, MiB | measured, MiB | foretold / measured |\n|---|---|---|---|")
    for setting in SETTINGS:
        if sharded and setting.cannot_shard:
            continue
        options = {**setting.options, **({"shard": "fsdp2"} if sharded else {})}
        planned, allocated = compare(
            config, replace(setting, options=options), args.tokens, fused=not args.plain_layers
        )
        say(f"| {setting.name} | {planned / MIB:.1f} | {allocated / MIB:.1f} | {planned / allocated:.3f} |")
    leave_processes()


def _silent(text: str) -> None:
    """Print nothing: another process than the first."""


if __name__ == "__main__":
    main()
