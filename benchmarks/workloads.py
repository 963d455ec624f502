"""The workloads of the benchmarks: a random model of a given size, generated rows, and a config of the product.

Importing it registers a reward and three modules that only benchmarks need.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from memfactory.config import Resolved, load_config
from memfactory.dialogue import Asking
from memfactory.envs.rewards.base import RewardFunction
from memfactory.episode import Episode
from memfactory.files.assets import asset
from memfactory.memory.bank import MemoryBank
from memfactory.model.loading import load_architecture
from memfactory.model.options import ModelConfig
from memfactory.modules.naive_updater import NaiveUpdater
from memfactory.registry import MODULES, REWARDS
from memfactory.roles import Answerer, ParsedAnswer, Retriever
from memfactory.types import Candidate, MemoryItem

WORKLOADS = ("memory_agent", "memory_r1", "rmm")
Prompts = Literal["faithful", "chunk_first"]


@dataclass(frozen=True)
class Size:
    """A Qwen3 architecture of the benchmarks' own; the default has 5,245,440 parameters."""

    layers: int = 4
    hidden: int = 256
    intermediate: int = 768
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    vocabulary: int = 8192


@dataclass(frozen=True)
class Work:
    """One training step: `tasks` groups of `group_size` episodes, each reply `new_tokens` long.

    `chunks`, `chunk_tokens`, `answer_tokens` (0: as `new_tokens`) and `prompts` are memory_agent's; `prompt_tokens` is
    about how long the prompts of the single-turn workloads are (0: as long as published).
    """

    name: str
    tasks: int = 1
    group_size: int = 8
    new_tokens: int = 64
    chunks: int = 4
    chunk_tokens: int = 625
    prompts: Prompts = "faithful"
    prompt_tokens: int = 0
    answer_tokens: int = 0


@REWARDS.register("bench_spread")
class Spread(RewardFunction):
    """The episode's index: it means nothing, and every group has variance."""

    def score(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [float(episode.index) for episode in episodes]


@MODULES.register("bench_no_items")
class NoItems(Retriever):
    """Retrieves nothing and asks for nothing."""

    def dialogue(self, episode: Episode, bank: MemoryBank) -> Asking[tuple[MemoryItem, ...]]:
        yield from ()
        return ()


@MODULES.register("bench_no_answer")
class NoAnswer(Answerer):
    """Gives no answer and asks for nothing: it ends an episode after the conversations that are measured."""

    def dialogue(self, episode: Episode, items: Sequence[MemoryItem]) -> Asking[ParsedAnswer]:
        yield from ()
        return self.answer(None)


@MODULES.register("bench_row_facts")
class RowFacts(NaiveUpdater):
    """Updates with the facts of the row, for any reply of the extractor, as on (fact, memory, operation) rows."""

    def dialogue(self, episode: Episode, bank: MemoryBank, candidates: Sequence[Candidate]) -> Asking[None]:
        facts = [Candidate(turn.text) for turn in episode.task.conversation[:8]]
        yield from super().dialogue(episode, bank, facts)


def write_model(folder: Path, model: str | Size) -> Path:
    """A folder with a config.json and a tokenizer that has one token for each id; no weights.

    `model` is a size, or a value of `model.path`. The tokenizer is that of `tiny`, filled up with words that stand for
    one token each, so that a random reply is about as long when it is read again in the next prompt.
    """
    folder.mkdir(parents=True)
    tiny = asset("tiny")
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    known = tokenizer.get_vocab_size()
    architecture = _architecture(model)
    spare = range(known, architecture["vocab_size"])
    tokenizer.add_tokens([AddedToken(f"w{number:05x} ", normalized=False) for number in spare])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = (tiny / "chat_template.jinja").read_text(encoding="utf-8")
    fast.save_pretrained(folder)
    ends = {"eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id, "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps({**architecture, **ends}), encoding="utf-8")
    return folder


def _architecture(model: str | Size) -> dict[str, Any]:
    if isinstance(model, str):
        return load_architecture(ModelConfig(path=model)).to_dict()
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": 262144,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }


class Writer:
    """Text of random words, each of them one token of the tokenizer in `folder`."""

    def __init__(self, folder: Path, seed: int) -> None:
        vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=False)
        self._words = sorted(word[1:] for word in vocabulary if word[0] == "Ġ" and word[1:].isalpha())
        self._random = random.Random(seed)

    def words(self, count: int) -> str:
        return " ".join(self._random.choices(self._words, k=count))


def rows(work: Work, folder: Path) -> list[dict[str, Any]]:
    """One row a task. The prompts that come of it have, with the default lengths, about 930 tokens (memory_r1) and
    1,125 (rmm)."""
    return [_row(work, Writer(folder, seed), f"task-{seed}") for seed in range(work.tasks)]


def _row(work: Work, writer: Writer, name: str) -> dict[str, Any]:
    question = {"id": name, "question": writer.words(16) + "?", "answer": writer.words(2)}
    if work.name == "memory_agent":
        return {**question, "context": writer.words(work.chunks * work.chunk_tokens)}
    if work.name == "memory_r1":
        each = max(1, (work.prompt_tokens or 930) // 24 - 5)
        conversation = [
            {"role": "user", "content": writer.words(each), "dia_id": f"D1:{number}", "session": "1"}
            for number in range(24)
        ]
        memory = _items(writer, 16, each)
        return {**question, "conversation": conversation, "memory": memory, "context_memory": memory}
    return {**question, "memory": _items(writer, 20, max(1, (work.prompt_tokens or 1125) // 20 - 6))}


def _items(writer: Writer, count: int, words: int) -> list[dict[str, str]]:
    return [{"id": f"m{number}", "key": "", "value": writer.words(words)} for number in range(count)]


def configured(work: Work, model: Path, folder: Path, settings: Sequence[str] = ()) -> Resolved:
    """The product's config for `work` on the model in `model`, with `key=value` overrides; rows go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "rows.json"
    data.write_text(json.dumps(rows(work, model)), encoding="utf-8")
    config = {
        "model": {"path": str(model), "random_weights": True},
        "engine": {"kind": "hf"},
        "agent": _agent(work),
        "env": {
            "name": {"memory_agent": "longcontext", "memory_r1": "memory_bank", "rmm": "rerank"}[work.name],
            "rewards": {"bench_spread": 1.0},
        },
        "data": {"train": str(data), "shuffle": False},
        "train": {
            "name": "grpo",
            "steps": 1_000_000,
            "prompts_per_step": work.tasks,
            "group_size": work.group_size,
            "loss": {"kl_coef": 0.001},
            "transcripts_per_step": 0,
        },
        "trackers": [],
        "seed": 0,
    }
    file = folder / "bench.yaml"
    # JSON is YAML.
    file.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return load_config(file, settings)


def _agent(work: Work) -> dict[str, Any]:
    longest = {"max_tokens": work.new_tokens}
    no_answer = {"name": "bench_no_answer"}
    if work.name == "memory_r1":
        updater = {"name": "bench_row_facts", **longest}
        return {
            "name": "memory_r1",
            "modules": {
                "extractor": {"name": "naive_extractor", **longest},
                "updater": updater,
                "retriever": {"name": "bench_no_items"},
                "answerer": no_answer,
            },
        }
    if work.name == "rmm":
        retriever = {"name": "rerank_retriever", "candidates": 20, "keep": 5, **longest}
        return {"name": "memory_rmm", "modules": {"retriever": retriever, "answerer": no_answer}}
    order = {} if work.prompts == "faithful" else {"order": work.prompts}
    return {
        "name": "memory_agent",
        "chunk_tokens": work.chunk_tokens,
        "max_chunks": work.chunks,
        "memory_tokens": work.new_tokens,
        "answer_tokens": work.answer_tokens or work.new_tokens,
        **order,
    }
