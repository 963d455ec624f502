"""The options of a model: which weights, in which type, on which device. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from memfactory.registry import Options
from memfactory.types import Scalar


class ModelConfig(Options):
    """A model: the one in training, the evaluated one, or that of another engine."""

    path: str = "tiny"
    """A Hugging Face id, a local folder, a GGUF file, or `tiny`: the model inside the package."""
    adapter: str | None = None
    """A PEFT adapter folder to put on top."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type; auto: bfloat16 on CUDA, float32 elsewhere. Trained weights are stored in float32 all the same."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel; auto: flash_attention_2 on CUDA if it is installed, else sdpa."""
    device: str = "auto"
    """auto: CUDA if available, else the CPU."""
    cpu_threads: int | None = Field(None, ge=1)
    """CPU threads; null: torch's own choice, one per core. One or two are fastest for small models."""
    fused_layers: bool = True
    """Fused RMSNorm and SwiGLU where supported (same results, less memory)."""
    random_weights: bool = False
    """Initialise at random from the config alone (benchmarks; needs config.json and tokenizer only)."""
    trust_remote_code: bool = False
    """Let the model folder's own Python code run."""
    chat_template: str | None = None
    """A Jinja chat template file that replaces the tokenizer's own."""
    template_options: dict[str, Scalar] = Field(default_factory=dict)
    """Passed to the chat template, such as enable_thinking: false."""

    def compute_type(self, *, cuda: bool) -> str:
        """The name of the type that the model computes in, on a GPU or on a processor."""
        if self.dtype == "auto":
            return "bfloat16" if cuda else "float32"
        return self.dtype

    @field_validator("template_options")
    @classmethod
    def _switches_are_true_or_false(cls, options: dict[str, Scalar]) -> dict[str, Scalar]:
        return switched(options)


def switched(options: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Options of a chat template whose switches (`enable_...`, `disable_...`) are true or false.

    A template asks whether a switch `is false`, which neither 0 nor the text "false" is. Raises ValueError for a switch
    that is neither.
    """
    return {
        name: _switch(name, value) if name.startswith(("enable_", "disable_")) else value
        for name, value in options.items()
    }


_SWITCHES = {
    "true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False
}  # fmt: skip


def _switch(name: str, value: Scalar) -> bool:
    switch = _SWITCHES.get(str(value).strip().lower())
    if switch is None:
        raise ValueError(f"{name} is a switch: write true or false, not {value!r}")
    return switch
