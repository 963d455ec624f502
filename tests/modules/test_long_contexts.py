"""Texts of any length: found piece by piece their tokens are those of the whole, and no prompt grows with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from memfactory.agents.memory_agent import MemoryAgent
from memfactory.engines.scripted import ScriptedEngine
from memfactory.episode import Episode
from memfactory.evaluation.samples import turn_record
from memfactory.formats.render import render_task
from memfactory.model.codec import FileCodec
from memfactory.modules.recurrent_memory import RecurrentMemoryModule, RecurrentMemoryOptions
from memfactory.play import PlaySettings, Sampler, play
from memfactory.registry import Options
from memfactory.text import Offsets, chunk_cuts, token_counter, token_spans
from memfactory.types import Message, Reply, Sampling, Task, Turn, Utterance

# Splits as in Llama 3 (runs of three digits) and Qwen (single digits).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TAUGHT = (
    "Alice's code is 1234567, Bob's is 89; don't ask. The tower was built in 1901!\n\nRead\tthe section.   Twice.",
    "東京は日本の首都です。人口は約1400万人。 Über Straßen und Café — naïve 🙂🙂 x = [1, 2, 33];",
)


def byte_level(digits: str, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT.replace("DIGITS", digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return taught(tokenizer, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=30))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return taught(tokenizer, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False))


def sentence_pieces() -> Tokenizer:
    """As in Llama 2: no splits at all, a space before the text, every space a letter like any other."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return taught(tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False))


def taught(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(TAUGHT, trainer)
    return tokenizer


TOKENIZERS = {
    "digits by three": byte_level("{1,3}"),
    "composed letters": byte_level("", normalizers.NFC()),
    "words": words(),
    "sentence pieces": sentence_pieces(),
}


def spans_of(tokenizer: Tokenizer) -> Offsets:
    """How a tokenizer finds spans in a text."""
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).offsets)


EVERY = {"tiny": FileCodec("tiny").offsets, **{name: spans_of(tokenizer) for name, tokenizer in TOKENIZERS.items()}}
every_tokenizer = pytest.mark.parametrize("offsets", EVERY.values(), ids=EVERY)
PARTS = st.one_of(
    st.sampled_from(
        ["Alice's ", "don't ", "the tower ", "1234567", "é", "e\u0301", "🙂", "東京は", "。", " ", "\n", "▁"]
    ),
    st.text(max_size=12),
    # Runs that are longer than the windows' overlap.
    st.builds(lambda letter, count: letter * count, st.sampled_from(list(" \n\t1a=é🙂'_東")), st.integers(1, 90)),
)
TEXTS = st.lists(PARTS, max_size=60).map("".join)


@every_tokenizer
@given(text=TEXTS, margin=st.integers(4, 24), piece=st.integers(4, 9))
@example(text="1" * 200 + " x" * 100, margin=8, piece=4)
@example(text="a b\u0301" * 90, margin=8, piece=4)
@settings(max_examples=150, deadline=None)
def test_the_spans_found_piece_by_piece_are_those_of_the_whole_text(offsets, text, margin, piece):
    parts = list(token_spans(text, offsets, piece * margin, margin))
    assert list(chain.from_iterable(parts)) == offsets(text)
    assert parts == [offsets(text)] or len(text) > piece * margin


@every_tokenizer
@given(text=TEXTS, size=st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_the_chunks_are_those_of_the_whole_text(offsets, text, size):
    found = chunk_cuts(text, token_spans(text, offsets, 64, 16), size)
    assert found == chunk_cuts(text, [offsets(text)], size)


def prose(random: Random, words: int) -> str:
    """Words, numbers and line ends by chance."""
    drawn = [
        "the",
        "tower",
        "of",
        "Ada",
        "was",
        "built",
        "in",
        "1901.",
        "東京は",
        "naïve",
        "don't",
        "\n\n",
        "—",
        "x_1,",
    ]
    return " ".join(random.choices(drawn, k=words))


@every_tokenizer
def test_ordinary_text_is_tokenised_in_windows_of_bounded_length(offsets):
    text, lengths = prose(Random(0), 4000), []

    def counted(window: str) -> list[tuple[int, int]]:
        lengths.append(len(window))
        return offsets(window)

    assert list(chain.from_iterable(token_spans(text, counted, 1000, 100))) == offsets(text)
    assert max(lengths) <= 2000
    # Each window of 1,000 characters brings 800 new ones, and few are too short to meet their successor.
    assert sum(lengths) < 1.5 * len(text)


def test_the_tokens_of_a_text_are_counted_once():
    texts: list[str] = []

    def words(text: str) -> list[tuple[int, int]]:
        texts.append(text)
        return [(2 * index, 2 * index + 1) for index in range(len(text.split()))]

    count = token_counter(words)
    assert [count("a b c"), count("a"), count("a b c")] == [3, 1, 3]
    assert texts == ["a b c", "a"]


# What an engine sees


def read(context: str, **options: object) -> tuple[list[int], Episode]:
    """Reads `context` with tiny's tokenizer; the tokens of every prompt in order, and the finished episode."""
    codec = FileCodec("tiny")
    lengths = []

    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        lengths.append(sum(len(codec.offsets(message.content)) for message in messages))
        return " the" * sampling.max_tokens

    given = RecurrentMemoryOptions.model_validate({"memory_tokens": 32, "answer_tokens": 8, **options})
    agent = MemoryAgent(Options(), {"memory": RecurrentMemoryModule(given, codec)})
    episode = Episode(Task("t", "Who built the tower?", (), context))
    (done,) = play(Sampler(agent, {"policy": ScriptedEngine(reply)}), [episode], PlaySettings(frozen=True))
    return lengths, done


@pytest.mark.parametrize("order", ["memory_first", "chunk_first"])
def test_what_is_asked_grows_linearly_with_the_text_and_no_prompt_grows_at_all(order):
    codec, chunk = FileCodec("tiny"), 200
    counts, asked, longest = [], [], []
    for words in (1000, 4000, 16000):
        text = prose(Random(1), words)
        lengths, _ = read(text, chunk_tokens=chunk, order=order)
        counts.append(len(codec.offsets(text)))
        asked.append(lengths)
        longest.append(max(lengths))
        # One ask for each 200 tokens begun, and the answer.
        assert len(lengths) == -(-counts[-1] // chunk) + 1
    frame = len(codec.offsets(RecurrentMemoryOptions(order=order).prompts.update)) + 10
    # Cut out of the text, a section can have a few tokens more than within it.
    assert max(longest) <= chunk + 32 + frame + 10
    overheads = [sum(lengths) / tokens for lengths, tokens in zip(asked, counts, strict=True)]
    assert max(overheads) / min(overheads) < 1.1


def test_the_text_is_not_copied_before_its_sections_are():
    text = "The tower was built in 1901. " * 20
    assert render_task(Task("t", "q", (), text)) is text
    said = Task("t", "q", (), "", conversation=(Utterance("Ada", "I moved."),))
    assert render_task(said) == "Ada: I moved."
    module = RecurrentMemoryModule(RecurrentMemoryOptions(chunk_tokens=10), FileCodec("tiny"))
    sections = module.chunks(text, "t")
    assert iter(sections) is sections


def test_all_attempts_at_a_task_share_one_tokenisation():
    codec, calls = FileCodec("tiny"), []

    class Counting:
        def offsets(self, text: str) -> list[tuple[int, int]]:
            calls.append(text)
            return codec.offsets(text)

    module = RecurrentMemoryModule(RecurrentMemoryOptions(chunk_tokens=10), Counting())
    first, second = (list(module.chunks("The tower was built in 1901. " * 20, "t")) for _ in range(2))
    assert first == second and len(calls) == 1
    assert [len(codec.offsets(a + b)) <= 22 for a, b in pairwise(first)] == [True] * (len(first) - 1)


def test_a_finished_reading_holds_what_was_said_and_how_long_but_not_what_was_read():
    text = "The tower was built in 1901. " * 20
    module = RecurrentMemoryModule(RecurrentMemoryOptions(chunk_tokens=50), FileCodec("tiny"))
    agent, engine = MemoryAgent(Options(), {"memory": module}), ScriptedEngine(lambda messages, sampling: "né")
    told: list[Turn] = []
    task = Task("t", "Who?", (), text)

    def finished(settings: PlaySettings) -> Episode:
        (done,) = play(
            Sampler(agent, {"policy": engine}),
            [Episode(task)],
            settings,
            on_turn=lambda episode, turn: told.append(turn),
        )
        return done

    kept, slim = finished(PlaySettings(frozen=True)), finished(PlaySettings(frozen=True, keep_prompts=False))
    assert all(turn.messages == () and turn.reply == Reply("né", "stop") for turn in slim.turns)
    assert [turn_record(turn) for turn in slim.turns] == [turn_record(turn) for turn in kept.turns]
    # Three bytes and the end token.
    assert slim.turns[0].lengths[1] == 4
    assert told[len(kept.turns) :] == kept.turns
    # What is to be trained on is kept all the same.
    assert finished(PlaySettings(keep_prompts=False)).turns[0].reply.tokens is not None
