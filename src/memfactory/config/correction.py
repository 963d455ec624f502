"""The importance correction that `sampler_correction: auto` stands for, by engine and compute type. No torch."""

from __future__ import annotations

from memfactory.config.losses import Correction, LossOptions
from memfactory.config.schema import RunConfig
from memfactory.config.training import LoopOptions, TrainerOptions
from memfactory.engines.options import VllmEngineConfig, VllmServerConfig


def chosen_correction(config: RunConfig, *, cuda: bool) -> tuple[Correction, str]:
    """The correction and its reason, for a policy on a GPU (`cuda`) or on a processor.

    In float32 the engine hf and the trainer compute alike. In bfloat16 their log-probabilities of a token differ by
    about 0.04, since they add up in different orders, and vLLM has kernels of its own.
    """
    if isinstance(config.engine, VllmEngineConfig | VllmServerConfig):
        return "token_truncate", "vLLM and the trainer round differently"
    dtype = config.model.compute_type(cuda=cuda)
    if dtype != "float32":
        return "token_truncate", f"the engine and the trainer round differently in {dtype}"
    return "none", "the engine and the trainer compute alike in float32"


def with_correction(options: LoopOptions, config: RunConfig, *, cuda: bool) -> LoopOptions:
    """The options of a trainer with the correction that `auto` stands for; unchanged without `auto`."""
    loss = auto_loss(options)
    if loss is None:
        return options
    correction, _ = chosen_correction(config, cuda=cuda)
    return options.model_copy(update={"loss": loss.with_automatic(correction)})


def auto_loss(options: LoopOptions) -> LossOptions | None:
    """The loss of a trainer that samples, if its correction is `auto`; None otherwise."""
    loss = getattr(options, "loss", None)
    if not isinstance(options, TrainerOptions) or not options.plays or not isinstance(loss, LossOptions):
        return None
    return loss if loss.sampler_correction == "auto" else None
