"""Vectors of any Hugging Face encoder. Imported only if the config names one."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from transformers import AutoModel, AutoTokenizer

from memfactory.errors import ConfigError
from memfactory.files.places import expanded
from memfactory.memory.embedder import Vectors, identity_of
from memfactory.memory.options import HfEmbedderConfig
from memfactory.model.hub import hub_away
from memfactory.model.loading import resolve_device, without_progress_bar

log = logging.getLogger("memfactory")


class HfEmbedder:
    """One vector per text: its token vectors in float32, pooled. Texts of similar length share a batch.

    Raises ConfigError for a model that is missing, unreadable or too large for this machine.
    """

    def __init__(self, config: HfEmbedderConfig) -> None:
        self.config = config
        self._warned_of_cut = False
        self._device = resolve_device(config.device)
        local = expanded(config.path)
        path = str(local) if local.is_dir() else config.path
        only_here = local.is_dir() or hub_away() is not None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=only_here, trust_remote_code=False)
            with without_progress_bar():
                model = AutoModel.from_pretrained(
                    path, local_files_only=only_here, dtype=torch.float32, trust_remote_code=False
                )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"memory.embedder.path: no encoder can be loaded from {config.path!r}; "
                f"expected a hub id or a folder with a model and a tokenizer: {reason}"
            ) from error
        self._model = model.to(self._device).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        options = config.model_dump(exclude={"batch_size", "device"})
        self.identity = identity_of(
            **options, weights=_state_of(local) if local.is_dir() else model.config._commit_hash
        )

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), d]."""
        return self._encoded([self.config.text_prefix + text for text in texts])

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self._encoded([self.config.query_prefix + text for text in texts])

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> Vectors:
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self.config.max_tokens)["input_ids"]
        self._warn_of_cut(
            [text for text, ids in zip(texts, encoded, strict=True) if len(ids) >= self.config.max_tokens]
        )
        order = sorted(range(len(texts)), key=lambda row: len(encoded[row]))
        vectors = numpy.zeros((len(texts), self._model.config.hidden_size), numpy.float32)
        for start in range(0, len(order), self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            lengths = torch.tensor([len(encoded[row]) for row in rows])
            ids = torch.full((len(rows), int(lengths.max())), self._tokenizer.pad_token_id or 0)
            for line, row in enumerate(rows):
                ids[line, : len(encoded[row])] = torch.tensor(encoded[row])
            mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
            ids, mask = ids.to(self._device), mask.to(self._device)
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            vectors[rows] = self._pooled(hidden, mask).cpu().numpy()
        return vectors

    def _warn_of_cut(self, longest: Sequence[str]) -> None:
        """Warn once of texts that are cut to `max_tokens`; `longest` are the candidates."""
        if self._warned_of_cut or not longest:
            return
        limit = self.config.max_tokens
        lengths = [len(ids) for ids in self._tokenizer(list(longest), truncation=False)["input_ids"]]
        cut = [length for length in lengths if length > limit]
        if cut:
            self._warned_of_cut = True
            log.warning(
                "memory.embedder.max_tokens is %d, and %d of the texts to embed are longer, the longest %d tokens: "
                "a search does not see the rest. Raise it as far as the encoder allows, or store shorter texts",
                limit,
                len(cut),
                max(cut),
            )

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """hidden [n, t, d], mask [n, t] with padding on the right -> [n, d]."""
        if self.config.pooling == "cls":
            return hidden[:, 0]
        if self.config.pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _state_of(folder: Path) -> str:
    """A text that changes with the files of `folder`."""
    return json.dumps(
        [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(folder.iterdir())
            if path.is_file()
        ]
    )
