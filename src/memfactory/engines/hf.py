"""The policy's own weights as an engine, through transformers, with continuous refilling.

Conversations decode side by side; one that has finished leaves at once and a waiting one takes its place. Equal
prompts are prefilled once. It does not know what the conversations are for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from memfactory.engines.base import Key, stop_place
from memfactory.engines.chat import ChatFormat
from memfactory.engines.hf_cache import LayerStates, round_up
from memfactory.engines.hf_forward import Forward
from memfactory.engines.hf_sampling import Drawing, draw, uniforms
from memfactory.engines.options import HfEngineConfig
from memfactory.errors import EngineError
from memfactory.types import Message, Reply, Sampling, Stop, Tokens


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
    the model's context, for logits that are not finite and for running out of memory.
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
        self.chat, self.config = chat, config
        self._forward = Forward(model, chat.vocab_size, chat.pad_id, compute_dtype or torch.float32)
        self._cache = self._forward.cache
        self._waiting: dict[tuple[int, ...], deque[_Row]] = {}
        # Prefilled prompts that some conversations have begun and others of the group still wait for.
        self._prefixes: dict[tuple[int, ...], list[LayerStates]] = {}
        self._rows: list[_Row] = []
        self._next_ids = torch.zeros(0, dtype=torch.long)
        self._drawing: Drawing | None = None

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        prompt = self.chat.prompt_ids(messages)
        context = self._forward.context
        room = sampling.max_tokens if context is None else context - len(prompt)
        if room < 1:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens leaves no room for a reply: the model's context is "
                f"{context} tokens. Shorten the chunks or the memory"
            )
        row = _Row(key, prompt, sampling, min(sampling.max_tokens, room), uniforms(sampling.seed))
        self._waiting.setdefault(prompt, deque()).append(row)

    def step(self) -> list[tuple[Key, Reply]]:
        if not self.pending():
            return []
        try:
            with self._forward.computing():
                self._enter()
                finished = self._advance()
        except torch.OutOfMemoryError as error:
            self.cancel()
            raise EngineError(
                f"{self._forward.device} ran out of memory while sampling; lower engine.max_batch_tokens (now "
                f"{self.config.max_batch_tokens}), engine.prefill_tokens or engine.max_batch"
            ) from error
        except BaseException:
            self.cancel()
            raise
        if not self.pending():
            self.cancel()
        return finished

    def pending(self) -> int:
        return len(self._rows) + sum(map(len, self._waiting.values()))

    def cancel(self) -> None:
        self._waiting.clear()
        self._rows.clear()
        self._prefixes.clear()
        self._drawing = None
        self._forward.rest()

    def close(self) -> None:
        self.cancel()

    def _enter(self) -> None:
        """Let waiting conversations begin: those whose prompt is prefilled already, then the others by length."""
        groups = self._admitted()
        if not groups:
            return
        columns = max(row.columns for row in [*self._rows, *(row for group in groups for row in group)])
        self._cache.reserve(len(self._rows) + sum(map(len, groups)), columns, self.config.max_batch_tokens)
        fresh = []
        for group in groups:
            if group[0].prompt in self._prefixes:
                self._add([group], self._prefixes[group[0].prompt])
            else:
                fresh.append(group)
        for batch in self._prefill_batches(fresh):
            self._add(batch, self._forward.prefill([group[0].prompt for group in batch]))
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

    def _add(self, groups: list[list[_Row]], states: list[LayerStates] | None) -> None:
        """Begin decoding the rows of `groups`, whose prompts' keys and values are `states`, one prompt a group."""
        rows = [row for group in groups for row in group]
        source = [index for index, group in enumerate(groups) for _ in group]
        self._cache.enter([row.cached for row in rows], source, states)
        last = torch.tensor([row.prompt[-1] for row in rows], device=self._forward.device)
        self._next_ids = torch.cat([self._next_ids, last]) if self._rows else last
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
        logits = self._forward.logits(self._next_ids, max(row.cached for row in rows) + 1)
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
