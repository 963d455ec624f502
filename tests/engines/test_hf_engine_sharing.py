"""Sampling with common beginnings shared against sampling without, and what the engine keeps of prompts."""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3ForCausalLM, XGLMConfig, XGLMForCausalLM

from memfactory.engines.base import sample
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.hf.shared_prompts import SharedPrompts
from memfactory.engines.options import HfEngineConfig
from memfactory.model.loading import load_model
from memfactory.model.options import ModelConfig
from memfactory.types import Message, Reply, Sampling, SamplingParams

Prompt = tuple[tuple[Message, ...], Sampling]
GREEDY = SamplingParams(0.0)


class IdChat:
    """A message's content is its ids, so that a test says which tokens a prompt has."""

    pad_id = 0

    def __init__(self, vocab_size: int = 300, stop_ids: frozenset[int] = frozenset({7})) -> None:
        self.vocab_size, self.stop_ids = vocab_size, stop_ids

    def prompt_ids(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        return tuple(int(word) for word in messages[0].content.split())

    def reply_text(self, prompt_ids: tuple[int, ...], reply_ids: list[int]) -> str:
        return " ".join(map(str, reply_ids))

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def ask(ids: tuple[int, ...], tokens: int = 6, seed: int = 0, sampling_params: SamplingParams = GREEDY) -> Prompt:
    return (Message("user", " ".join(map(str, ids))),), Sampling(tokens, sampling_params, seed=seed)


def some_ids(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(10, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def agree(one: list[Reply], other: list[Reply], *, within: float = 1e-5) -> None:
    assert [reply.tokens.reply_ids for reply in one] == [reply.tokens.reply_ids for reply in other]
    assert [(reply.text, reply.stop) for reply in one] == [(reply.text, reply.stop) for reply in other]
    for first, second in zip(one, other, strict=True):
        assert first.tokens.logprobs == pytest.approx(second.tokens.logprobs, abs=within, rel=0)


def both_ways(model, chat, prompts: list[Prompt], **options: int) -> tuple[list[Reply], list[Reply]]:
    shared, plain = (
        sample(HfEngine(model, chat, HfEngineConfig(share_prefixes=share, **options)), prompts)
        for share in (True, False)
    )
    return shared, plain


BEGINNING = some_ids(90)
PROMPTS = {
    "groups": [some_ids(20 + 40 * (index // 4), index // 4) for index in range(12)],
    "one beginning": [BEGINNING + some_ids(index, index) for index in range(8)],
    "beginnings of different lengths": [
        BEGINNING[: 30 * (index % 4)] + some_ids(20 + index, index % 7) for index in range(14)
    ],
    "one prompt is the beginning of another": [BEGINNING[:length] for length in (90, 89, 40, 33, 32, 5, 1, 2, 90, 1)],
}


@pytest.mark.parametrize("batch", [64, 3])
@pytest.mark.parametrize("sampling_params", [SamplingParams(), GREEDY, SamplingParams(0.6, top_p=0.9)])
@pytest.mark.parametrize("kind", PROMPTS)
def test_sharing_changes_no_reply(model, kind, sampling_params, batch):
    prompts = [ask(ids, 5 + index % 9, index, sampling_params) for index, ids in enumerate(PROMPTS[kind])]
    agree(*both_ways(model, IdChat(), prompts, max_batch=batch, prefill_tokens=100))


@pytest.mark.parametrize("kind", PROMPTS)
def test_copying_what_is_a_rows_own_into_its_slots_changes_no_reply(model, kind):
    prompts = [ask(ids, 5 + index % 9, index, SamplingParams()) for index, ids in enumerate(PROMPTS[kind])]
    for batch, copied in ((64, None), (3, None), (64, 0), (3, 40)):
        engine = HfEngine(model, IdChat(), HfEngineConfig(max_batch=batch))
        expected = sample(engine, prompts)
        engine._prompts = SharedPrompts(engine._forward, 100, 4000, copied)
        agree(sample(engine, prompts), expected)


def test_a_row_that_is_alone_copies_up_to_so_many_tokens(model):
    engine = HfEngine(model, IdChat(), HfEngineConfig())
    sample(engine, [ask(some_ids(9))])
    for length, copied, kept in ((41, 40, 40), (42, 40, 0), (42, None, 41), (41, 0, 0)):
        prompts = engine._prompts = SharedPrompts(engine._forward, 100, 4000, copied)
        engine.submit("only", *ask(some_ids(length)))
        engine.step()
        # One token of the reply; the prompt's last one is fed with it.
        assert engine._forward.cache.lengths.tolist() == [kept + 1]
        assert prompts.columns(engine._rows[0], alone=False) == (64 if kept else 32)
        assert prompts.prefixes.held == length - 1 - kept
        engine.cancel()


def test_sharing_changes_no_reply_with_another_end(model, chat):
    words = "The code of Alice is seven. " * 20
    prompts = [
        ((Message("user", words + "Bob" * (index % 3)),), Sampling(40, SamplingParams(), ("e", "a"), seed=index))
        for index in range(9)
    ]
    shared, plain = both_ways(model, chat, prompts)
    agree(shared, plain)
    assert {reply.stop for reply in shared} == {"stop"}
    long = [ask(some_ids(2040) + (9,) * (index // 2), 30, index) for index in range(4)]
    shared, plain = both_ways(model, IdChat(), long)
    agree(shared, plain)
    assert [len(reply.tokens.reply_ids) for reply in shared] == [8, 8, 7, 7]


def test_sharing_changes_no_reply_of_an_adapter(small_model_path: Path):
    from peft import LoraConfig, get_peft_model

    base = load_model(ModelConfig(path=str(small_model_path)), training=False)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    agree(*both_ways(adapted, IdChat(), [ask(ids, 12) for ids in PROMPTS["one beginning"]]))


def test_sharing_in_bfloat16_is_as_exact_as_copying(model):
    prompts = [ask(ids, 1, index, SamplingParams()) for index, ids in enumerate(PROMPTS["one beginning"])]
    exact = sample(HfEngine(model, IdChat(), HfEngineConfig()), prompts)
    for share in (True, False):
        config = HfEngineConfig(share_prefixes=share)
        replies = sample(HfEngine(model, IdChat(), config, compute_dtype=torch.bfloat16), prompts)
        # One token each, and so the same prompt; the same seed picks the same token but where rounding decides.
        pairs = [(a.tokens, b.tokens) for a, b in zip(exact, replies) if a.tokens.reply_ids == b.tokens.reply_ids]
        assert len(pairs) >= 6
        assert max(abs(a.logprobs[0] - b.logprobs[0]) for a, b in pairs) < 0.1


def test_a_model_that_caps_its_scores_samples_in_the_plain_way(small_model_path: Path, caplog):
    capped = load_model(ModelConfig(path=str(small_model_path)), training=False)
    capped.config.attn_logit_softcapping = 50.0
    with caplog.at_level(logging.WARNING, "memfactory"):
        sample(HfEngine(capped, IdChat(), HfEngineConfig()), [ask(BEGINNING, 2)])
    assert "Qwen3ForCausalLM caps its attention scores" in caplog.text


@pytest.mark.parametrize("tokens", [(5, 9), (9, 5)])
def test_engines_that_share_and_that_do_not_take_turns_over_one_model(model, tokens):
    engines = [HfEngine(model, IdChat(), HfEngineConfig(share_prefixes=share)) for share in (True, False)]
    wanted = [ask(some_ids(50), length) for length in tokens]
    expected = [sample(engine, [prompt])[0] for engine, prompt in zip(engines, wanted)]
    model.set_attn_implementation("flex_attention")
    model.train()
    try:
        for engine, (messages, sampling) in zip(engines, wanted):
            engine.submit(0, messages, sampling)
        found = {}
        while engines[0].pending() or engines[1].pending():
            for index, engine in enumerate(engines):
                found.update({index: reply for _, reply in engine.step()})
        agree([found[0], found[1]], expected)
        assert model.training and model.config._attn_implementation == "flex_attention"
    finally:
        model.set_attn_implementation("sdpa")
        model.eval()


def test_a_prefix_is_computed_once_for_later_prompts_too(model):
    engine = HfEngine(model, IdChat(stop_ids=frozenset()), HfEngineConfig())
    passes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        for index in range(3):
            engine.submit(index, *ask(BEGINNING + some_ids(10 + index, index), 50))
        engine.step()
        # 90 tokens once, and 10, 11 and 12 of their own, less each one's last. Before it the model was tried out.
        assert passes[-2:] == [90 + 9 + 10 + 11, 1]
        engine.submit(3, *ask(BEGINNING[:60] + some_ids(20, 5), 50))
        engine.step()
        assert passes[-2:] == [19, 1]
        # All but its last token is known.
        engine.submit(4, *ask(BEGINNING + some_ids(10), 50))
        engine.step()
        assert passes[-2:] == [1, 1]
    finally:
        handle.remove()
        engine.cancel()


def rows_at_a_time(model, prompts: list[tuple[int, ...]], budget: int, limit: int = 102) -> list[int]:
    """The rows that decode together in each of 12 steps, as on a GPU: rows copy the end of their prompt."""
    engine = HfEngine(model, IdChat(stop_ids=frozenset()), HfEngineConfig(max_batch=64, max_batch_tokens=budget))
    sample(engine, [ask((5,), 1)])
    engine._prompts = SharedPrompts(engine._forward, 16384, budget, copied_tokens=None)
    for key, ids in enumerate(prompts):
        engine.submit(key, *ask(ids, limit, key))
    counts = []
    for _ in range(12):
        engine.step()
        rows, columns = engine._forward.cache.capacity
        assert rows * columns + engine._prompts.prefixes.tokens <= budget
        counts.append(len(engine._rows))
    engine.cancel()
    return counts


def test_rows_reserve_no_prompt_that_they_share(model):
    # A tenth of the published sizes: groups of 16 share a chunk of 250 tokens; a memory of 10 to 40 is each row's own.
    prompts = [
        some_ids(250, group) + some_ids(10 + 2 * row, 100 + 16 * group + row) for group in range(8) for row in range(16)
    ]
    # Slots of 160 (102 + 40) for 64 rows are 10,240 tokens, the chunks of their four groups 1,000.
    assert max(rows_at_a_time(model, prompts, 13107)) == 64
    # With nothing to share each row takes up to 102 + 290, so 384 + 32: 31 rows fit.
    alone = [some_ids(290, 500 + index) for index in range(64)]
    assert 28 <= rows_at_a_time(model, alone, 13107)[-1] <= 31


def test_a_row_whose_sibling_finds_no_room_copies_nothing(model):
    # The second row would share 200 of its tokens, and there is room for the slots of one alone.
    first, second = some_ids(200, 1) + some_ids(20, 2), some_ids(200, 1) + some_ids(150, 3)
    counts = rows_at_a_time(model, [some_ids(30, 4), first, second], 560, limit=60)
    assert counts[0] == 2


def test_a_prefix_outlives_its_rows_until_room_is_needed(model):
    # Slots of 32 for each row, and prompts of 100 and 60 tokens, less one each: 64 + 159 tokens.
    engine = HfEngine(model, IdChat(stop_ids=frozenset()), HfEngineConfig(max_batch_tokens=260))
    sample(engine, [ask(some_ids(3), 1)])
    engine._prompts = SharedPrompts(engine._forward, 100, 260, copied_tokens=0)
    engine.submit("long", *ask(some_ids(60, 1), 30))
    engine.submit("short", *ask(some_ids(100, 2), 2))
    engine.step()
    assert [key for key, _ in engine.step()] == ["short"]
    kept = engine._prompts.prefixes
    assert (kept.tokens, kept.held) == (158, 59)
    # With 37 more it is 64 + 195 = 259, which fits; with another 2, and a third row, it does not.
    engine.submit("fits", *ask(some_ids(38, 3), 1))
    engine.step()
    assert (kept.tokens, kept.held) == (195, 59)
    engine.submit("more", *ask(some_ids(3, 4), 1))
    engine.step()
    assert (kept.tokens, kept.held) == (59 + 37 + 2, 59)
    engine.cancel()
    assert kept.tokens == kept.held == 0


def test_no_more_is_kept_for_others_than_rows_have_needed(model):
    engine = HfEngine(model, IdChat(stop_ids=frozenset()), HfEngineConfig(max_batch=2))
    # Two rows at a time need 78 tokens: one row stays, and the other place sees one prompt after the other.
    engine.submit("stays", *ask(some_ids(40), 20))
    most = []
    for number in range(8):
        engine.submit(number, *ask(some_ids(40, 1 + number), 1))
        engine.step()
        most.append(engine._prompts.prefixes.tokens)
    assert most == [78, 117, *[156] * 6]
    engine.cancel()


def test_a_model_that_ignores_the_plan_copies_its_prompts(small_model_path: Path, model, caplog):
    class Deaf(Qwen3ForCausalLM):
        def forward(self, *args, attention_plan=None, **kwargs):
            return super().forward(*args, **kwargs)

    deaf = Deaf.from_pretrained(small_model_path).eval()
    prompts = [ask(ids, 5) for ids in PROMPTS["one beginning"]]
    engine = HfEngine(deaf, IdChat(), HfEngineConfig())
    with caplog.at_level(logging.WARNING, "memfactory"):
        replies = sample(engine, prompts)
        assert sample(engine, prompts) == replies
    (warning,) = caplog.messages
    assert warning.startswith(
        "prefixes of prompts are not shared while sampling: Deaf does not run under tree attention"
    )
    assert replies == sample(HfEngine(model, IdChat(), HfEngineConfig(share_prefixes=False)), prompts)
    assert deaf.config._attn_implementation == "sdpa"


def test_layers_with_their_own_attention_copy_their_prompts(caplog):
    sizes = {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "vocab_size": 300}
    torch.manual_seed(0)
    model = XGLMForCausalLM(XGLMConfig(**sizes)).eval()
    with caplog.at_level(logging.WARNING, "memfactory"):
        sample(HfEngine(model, IdChat(), HfEngineConfig(), compute_dtype=torch.bfloat16), [ask(BEGINNING, 2)])
    assert "XGLMForCausalLM does not run under tree attention (its last layer does not call the" in caplog.text


def test_other_logits_under_tree_attention_are_a_reason_to_copy(small_model_path: Path, model, caplog):
    class Different(Qwen3ForCausalLM):
        def forward(self, *args, attention_plan=None, **kwargs):
            out = super().forward(*args, attention_plan=attention_plan, **kwargs)
            if attention_plan is not None:
                out.logits = out.logits * 1.1
            return out

    prompts = [ask(ids, 5) for ids in PROMPTS["one beginning"]]
    with caplog.at_level(logging.WARNING, "memfactory"):
        replies = sample(
            HfEngine(Different.from_pretrained(small_model_path).eval(), IdChat(), HfEngineConfig()), prompts
        )
    assert "Different under tree attention differs by" in caplog.text
    assert replies == sample(HfEngine(model, IdChat(), HfEngineConfig(share_prefixes=False)), prompts)


prompts = st.tuples(st.integers(0, 2), st.integers(0, 110), st.integers(0, 4)).map(
    lambda drawn: some_ids(110, drawn[0])[: drawn[1]] + some_ids(1 + 9 * drawn[2], 10 + drawn[2])
)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.lists(prompts, min_size=1, max_size=4), st.integers(1, 9)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.just(("cancel",)),
    ),
    max_size=12,
)


@given(actions, st.integers(100, 600), st.integers(1, 6), st.integers(40, 300), st.booleans())
@settings(max_examples=40, deadline=None)
def test_each_reply_is_that_of_its_prompt_alone_within_the_budget(model, alone, done, budget, batch, prefill, copies):
    engine = HfEngine(model, IdChat(), HfEngineConfig(max_batch_tokens=budget, max_batch=batch, prefill_tokens=prefill))
    sample(engine, [ask((5,), 1)])
    engine._prompts = SharedPrompts(engine._forward, prefill, budget, copies)
    asked: dict[int, tuple[tuple[int, ...], int]] = {}
    keys = count()

    def check_step() -> None:
        for key, reply in engine.step():
            ids, tokens = asked.pop(key)
            assert reply.tokens.prompt_ids == ids
            assert reply.tokens.reply_ids == alone(ids)[: len(reply.tokens.reply_ids)]
            assert len(reply.tokens.reply_ids) == tokens or reply.stop == "stop"
        assert engine.pending() == len(asked)
        assert isinstance(engine._prompts, SharedPrompts)
        kept = engine._prompts.prefixes
        rows, columns = engine._forward.cache.capacity
        assert kept.tokens == sum(len(prefix.tokens) for prefix in kept.all())
        assert kept.held == sum(len(prefix.tokens) for prefix in kept.all() if prefix.holders)
        # A single row may need more than there is.
        assert rows * columns + kept.tokens <= budget or len(engine._rows) <= 1
        if not asked:
            assert kept.tokens == rows == 0

    for action, *given_with in done:
        if action == "submit":
            for ids in given_with[0]:
                key = next(keys)
                asked[key] = (ids, given_with[1])
                engine.submit(key, *ask(ids, given_with[1]))
        elif action == "step":
            for _ in range(given_with[0]):
                check_step()
        else:
            engine.cancel()
            asked.clear()
    while asked:
        check_step()


@pytest.fixture(scope="module")
def alone(model):
    """The greedy reply of nine tokens that a prompt gets from an engine of its own."""
    known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def reply_ids(ids: tuple[int, ...]) -> tuple[int, ...]:
        if ids not in known:
            (reply,) = sample(HfEngine(model, IdChat(), HfEngineConfig(share_prefixes=False)), [ask(ids, 9)])
            known[ids] = reply.tokens.reply_ids
        return known[ids]

    return reply_ids
