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
from memfactory.model.adapters import base_model, copy_in_type
from memfactory.model.kernels import can_attend
from memfactory.model.tree_attention import ALL_ROWS, NAME, DecodingStep, Forest, SharedKeys
from memfactory.model.trial import EXACT, ordinary_ids, relative_distance, rounding

log = logging.getLogger("memfactory")
MASKED_ATTENTION = ("sdpa", "eager")


class Forward:
    """`model` as a sampler uses it: in eval mode, without gradients, over the cache of the rows that decode.

    Weights in float32 compute in `compute_dtype`. For decoding they are copied: on a CPU up to `packed_limit` bytes, on
    a GPU (`copies_weights`) all in that type and with adapters added in, which takes a fraction of the launches.
    `context` is the most tokens that the model takes (None: no limit); for a model that slides one window over all
    layers it is that window. Raises ConfigError for a model with windows in some layers only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        pad_id: int,
        compute_dtype: torch.dtype,
        packed_limit: int,
        copies_weights: bool = True,
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
        self._trained = self._model = model
        self._copies_weights = copies_weights
        # transformers 5.24 renamed it.
        parameters = inspect.signature(base_model(model).forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._packed = PackedWeights(model, packed_limit)
        self._vocab_size, self._pad_id = vocab_size, pad_id
        self._compute_dtype = compute_dtype
        # Whether the model was in training mode, and its attention, before sampling began; None: not sampling.
        self._before: tuple[bool, str] | None = None
        self._tree_attention = False

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self._model.device

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around every pass. The first one puts the model into eval mode, where it stays until `sleep`."""
        if self._before is None:
            self._begin()
        elif self._model.training or not self._suits(self._attention):
            # Another engine over the same model fell asleep meanwhile and restored its mode.
            self._settle()
        dtype = self.cache.dtype
        # With its cache autocast would keep a second copy of all weights until the end.
        autocast = torch.autocast(self.device.type, dtype, cache_enabled=False) if dtype else nullcontext()
        with torch.inference_mode(), autocast:
            yield

    def sleep(self) -> None:
        """Free the cache's memory, and restore the mode and the attention kernel that the model had before."""
        self.cache.release()
        self._packed.release()
        if self._before is None:
            return
        training, attention = self._before
        self._before = None
        if self._model is not self._trained:
            # The trained model was left as it was, and the copy's memory is free from here on.
            self._model = self._trained
            return
        self._model.train(training)
        # Tree attention came from another engine over the same model, which restores the kernel itself.
        if attention not in (self._attention, NAME):
            self._model.set_attn_implementation(attention)

    def free_cache(self) -> None:
        """Free the memory of the cache for good: a GPU's, as torch keeps it, goes back to the driver."""
        self.cache.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def use_tree_attention(self) -> bool:
        """Compute tree attention from now on, if the model can; otherwise a warning says why not."""
        reason = self._reason_against_tree_attention()
        if reason is not None:
            log.warning("prefixes of prompts are not shared while sampling: %s", reason)
            return False
        self._tree_attention = True
        self._model.set_attn_implementation(NAME)
        return True

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[LayerStates] | None:
        """Keys and values of all but the last token of each prompt, padded on the right; None for prompts of one token.

        The first decoding step feeds the last token, so no logits are needed here. Padding comes after the real tokens,
        so the causal mask hides it.
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
        """The keys and values of a row of `tokens`, which attend to each other as `forest` says."""
        cache = DynamicCache()
        try:
            self._model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                **{self._cache_name: cache},
                use_cache=True,
                logits_to_keep=1,
                attention_plan=_UpTo(len(self.cache.layers) - 1, forest),
            )
        except _CacheComplete:
            pass
        else:
            raise ValueError("its last layer does not call the attention that it is given")
        states = [(layer.keys, layer.values) for layer in cache.layers]
        dtype = self.cache.dtype
        return states if dtype is None else [(keys.to(dtype), values.to(dtype)) for keys, values in states]

    def logits_over_prefixes(
        self, next_ids: Tensor, lengths: Sequence[int], shared: tuple[SharedKeys, ...], starts: Tensor
    ) -> Tensor:
        """As `logits`, for rows of `lengths` tokens in their slots, behind `starts` [n] tokens in `shared` prefixes."""
        self._packed.count_step(len(next_ids))
        cache = self.cache
        visible: Tensor | None = None
        if min(lengths) == max(lengths):
            # Rows of one length need no mask, and write to one column: a slice and not a scatter.
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
            attention_plan=DecodingStep(visible, shared),
        ).logits
        return logits[:, -1, : self._vocab_size].float()

    def _reason_against_tree_attention(self) -> str | None:
        """Why the model cannot compute tree attention, by a trial on a few tokens; None: it can."""
        dtype = self.cache.dtype or self._model.dtype
        if not can_attend(self.device, dtype):
            return f"tree attention has no fast kernel on {self.device.type} in {dtype}"
        if getattr(self._model.config.get_text_config(), "attn_logit_softcapping", None):
            # Only large scores reach the cap, and the trial's few tokens need not have any.
            return f"{type(self._model).__name__} caps its attention scores"
        ids = ordinary_ids(self._vocab_size, 12)

        def whole() -> Tensor:
            states = torch.tensor([ids], device=self.device)
            return self._model(input_ids=states, use_cache=False).logits[0, -1, : self._vocab_size].float()

        expected, attention = whole(), self._attention
        self._model.set_attn_implementation(NAME)
        try:
            logits = self._last_logits(ids)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            return f"{type(self._model).__name__} does not run under tree attention ({error})"
        finally:
            self._model.set_attn_implementation(attention)
            self.cache.release()
        distance = max(relative_distance(row, expected) for row in logits)
        # NaN is no reason: such weights are broken either way, and sampling reports them.
        if distance > EXACT and distance > (bound := rounding(self._model, dtype, whole)):
            return (
                f"{type(self._model).__name__} under tree attention differs by {distance:.2g} in its logits, and "
                f"rounding explains {bound:.2g} (relative to all of them)"
            )
        return None

    def _last_logits(self, ids: list[int]) -> Tensor:
        """Logits [2, tokens of the tokenizer] behind `ids`, twice: through a segment and a branch in two prefixes, and
        through a prefix and slots of the row's own."""
        (first, second), last = ((0, 5), (5, len(ids) - 1)), ids[-1:] * 2
        forest = Forest((first, second), ((second, first),))
        states = self.keys_and_values(ids[:-1], range(len(ids) - 1), forest)
        halves = [[(keys[:, :, a:b], values[:, :, a:b]) for keys, values in states] for a, b in (first, second)]
        length = second[1] - second[0]
        self.cache.reserve(2, round_up(length + 1), 0)
        self.cache.enter([0], [], None)
        self.cache.enter([length], [0], halves[1])
        starts = torch.tensor([second[1], first[1]], device=self.device)
        shared = (SharedKeys(ALL_ROWS, ((2, halves[0]),)), SharedKeys(slice(0, 1), ((1, halves[1]),)))
        return self.logits_over_prefixes(torch.tensor(last, device=self.device), [0, length], shared, starts)

    @property
    def _attention(self) -> str:
        return str(self._model.config._attn_implementation)

    def _suits(self, attention: str) -> bool:
        return attention == NAME if self._tree_attention else attention in MASKED_ATTENTION

    def _begin(self) -> None:
        # Read now and not in __init__: adapters in float32 may have been added since, and the model may have moved.
        mixed = any(weight.dtype == torch.float32 for weight in self._trained.parameters())
        converts = mixed and self._compute_dtype != torch.float32
        if converts and self._copies_weights and self.device.type == "cuda":
            self._copy_weights()
        self.cache.dtype = self._compute_dtype if converts and self._model is self._trained else None
        self.cache.move_to(self.device)
        self._settle()

    def _copy_weights(self) -> None:
        try:
            self._model = copy_in_type(self._trained, self._compute_dtype)
        except torch.OutOfMemoryError:
            self._copies_weights = False
            log.warning(
                "%s has no room for a copy of the weights in %s: sampling converts them in every step, which is slower",
                self.device,
                self._compute_dtype,
            )

    def _settle(self) -> None:
        """Put the model into eval mode and under the kernel that sampling needs, and remember its mode and kernel."""
        training, attention = self._model.training, self._attention
        if self._before is not None:
            # Another engine over the same model has changed it in between: a kernel that engines set is not the user's.
            training = training or self._before[0]
            if attention == NAME or (attention == "sdpa" and self._before[1] != NAME):
                attention = self._before[1]
        self._before = (training, attention)
        self._model.eval()
        if not self._suits(self._attention):
            self._model.set_attn_implementation(NAME if self._tree_attention else "sdpa")


class _CacheComplete(Exception):
    """The last layer's keys and values are in the cache: its attention, its feed-forward block and the head are not
    needed, and this exception ends the pass before them."""


@dataclass(frozen=True)
class _UpTo:
    """`forest` in all layers before `last`, whose attention ends the pass."""

    last: int
    forest: Forest

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if layer == self.last:
            raise _CacheComplete
        return self.forest.attend(layer, query, key, value, scale)
