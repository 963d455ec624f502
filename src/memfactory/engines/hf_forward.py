"""The forward passes of sampling: prompts into keys and values, then one token a row. It knows no conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from memfactory.engines.hf_cache import LayerStates, SlotCache, round_up
from memfactory.errors import ConfigError

MASKED_ATTENTION = ("sdpa", "eager")


class Forward:
    """`model` as a sampler uses it: in eval mode, without gradients, over the cache of the rows that decode.

    Weights in float32 compute in `compute_dtype`. `context` is the most tokens that the model takes (None: no limit).
    Of a model that slides one window over all layers only the window is used. Raises ConfigError for a model whose
    layers differ in how far they see.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int, pad_id: int, compute_dtype: torch.dtype) -> None:
        architecture = model.config.get_text_config()
        named = getattr(architecture, "layer_types", None)
        kinds = set(named or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ConfigError(
                f"engine: kind 'hf' runs models with full attention in every layer; {model.config.model_type!r} has "
                f"{', '.join(sorted(kinds))}. Use kind 'vllm'"
            )
        window = None if named else getattr(architecture, "sliding_window", None)
        limits = (getattr(architecture, "max_position_embeddings", None), window)
        self.context: int | None = min((limit for limit in limits if limit), default=None)
        self.cache = SlotCache(architecture.num_hidden_layers, model.device)
        self._model = model
        self._vocab_size, self._pad_id = vocab_size, pad_id
        self._compute_dtype = compute_dtype
        self._found: tuple[bool, str] | None = None

    @property
    def device(self) -> torch.device:
        return self._model.device

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around every pass. The first one puts the model into eval mode, where it stays until `rest`."""
        if self._found is None:
            self._begin()
        elif self._model.training or str(self._model.config._attn_implementation) not in MASKED_ATTENTION:
            # Another engine over the same model has rested meanwhile.
            self._settle()
        dtype = self.cache.dtype
        # Without its cache autocast would keep a second copy of all weights until the end.
        autocast = torch.autocast(self.device.type, dtype, cache_enabled=False) if dtype else nullcontext()
        with torch.inference_mode(), autocast:
            yield

    def rest(self) -> None:
        """Give the cache's memory back, and the model the mode and the attention kernel that it was found with."""
        self.cache.release()
        if self._found is None:
            return
        training, attention = self._found
        self._found = None
        self._model.train(training)
        if attention not in MASKED_ATTENTION:
            self._model.set_attn_implementation(attention)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[LayerStates] | None:
        """Keys and values of all but the last token of each prompt, padded on the right; None when that is nothing.

        The last token is fed by the first decoding step, so no logits are needed here. Padding comes after the real
        tokens, so the causal mask hides it.
        """
        longest = max(map(len, prompts)) - 1
        if longest == 0:
            return None
        padded = [[*prompt[:-1], *[self._pad_id] * (longest + 1 - len(prompt))] for prompt in prompts]
        cache = DynamicCache()
        self._model(
            input_ids=torch.tensor(padded, device=self.device),
            position_ids=torch.arange(longest, device=self.device).expand(len(prompts), -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return [(layer.keys, layer.values) for layer in cache.layers]

    def logits(self, next_ids: Tensor, columns: int) -> Tensor:
        """Float32 logits [n, tokens of the tokenizer] behind `next_ids` [n], the newest token of every row.

        `columns` is the length of the longest row, that token included.
        """
        cache = self.cache
        cache.columns = round_up(columns)
        visible = torch.arange(cache.columns, device=self.device) <= cache.lengths.unsqueeze(-1)
        mask = visible[:, None, None, :]
        if self._model.config._attn_implementation == "eager":
            dtype = self._model.dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        logits: Tensor = self._model(
            input_ids=next_ids.unsqueeze(-1),
            attention_mask=mask,
            position_ids=cache.lengths.unsqueeze(-1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1, : self._vocab_size].float()

    def _begin(self) -> None:
        # Read now and not at birth: adapters in float32 can have come on top since, and the model can have moved.
        mixed = any(weight.dtype == torch.float32 for weight in self._model.parameters())
        self.cache.dtype = self._compute_dtype if mixed and self._compute_dtype != torch.float32 else None
        self.cache.move_to(self.device)
        self._settle()

    def _settle(self) -> None:
        """Put the model into eval mode and under a kernel that takes masks, and keep how it was found."""
        attention = str(self._model.config._attn_implementation)
        self._found = (self._model.training, attention)
        self._model.eval()
        if attention not in MASKED_ATTENTION:
            self._model.set_attn_implementation("sdpa")
