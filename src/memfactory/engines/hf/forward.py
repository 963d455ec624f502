"""The forward passes of sampling: prompts into keys and values, then one token a row. It knows no conversations."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from memfactory.engines.hf.cache import LayerStates, SlotCache, round_up
from memfactory.engines.hf.packed_weights import PackedWeights
from memfactory.errors import ConfigError
from memfactory.model.adapters import base_model
from memfactory.model.kernels import can_attend
from memfactory.model.tree_attention import NAME, Forest, Shared, Slots

log = logging.getLogger("memfactory")
MASKED_ATTENTION = ("sdpa", "eager")


class Forward:
    """`model` as a sampler uses it: in eval mode, without gradients, over the cache of the rows that decode.

    Weights in float32 compute in `compute_dtype`; up to `packed` bytes of them are copied for decoding on a CPU.
    `context` is the most tokens that the model takes (None: no limit).
    Of a model that slides one window over all layers only the window is used. Raises ConfigError for a model whose
    layers differ in how far they see.
    """

    def __init__(
        self, model: PreTrainedModel, vocab_size: int, pad_id: int, compute_dtype: torch.dtype, packed: int
    ) -> None:
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
        # transformers 5.24 renamed it.
        parameters = inspect.signature(base_model(model).forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._packed = PackedWeights(model, packed)
        self._vocab_size, self._pad_id = vocab_size, pad_id
        self._compute_dtype = compute_dtype
        self._found: tuple[bool, str] | None = None
        self._in_parts = False

    @property
    def device(self) -> torch.device:
        return self._model.device

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around every pass. The first one puts the model into eval mode, where it stays until `rest`."""
        if self._found is None:
            self._begin()
        elif self._model.training or not self._suits(self._attention):
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
        self._packed.release()
        if self._found is None:
            return
        training, attention = self._found
        self._found = None
        self._model.train(training)
        # Under the parts of another engine it was found by chance; that engine gives the kernel back.
        if attention not in (self._attention, NAME):
            self._model.set_attn_implementation(attention)

    def attend_in_parts(self) -> bool:
        """Attend in parts from now on, if the model can; otherwise a warning says why not."""
        reason = self._reason_against_parts()
        if reason is not None:
            log.warning("prompts that begin alike are not shared while sampling: %s", reason)
            return False
        self._in_parts = True
        self._model.set_attn_implementation(NAME)
        return True

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
            **{self._cache_name: cache},
            use_cache=True,
            logits_to_keep=1,
        )
        return [(layer.keys, layer.values) for layer in cache.layers]

    def logits(self, next_ids: Tensor, columns: int) -> Tensor:
        """Float32 logits [n, tokens of the tokenizer] behind `next_ids` [n], the newest token of every row.

        `columns` is the length of the longest row, that token included.
        """
        self._packed.count_step(len(next_ids))
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
            **{self._cache_name: cache},
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1, : self._vocab_size].float()

    def keys_and_values(self, tokens: Sequence[int], positions: Sequence[int], forest: Forest) -> list[LayerStates]:
        """Of a row of `tokens`, each of which attends to what `forest` says."""
        cache = DynamicCache()
        try:
            self._model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                **{self._cache_name: cache},
                use_cache=True,
                logits_to_keep=1,
                attention_parts=_UpTo(len(self.cache.layers) - 1, forest),
            )
        except _AllKnown:
            pass
        else:
            raise ValueError("its last layer was not asked to")
        kept = [(layer.keys, layer.values) for layer in cache.layers]
        dtype = self.cache.dtype
        return kept if dtype is None else [(keys.to(dtype), values.to(dtype)) for keys, values in kept]

    def logits_in_parts(
        self, next_ids: Tensor, lengths: Sequence[int], shared: tuple[Shared, ...], starts: Tensor
    ) -> Tensor:
        """As `logits`, for rows with `lengths` tokens in their slots; `starts` [n] tokens come before, `shared`."""
        self._packed.count_step(len(next_ids))
        cache = self.cache
        visible: Tensor | None = None
        if min(lengths) == max(lengths):
            # Rows in step need no mask, and write to one column.
            cache.column, cache.columns = lengths[0], lengths[0] + 1
        else:
            cache.column, cache.columns = None, round_up(max(lengths) + 1)
            visible = torch.arange(cache.columns, device=self.device) <= cache.lengths.unsqueeze(-1)
        logits: Tensor = self._model(
            input_ids=next_ids.unsqueeze(-1),
            position_ids=(starts + cache.lengths).unsqueeze(-1),
            **{self._cache_name: cache},
            use_cache=True,
            logits_to_keep=1,
            attention_parts=Slots(visible, shared),
        ).logits
        return logits[:, -1, : self._vocab_size].float()

    def _reason_against_parts(self) -> str | None:
        """Why the model cannot attend in parts, found out on a few tokens."""
        dtype = self.cache.dtype or self._model.dtype
        if not can_attend(self.device, dtype):
            return f"there is no fast kernel for parts of attention on {self.device.type} in {dtype}"
        if getattr(self._model.config.get_text_config(), "attn_logit_softcapping", None):
            # Only large scores show it, which so few tokens need not have.
            return f"{type(self._model).__name__} caps its attention scores"
        ids = [number % self._vocab_size for number in range(7)]
        expected = self._model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0, -1]
        attention = self._attention
        self._model.set_attn_implementation(NAME)
        try:
            found = self._last_logits(ids)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            return f"{type(self._model).__name__} does not take its attention in parts ({error})"
        finally:
            self._model.set_attn_implementation(attention)
            self.cache.release()
        expected = expected[: self._vocab_size].float()
        bound = (1e-3 if dtype == torch.float32 else 0.1) * (1 + expected.abs().max())
        # Broken weights differ by NaN; whoever samples reports them.
        difference = (found - expected).abs().max()
        if difference > bound:
            return f"{type(self._model).__name__} in parts differs from the whole by {difference:.3g} in its logits"
        return None

    def _last_logits(self, ids: list[int]) -> Tensor:
        """Logits [tokens of the tokenizer] behind `ids`, in parts of every kind."""
        (first, second), last = ((0, 2), (2, len(ids) - 1)), torch.tensor(ids[-1:], device=self.device)
        forest = Forest((first, second), ((second, first),))
        states = self.keys_and_values(ids[:-1], range(len(ids) - 1), forest)
        halves = [[(keys[:, :, a:b], values[:, :, a:b]) for keys, values in states] for a, b in (first, second)]
        self.cache.reserve(1, round_up(1), 0)
        self.cache.enter([0], [], None)
        starts = torch.tensor([len(ids) - 1], device=self.device)
        return self.logits_in_parts(last, [0], tuple(Shared(None, ((1, half),)) for half in halves), starts)[0]

    @property
    def _attention(self) -> str:
        return str(self._model.config._attn_implementation)

    def _suits(self, attention: str) -> bool:
        return attention == NAME if self._in_parts else attention in MASKED_ATTENTION

    def _begin(self) -> None:
        # Read now and not at birth: adapters in float32 can have come on top since, and the model can have moved.
        mixed = any(weight.dtype == torch.float32 for weight in self._model.parameters())
        self.cache.dtype = self._compute_dtype if mixed and self._compute_dtype != torch.float32 else None
        self.cache.move_to(self.device)
        self._settle()

    def _settle(self) -> None:
        """Put the model into eval mode and under the kernel that is needed, and keep how it was found."""
        training, attention = self._model.training, self._attention
        if self._found is not None:
            # Another engine over the same model has had its way with it; what engines set is not how it was found.
            training = training or self._found[0]
            if attention == NAME or (attention == "sdpa" and self._found[1] != NAME):
                attention = self._found[1]
        self._found = (training, attention)
        self._model.eval()
        if not self._suits(self._attention):
            self._model.set_attn_implementation(NAME if self._in_parts else "sdpa")


class _AllKnown(Exception):
    """The last layer's keys and values are in the cache; nothing that comes after them is wanted."""


@dataclass(frozen=True)
class _UpTo:
    """`forest`, up to the layer `last`, whose keys and values end the pass."""

    last: int
    forest: Forest

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer == self.last:
            raise _AllKnown
        return self.forest.attend(layer, query, key, value, scale)
