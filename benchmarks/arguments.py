"""The arguments that `benchmarks.step` and `benchmarks.engine` share: which model, where, which settings."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from benchmarks.workloads import Size, write_model
from memfactory.errors import ConfigError
from memfactory.model.loading import compute_dtype, resolve_device
from memfactory.model.options import ModelConfig


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options that say which model runs where; by default a random one of 5.25 million parameters on a CPU thread."""
    add = parser.add_argument
    for field in fields(Size):
        add(option(field.name), type=int, default=field.default, help="of the model's architecture")
    add("--model", help="a hub id, a folder, or tiny: its architecture with random weights, instead of these sizes")
    add("--weights", action="store_true", help="with --model: its own weights and tokenizer, and not random ones")
    add("--device", default="cpu")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    add("--threads", type=int, default=1, help="of the CPU")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the product's config")
    add("--other-set", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides of the side `other`")
    add("--repeats", type=int, default=5, help="timed repeats of each side")


def model_of(args: argparse.Namespace) -> str | Size:
    """The requested model."""
    return args.model or Size(**{field.name: getattr(args, field.name) for field in fields(Size)})


def model_folder(args: argparse.Namespace, folder: Path) -> Path:
    """The folder of the model: the user's own with `--weights`, else one below `folder` without weights."""
    if not args.weights:
        return write_model(folder / "model", model_of(args))
    if args.model is None or not Path(args.model).is_dir():
        raise ConfigError(f"--weights needs --model with the folder of a model, got {args.model!r}")
    return Path(args.model)


def settings_of(args: argparse.Namespace, *, other: bool) -> list[str]:
    """The overrides of the product's config."""
    settings = [f"model.device={args.device}", f"model.dtype={args.dtype}"]
    settings += ["model.random_weights=false"] if args.weights else []
    settings += args.set
    return settings + (args.other_set if other else [])


def dtype_of(args: argparse.Namespace) -> torch.dtype:
    """The type that the model computes in."""
    return compute_dtype(ModelConfig(dtype=args.dtype), resolve_device(args.device))


def option(name: str) -> str:
    """The option that sets the field `name`."""
    return "--" + name.replace("_", "-")
