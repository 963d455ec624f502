"""The policy's own weights as an engine, through transformers, with continuous refilling.

Conversations decode side by side; one that has finished leaves at once and a waiting one takes its place. Equal
prompts are prefilled once. It does not know what the conversations are for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from memfactory.engines.base import Key, stop_place
from memfactory.engines.chat import ChatFormat
from memfactory.engines.hf_cache import LayerStates, SlotCache, round_up
from memfactory.engines.hf_sampling import Drawing, draw, uniforms
from memfactory.engines.options import HfEngineConfig
from memfactory.errors import ConfigError, EngineError
from memfactory.types import Message, Reply, Sampling, Stop, Tokens

# Waiting conversations enter once they are at least this share of those that decode (a prefill of many costs little
# more than a prefill of one), or after so many steps.
ENTER_SHARE = 8
ENTER_STEPS = 8
MASKED_ATTENTION = ("sdpa", "eager")


@dataclass
class _Row:
    """A conversation that waits or decodes. `limit` is the most tokens that its reply may have."""

    key: Key
    prompt: tuple[int, ...]
    sampling: Sampling
    limit: int
    uniforms: Iterator[float]
    reply_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the cache: all but the one that is fed next."""
        return len(self.prompt) + len(self.reply_ids) - 1

    @property
    def columns(self) -> int:
        """Columns of the cache that it can come to need."""
        return round_up(len(self.prompt) + self.limit)


class HfEngine:
    """Samples replies from `model` itself: no copy of the weights, so a reply is always the newest policy's.

    Ids that stand for no token of the tokenizer are never sampled, and the model's own generation defaults play no
    part. A reply's randomness comes from its own `Sampling.seed`. While conversations are pending the model is in eval
    mode; its mode, its attention kernel and the cache's memory are given back when none is left.
    Weights in float32 compute in `compute_dtype` (autocast), as in the trainer; None: in float32.
    Raises ConfigError for a model that slides or chunks its attention, EngineError for a prompt that does not fit
    the model's context and for logits that are not finite.
    """

    gives_tokens = True

    def __init__(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        config: HfEngineConfig,
        *,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.chat, self.config = model, chat, config
        architecture = model.config.get_text_config()
        kinds = set(getattr(architecture, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ConfigError(
                f"engine: kind 'hf' runs models with full attention in every layer; {model.config.model_type!r} has "
                f"{', '.join(sorted(kinds))}. Use kind 'vllm'"
            )
        self._context: int | None = getattr(architecture, "max_position_embeddings", None)
        self._compute_dtype = compute_dtype or torch.float32
        self._cache = SlotCache(architecture.num_hidden_layers, model.device)
        self._waiting: dict[tuple[int, ...], deque[_Row]] = {}
        # Prefilled prompts that some conversations have begun and others of the group still wait for.
        self._prefixes: dict[tuple[int, ...], list[LayerStates]] = {}
        self._rows: list[_Row] = []
        self._next_ids = torch.zeros(0, dtype=torch.long, device=model.device)
        self._drawing: Drawing | None = None
        self._steps_since_entry = 0
        self._found: tuple[bool, str] | None = None

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        prompt = self.chat.prompt_ids(messages)
        room = sampling.max_tokens if self._context is None else self._context - len(prompt)
        if room < 1:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens leaves no room for a reply: the model's context is "
                f"{self._context} tokens. Shorten the chunks or the memory"
            )
        row = _Row(key, prompt, sampling, min(sampling.max_tokens, room), uniforms(sampling.seed))
        self._waiting.setdefault(prompt, deque()).append(row)

    def step(self) -> list[tuple[Key, Reply]]:
        if not self.pending():
            return []
        try:
            self._begin()
            with torch.inference_mode(), self._autocast():
                self._enter()
                finished = self._advance()
        except BaseException:
            self.cancel()
            raise
        if not self.pending():
            self._end()
        return finished

    def pending(self) -> int:
        return len(self._rows) + sum(map(len, self._waiting.values()))

    def cancel(self) -> None:
        self._waiting.clear()
        self._rows.clear()
        self._end()

    def close(self) -> None:
        self.cancel()

    def _autocast(self) -> AbstractContextManager[object]:
        if self._cache.dtype is None:
            return nullcontext()
        # Without its cache autocast would keep a second copy of all weights until the step ends.
        return torch.autocast(self.model.device.type, self._cache.dtype, cache_enabled=False)

    def _begin(self) -> None:
        if self._found is not None:
            return
        attention = str(self.model.config._attn_implementation)
        self._found = (self.model.training, attention)
        # Read now and not at birth: adapters in float32 can have come on top since, and the model can have moved.
        mixed = any(weight.dtype == torch.float32 for weight in self.model.parameters())
        self._cache.dtype = self._compute_dtype if mixed and self._compute_dtype != torch.float32 else None
        self._cache.lengths = self._cache.lengths.to(self.model.device)
        self.model.eval()
        if attention not in MASKED_ATTENTION:
            self.model.set_attn_implementation("sdpa")

    def _end(self) -> None:
        self._cache.release()
        self._prefixes.clear()
        self._steps_since_entry = 0
        if self._found is not None:
            training, attention = self._found
            self._found = None
            self.model.train(training)
            if attention not in MASKED_ATTENTION:
                self.model.set_attn_implementation(attention)

    def _enter(self) -> None:
        """Let waiting conversations begin: those whose prompt is prefilled already, then the others by length."""
        waiting = sum(map(len, self._waiting.values()))
        if not waiting:
            return
        self._steps_since_entry += 1
        if waiting * ENTER_SHARE < len(self._rows) and self._steps_since_entry < ENTER_STEPS:
            return
        groups = self._admitted()
        if not groups:
            return
        self._steps_since_entry = 0
        columns = max(row.columns for row in [*self._rows, *(row for group in groups for row in group)])
        self._cache.reserve(len(self._rows) + sum(map(len, groups)), columns)
        fresh = []
        for group in groups:
            if group[0].prompt in self._prefixes:
                self._add([group], self._prefixes[group[0].prompt])
            else:
                fresh.append(group)
        for batch in self._prefill_batches(fresh):
            self._add(batch, self._prefill([group[0].prompt for group in batch]))
        self._prefixes = {prompt: kept for prompt, kept in self._prefixes.items() if prompt in self._waiting}
        self._drawing = None

    def _admitted(self) -> list[list[_Row]]:
        """Take from the waiting, first come first served, what `max_batch` and `max_batch_tokens` have room for."""
        count, columns = len(self._rows), max((row.columns for row in self._rows), default=0)
        groups: list[list[_Row]] = []
        for prompt in list(self._waiting):
            queue, group = self._waiting[prompt], list[_Row]()
            while queue and count < self.config.max_batch:
                wider = max(columns, queue[0].columns)
                if count and (count + 1) * wider > self.config.max_batch_tokens:
                    break
                group.append(queue.popleft())
                count, columns = count + 1, wider
            if group:
                groups.append(group)
            if queue:
                break
            del self._waiting[prompt]
        return groups

    def _prefill_batches(self, groups: list[list[_Row]]) -> Iterator[list[list[_Row]]]:
        """Groups of similar prompt length whose padded prompts stay within `prefill_tokens`."""
        batch: list[list[_Row]] = []
        for group in sorted(groups, key=lambda group: len(group[0].prompt)):
            if batch and (len(batch) + 1) * len(group[0].prompt) > self.config.prefill_tokens:
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> list[LayerStates] | None:
        """Keys and values of all but the last token of each prompt, padded on the right; None when that is nothing.

        The last token is fed by the first decoding step, so no logits are needed here. Padding comes after the real
        tokens, so the causal mask hides it.
        """
        longest = max(map(len, prompts)) - 1
        if longest == 0:
            return None
        padded = [[*prompt[:-1], *[self.chat.pad_id] * (longest + 1 - len(prompt))] for prompt in prompts]
        cache = DynamicCache()
        self.model(
            input_ids=torch.tensor(padded, device=self.model.device),
            position_ids=torch.arange(longest, device=self.model.device).expand(len(prompts), -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _add(self, groups: list[list[_Row]], states: list[LayerStates] | None) -> None:
        """Begin decoding the rows of `groups`, whose prompts' keys and values are `states`, one prompt a group."""
        rows = [row for group in groups for row in group]
        source = [index for index, group in enumerate(groups) for _ in group]
        self._cache.enter([row.cached for row in rows], source, states)
        last = torch.tensor([row.prompt[-1] for row in rows], device=self.model.device)
        self._next_ids = torch.cat([self._next_ids[: len(self._rows)], last])
        self._rows += rows
        for index, group in enumerate(groups):
            prompt = group[0].prompt
            if states is not None and prompt in self._waiting and prompt not in self._prefixes:
                length = len(prompt) - 1
                self._prefixes[prompt] = [
                    (keys[index : index + 1, :, :length].clone(), values[index : index + 1, :, :length].clone())
                    for keys, values in states
                ]

    def _advance(self) -> list[tuple[Key, Reply]]:
        """One token for every row; the rows that end with it leave."""
        rows, cache = self._rows, self._cache
        logits = self._logits()
        if self._drawing is None:
            self._drawing = Drawing.of([row.sampling.decoding for row in rows], logits.shape[-1], logits.device)
        uniform = torch.tensor([next(row.uniforms) for row in rows], dtype=torch.float64).to(logits.device)
        ids, logprobs = draw(logits, self._drawing, uniform)
        self._next_ids = ids
        cache.lengths += 1
        # The one transfer of the step. Float64 holds every id exactly.
        drawn = torch.stack([ids.double(), logprobs.double()]).tolist()
        gone, finished = [], []
        for index, (row, number, logprob) in enumerate(zip(rows, *drawn, strict=True)):
            if not math.isfinite(logprob):
                raise EngineError("the model's logits are not finite: its weights are broken or overflow its type")
            row.reply_ids.append(int(number))
            row.logprobs.append(logprob)
            reply = self._reply(row)
            if reply is not None:
                gone.append(index)
                finished.append((row.key, reply))
        if gone:
            order = cache.leave(gone)
            self._next_ids = self._next_ids[torch.tensor(order, dtype=torch.long, device=ids.device)]
            self._rows = [rows[index] for index in order]
            self._drawing = None
        return finished

    def _logits(self) -> Tensor:
        """Float32 logits [n, tokens of the tokenizer] of every row's next token."""
        cache = self._cache
        cache.columns = round_up(max(row.cached for row in self._rows) + 1)
        visible = torch.arange(cache.columns, device=cache.lengths.device) <= cache.lengths.unsqueeze(-1)
        mask = visible[:, None, None, :]
        if self.model.config._attn_implementation == "eager":
            dtype = self.model.dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        logits: Tensor = self.model(
            input_ids=self._next_ids.unsqueeze(-1),
            attention_mask=mask,
            position_ids=cache.lengths.unsqueeze(-1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1, : self.chat.vocab_size].float()

    def _reply(self, row: _Row) -> Reply | None:
        """The reply of `row` if its newest token ended it."""
        stop: Stop = "length"
        end: int | None = None
        if row.reply_ids[-1] in self.chat.stop_ids or (end := self._stop_string(row)) is not None:
            stop = "stop"
        elif len(row.reply_ids) < row.limit:
            return None
        text = self.chat.reply_text(row.prompt, row.reply_ids)[:end]
        return Reply(text, stop, Tokens(row.prompt, tuple(row.reply_ids), tuple(row.logprobs)))

    def _stop_string(self, row: _Row) -> int | None:
        """Where in the text the stop string begins that the newest token completed."""
        stop = row.sampling.stop
        if not stop:
            return None
        # A token spells at least one byte, so so many of them hold whatever the newest one completed.
        recent = row.reply_ids[-max(len(string.encode()) for string in stop) - 8 :]
        if stop_place(self.chat.decode(recent), stop) is None:
            return None
        return stop_place(self.chat.reply_text(row.prompt, row.reply_ids), stop)
