"""How far each kind of optimizer and of weights ends from float32 AdamW after the same small steps, and its cost.

    python -m benchmarks.optimizer                     # two tables; needs torchao for all of their rows
    python -m benchmarks.optimizer --cost              # seconds and bytes of one update of 34 million weights

Every row trains the embedded model on the same conversations in the same order. `kept` is the part of the float32
run's movement that the row made too, <d, d32> / <d32, d32> with d the difference to the weights before training;
`off` is |d - d32| / |d32|. The held-out loss is that of the final weights, computed in float32. docs/decisions/0005
has the table and its consequences.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memfactory.config.optimizer import OptimizerOptions
from memfactory.config.training import TrainerOptions
from memfactory.data.base import Row as DataRow
from memfactory.model.loading import load_chat, load_model
from memfactory.model.options import ModelConfig
from memfactory.policy.batch import TrainingTurn
from memfactory.policy.optimizer import make_optimizer
from memfactory.policy.policy import Policy
from memfactory.policy.sliced_adamw import SlicedAdamW
from memfactory.policy.supervised import Encoder
from memfactory.registry import DATASETS


class NearestAdamW(SlicedAdamW):
    """Training in plain bfloat16: float32 arithmetic, but every update is rounded to the nearest."""

    def _rounded(self, values: Tensor, generator: torch.Generator) -> Tensor:
        return values.to(torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """One line of the table; `kind` is train.optimizer.kind, or a way of rounding that is not an option."""

    name: str
    kind: str = "adamw"
    masters: str = "float32"
    dtype: str = "bfloat16"


REFERENCE = Row("float32 weights, adamw")
ROWS = (
    REFERENCE,
    Row("the same, computed in float32", dtype="float32"),
    Row("float32 weights, adamw_offload", "adamw_offload"),
    Row("float32 weights, adamw_8bit_torchao", "adamw_8bit_torchao"),
    Row("float32 weights, adamw_4bit_torchao", "adamw_4bit_torchao"),
    Row("bfloat16 weights, rounded to nearest", "nearest", "bfloat16_stochastic"),
    Row("bfloat16_stochastic, adamw", "adamw", "bfloat16_stochastic"),
    Row("bfloat16_stochastic, adamw_8bit_torchao", "adamw_8bit_torchao", "bfloat16_stochastic"),
    Row("bfloat16_stochastic, torchao's bfloat16 moments", "torchao_bfloat16", "bfloat16_stochastic"),
)


def conversations(split: str, rows: int) -> list[DataRow]:
    """Conversations of careful reading, which differs a little from the embedded model's training."""
    args = {"rows": rows, "seed": 7, "split": split, "drills": 0.0, "chunks": 3, "facts_per_chunk": 2}
    return list(DATASETS.get("fact_traces")(DATASETS.options("fact_traces").model_validate(args), Path()).rows())


def loss_of(weights: Sequence[Tensor], turns: Sequence[TrainingTurn]) -> float:
    """The mean negative log-likelihood of the replies under these weights, computed in float32."""
    policy = policy_for(Row("", dtype="float32"), 1e-6)
    for parameter, value in zip(policy.trained, weights, strict=True):
        parameter.data.copy_(value)
    scored = policy.score_old(turns)
    return -fmean(value for turn in scored for value in turn.old_logprobs or ())


def policy_for(row: Row, learning_rate: float) -> Policy:
    config = ModelConfig(path="tiny", dtype=row.dtype, device="cpu", cpu_threads=1)
    known = "adamw" if row.kind in ("nearest", "torchao_bfloat16") else row.kind
    optimizer = OptimizerOptions(kind=known, learning_rate=learning_rate)
    options = TrainerOptions(optimizer=optimizer, master_weights=row.masters)
    policy = Policy(load_model(config, training=True, masters=options.masters), load_chat(config), config, options)
    if known != row.kind:
        policy.optimizer = unlisted(row.kind, policy.trained, optimizer)
        policy.schedule.optimizer = policy.optimizer
    return policy


def unlisted(kind: str, parameters: list[nn.Parameter], options: OptimizerOptions) -> Optimizer:
    """The optimizers that are compared with, but are not options."""
    settings = {"lr": options.learning_rate, "betas": (options.beta1, options.beta2), "eps": options.epsilon}
    if kind == "nearest":
        return NearestAdamW([{"params": parameters}], **settings)
    from torchao.optim import _AdamW

    class TorchaoAdamW(_AdamW):
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]))
            super().step(closure)

    return TorchaoAdamW(parameters, weight_decay=0.0, bf16_stochastic_round=True, **settings)


def train(row: Row, learning_rate: float, steps: int, batch: int) -> tuple[list[Tensor], list[Tensor], float]:
    """The weights before and after, and the median CPU seconds of an optimizer step of the last half."""
    policy = policy_for(row, learning_rate)
    before = [parameter.detach().float().clone() for parameter in policy.trained]
    rows = conversations("train", steps * batch)
    seconds = []
    for step in range(steps):
        chosen = rows[step * batch : (step + 1) * batch]
        turns = [turn for n, one in enumerate(chosen) for turn in Encoder(policy.chat).turns(one, n)]
        begun = time.process_time()
        policy.update(turns)
        seconds.append(time.process_time() - begun)
    after = [parameter.detach().float().clone() for parameter in policy.trained]
    return before, after, sorted(seconds[steps // 2 :])[steps // 4]


def compare(learning_rate: float, steps: int, batch: int, rows: Sequence[Row]) -> None:
    encoder = Encoder(load_chat(ModelConfig()))
    held_out = [turn for n, one in enumerate(conversations("heldout", 200)) for turn in encoder.turns(one, n)]
    print(f"\nlearning rate {learning_rate:g}, {steps} steps of {batch} conversations\n")
    print("| weights and optimizer | kept | off | weights that moved | held-out loss | CPU s/step |")
    print("|---|---|---|---|---|---|")
    exact: Tensor | None = None
    for row in rows:
        before, after, seconds = train(row, learning_rate, steps, batch)
        moved = torch.cat([(b - a).flatten().double() for a, b in zip(before, after, strict=True)])
        if exact is None:
            exact = moved
            print(f"| before training | 0 | 1 | 0 | {loss_of(before, held_out):.5f} | |")
        preserved, off = float(moved @ exact / (exact @ exact)), float((moved - exact).norm() / exact.norm())
        share = float((moved != 0).double().mean())
        loss = loss_of(after, held_out)
        print(f"| {row.name} | {preserved:.4f} | {off:.4f} | {share:.1%} | {loss:.5f} | {seconds:.2f} |", flush=True)


def cost(rows: Sequence[Row], repeats: int = 5) -> None:
    """Bytes that stay, and seconds of one update, of 8 matrices of 1024 x 4096."""
    print("| weights and optimizer | weights, gradients, moments: bytes a parameter | CPU s an update |\n|---|---|---|")
    for row in rows:
        dtype = torch.bfloat16 if row.masters == "bfloat16_stochastic" else torch.float32
        weights = [nn.Parameter(torch.randn(1024, 4096).to(dtype)) for _ in range(8)]
        options = OptimizerOptions(kind=row.kind if row.kind not in ("nearest", "torchao_bfloat16") else "adamw")
        optimizer = (
            make_optimizer(weights, options) if options.kind == row.kind else unlisted(row.kind, weights, options)
        )
        for weight in weights:
            weight.grad_dtype = torch.float32
            weight.grad = torch.randn(weight.shape)
        optimizer.step()
        times = []
        for _ in range(repeats):
            begun = time.process_time()
            optimizer.step()
            times.append(time.process_time() - begun)
        moments = [value for state in optimizer.state.values() for value in state.values()]
        held = [dtype.itemsize, 4, sum(map(stored, moments)) / sum(map(torch.numel, weights))]
        bytes_held = f"{' + '.join(f'{n:.4g}' for n in held)} = {sum(held):.4g}"
        print(f"| {row.name} | {bytes_held} | {sorted(times)[repeats // 2]:.3f} |", flush=True)


def stored(value: Tensor) -> int:
    """Bytes of a tensor, or of the parts of one that torchao packs."""
    parts = getattr(value, "tensor_attrs", None)
    return sum(stored(getattr(value, part)) for part in parts) if parts else value.numel() * value.element_size()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-6, 1e-5])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cost", action="store_true", help="only the cost of an update")
    parser.add_argument("--compile", action="store_true", help="let torchao compile its updates (minutes)")
    parser.add_argument("--without-torchao", action="store_true", help="leave out the rows that need it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for row in ROWS if not (args.without_torchao and "torchao" in row.kind)]
    with torch.compiler.set_stance("default" if args.compile else "force_eager"):
        if args.cost:
            cost(rows)
            return
        for learning_rate in args.learning_rates:
            compare(learning_rate, args.steps, args.batch, rows)


if __name__ == "__main__":
    main()
