"""Accuracy of a model on the modules' formats, step by step: `python scripts/tiny_accuracy.py [folder]`.

The prompts are those of held-out demonstrations of conversation_traces and fact_traces. A reply is right if it equals
the demonstration; a choice of memories is right if it contains the one that answers the question.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from importlib import resources
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.options import HfEngineConfig
from memfactory.model.chat import ChatFormat
from memfactory.registry import DATASETS
from memfactory.types import Message, Sampling, SamplingParams

LONGEST_REPLY = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=str(resources.files("memfactory") / "assets" / "tiny"))
    parser.add_argument("--rows", type=int, default=64, help="demonstrations of each step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chat = ChatFormat(AutoTokenizer.from_pretrained(arguments.model))
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    shown = demonstrations(arguments.rows)
    sampled, greedy = (replies(HfEngine(model, chat, HfEngineConfig()), shown, heat) for heat in (1.0, 0.0))
    print(f"{'step':18} sampled  greedy")
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (kind, _, gold), one, other in zip(shown, sampled, greedy, strict=True):
        scores[kind].append((right(kind, one, gold), right(kind, other, gold)))
    for kind, pairs in scores.items():
        print(f"{kind:18} {sum(p[0] for p in pairs) / len(pairs):7.3f} {sum(p[1] for p in pairs) / len(pairs):7.3f}")


def demonstrations(rows: int) -> list[tuple[str, str, str]]:
    """(kind, prompt, reply) of every held-out demonstration."""
    kinds: list[tuple[str, str, dict[str, object]]] = [
        ("extract", "conversation_traces", {"steps": {"extract": 1}}),
        ("update", "conversation_traces", {"steps": {"update": 1}}),
        ("rerank 5 of 20", "conversation_traces", {"steps": {"rerank": 1}, "min_candidates": 20, "paraphrased": 1.0}),
        ("answer", "conversation_traces", {"steps": {"answer": 1}, "paraphrased": 0.0, "absent": 0.0}),
        ("answer paraphrase", "conversation_traces", {"steps": {"answer": 1}, "paraphrased": 1.0, "absent": 0.0}),
        ("cite", "conversation_traces", {"steps": {"cite": 1}, "paraphrased": 1.0, "absent": 0.0}),
        ("answer absent", "conversation_traces", {"steps": {"answer": 1}, "absent": 1.0}),
        ("cite absent", "conversation_traces", {"steps": {"cite": 1}, "absent": 1.0}),
        ("read facts", "fact_traces", {}),
    ]
    rows_of_kinds = []
    for kind, name, settings in kinds:
        dataset = DATASETS.get(name)
        options = dataset.Options(split="heldout", rows=rows, **settings)
        demonstrated = dataset(options, Path()).rows()
        rows_of_kinds += [(kind, *(message["content"] for message in row.values["messages"])) for row in demonstrated]
    return rows_of_kinds


def replies(engine: HfEngine, shown: list[tuple[str, str, str]], temperature: float) -> list[str]:
    """The engine's reply to each prompt, at `temperature`."""
    for number, (_, prompt, _) in enumerate(shown):
        sampling = Sampling(LONGEST_REPLY, SamplingParams(temperature=temperature), seed=number)
        engine.submit(number, [Message("user", prompt)], sampling)
    texts: dict[object, str] = {}
    while len(texts) < len(shown):
        texts.update({key: reply.text for key, reply in engine.step()})
    return [texts[number] for number in range(len(shown))]


def right(kind: str, reply: str, gold: str) -> bool:
    """Whether `reply` is as good as `gold`."""
    if not kind.startswith("rerank"):
        return reply == gold
    try:
        chosen = json.loads(reply)
    except ValueError:
        return False
    return isinstance(chosen, list) and json.loads(gold)[0] in chosen[:5]


if __name__ == "__main__":
    main()
