"""Sampling some rows at a time, as a CPU does over a large vocabulary, draws the same tokens with the same bits."""

import torch

from memfactory.engines.hf import sampling
from memfactory.engines.hf.sampling import SamplingBatch, sample_tokens
from memfactory.types import SamplingParams

ROWS = (
    SamplingParams(1.0),
    SamplingParams(0.7),
    SamplingParams(0.0),
    SamplingParams(1.0, top_p=0.8),
    SamplingParams(1.3, top_k=5),
    SamplingParams(1.0),
    SamplingParams(0.5, top_p=0.9, top_k=40),
)


def test_rows_in_parts_are_drawn_as_all_at_once(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    for count in (1, 2, 7):
        logits = 3 * torch.randn(count, 1001, generator=draw)
        uniform = torch.rand(count, dtype=torch.float64, generator=draw)
        batch = SamplingBatch.of(ROWS[:count], 1001, logits.device)
        whole = sample_tokens(logits, batch, uniform)
        for rows in (1, 2, 3, 6):
            monkeypatch.setattr(sampling, "_CPU_NUMBERS", 1001 * rows)
            parts = sample_tokens(logits, batch, uniform)
            assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
        monkeypatch.undo()


def test_rows_without_options_of_their_own_are_drawn_in_parts_too(monkeypatch):
    logits, uniform = torch.randn(5, 300), torch.rand(5, dtype=torch.float64)
    batch = SamplingBatch.of([SamplingParams(1.0)] * 5, 300, logits.device)
    whole = sample_tokens(logits, batch, uniform)
    monkeypatch.setattr(sampling, "_CPU_NUMBERS", 600)
    parts = sample_tokens(logits, batch, uniform)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
