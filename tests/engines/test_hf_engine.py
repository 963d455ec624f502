"""The Hugging Face engine against plain full forward passes of the same model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memfactory.engines.base import sample
from memfactory.engines.hf.cache import SlotCache
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.hf.sampling import SamplingBatch, sample_tokens, uniforms
from memfactory.engines.options import HfEngineConfig
from memfactory.errors import ConfigError, EngineError
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import load_model
from memfactory.model.options import ModelConfig
from memfactory.types import Message, Reply, Sampling, SamplingParams

Prompt = tuple[tuple[Message, ...], Sampling]
WORDS = "The code of Alice is seven. The city of Carol is Rome. Größe 東京 🙂 naïve " * 8


def asks(count: int, *, same: int = 1, tokens: int = 24, params: SamplingParams = SamplingParams()) -> list[Prompt]:
    """`count` asks in groups of `same` equal prompts of different lengths, each with its own seed."""
    return [
        (
            (Message("user", WORDS[: 5 + 37 * (index // same)]),),
            Sampling(tokens - index % 3, params, seed=index),
        )
        for index in range(count)
    ]


def full_logprobs(model, chat: ChatFormat, reply: Reply, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities [R, V] of the reply's positions by one plain forward pass over the unpadded sequence."""
    tokens = reply.tokens
    with torch.no_grad():
        logits = model(torch.tensor([[*tokens.prompt_ids, *tokens.reply_ids]])).logits[0, :, : chat.vocab_size]
    return torch.log_softmax(logits[len(tokens.prompt_ids) - 1 : -1].float() / temperature, -1)


def largest_difference(model, chat: ChatFormat, reply: Reply, temperature: float = 1.0) -> float:
    expected = full_logprobs(model, chat, reply, temperature)
    chosen = expected.gather(-1, torch.tensor(reply.tokens.reply_ids)[:, None])[:, 0]
    return (chosen - torch.tensor(reply.tokens.logprobs)).abs().max().item()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_logprobs_are_those_of_a_full_forward_pass(model, chat, temperature):
    prompts = asks(22, same=3, params=SamplingParams(temperature))
    replies = sample(HfEngine(model, chat, HfEngineConfig(max_batch=5, prefill_tokens=200)), prompts)
    assert [reply.tokens.prompt_ids for reply in replies] == [chat.prompt_ids(messages) for messages, _ in prompts]
    assert max(largest_difference(model, chat, reply, temperature) for reply in replies) < 1e-5
    # Random weights end a reply at about every 400th token, so nearly all are cut, and every one holds odd bytes.
    assert {reply.stop for reply in replies} >= {"length"}
    assert any("�" in reply.text for reply in replies)


def test_a_reply_holds_the_end_token_only_if_it_was_sampled(model, chat):
    end = next(iter(chat.stop_ids))
    prompts = asks(64, same=64, tokens=40)
    replies = sample(HfEngine(model, chat, HfEngineConfig()), prompts)
    by_stop = {stop: [reply for reply in replies if reply.stop == stop] for stop in ("stop", "length")}
    assert by_stop["stop"] and by_stop["length"]
    for reply in by_stop["stop"]:
        assert reply.tokens.reply_ids.index(end) == len(reply.tokens.reply_ids) - 1
        assert reply.text == chat.decode(reply.tokens.reply_ids)
    for (_, sampling), reply in zip(prompts, replies):
        if reply.stop == "length":
            assert end not in reply.tokens.reply_ids
            assert len(reply.tokens.reply_ids) == sampling.max_tokens


def test_a_reply_does_not_depend_on_what_else_is_in_the_batch(model, chat):
    prompts = asks(9, same=2)
    together = sample(HfEngine(model, chat, HfEngineConfig()), prompts)
    narrow = sample(HfEngine(model, chat, HfEngineConfig(max_batch=2)), prompts[::-1])[::-1]
    alone = [sample(HfEngine(model, chat, HfEngineConfig()), [prompt])[0] for prompt in prompts]
    ids = [reply.tokens.reply_ids for reply in together]
    assert ids == [reply.tokens.reply_ids for reply in narrow] == [reply.tokens.reply_ids for reply in alone]
    assert len(set(ids)) == 9


def test_equal_work_gives_equal_bits_after_any_other_work(model, chat):
    engine = HfEngine(model, chat, HfEngineConfig(max_batch=4))
    first = sample(engine, asks(9, same=2))
    sample(engine, asks(3, tokens=300))
    assert sample(engine, asks(9, same=2)) == first


@contextmanager
def fed_shapes(model, engine: HfEngine) -> Iterator[list[tuple[int, int]]]:
    """The shape [rows, tokens] of every pass within; the engine has tried the model out before."""
    sample(engine, asks(1, tokens=1))
    shapes: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        handle.remove()


@pytest.mark.parametrize("share", [True, False])
def test_equal_prompts_are_prefilled_once_beyond_the_batch_too(model, chat, share):
    prompts = asks(10, same=5, tokens=6)
    short, long = (len(chat.prompt_ids(prompts[index][0])) for index in (0, 5))
    engine = HfEngine(model, chat, HfEngineConfig(max_batch=4, prefill_tokens=16, share_prefixes=share))
    with fed_shapes(model, engine) as shapes:
        replies = sample(engine, prompts)
    assert [shape for shape in shapes if shape[1] > 1] == [(1, short - 1), (1, long - 1)]
    assert max(largest_difference(model, chat, reply) for reply in replies) < 1e-5


def test_prompts_of_similar_length_are_prefilled_together(model, chat):
    # Each of these letters is one token.
    texts = ["Z" * 30, "Z" * 5, "Z" * 29, "Z" * 6]
    form = len(chat.prompt_ids([Message("user", "Z")])) - 1
    engine = HfEngine(model, chat, HfEngineConfig(prefill_tokens=2 * (form + 30), share_prefixes=False))
    with fed_shapes(model, engine) as shapes:
        sample(engine, [((Message("user", text),), Sampling(1, seed=index)) for index, text in enumerate(texts)])
    # 5 and 6 fit together, and so does no third: 29 and 30 follow. One token less each, which the first step feeds.
    assert shapes == [(2, form + 5), (2, form + 29), (4, 1)]


@pytest.mark.parametrize("share", [True, False])
def test_waiting_rows_take_the_place_of_finished_ones(model, chat, share):
    message = (Message("user", "code"),)
    limits = [1, 4, 4, 4]
    engine = HfEngine(model, chat, HfEngineConfig(max_batch=2, share_prefixes=share))
    with fed_shapes(model, engine) as shapes:
        sample(engine, [(message, Sampling(limit, seed=index)) for index, limit in enumerate(limits)])
    # 0 leaves after one step, 2 takes its place beside 1, which leaves after four, and 3 takes that place: 13 tokens.
    assert [shape[0] for shape in shapes if shape[1] == 1] == [2, 2, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("share", "budget", "rows"),
    [
        # Prompt and reply need 64 columns at most, so 192 tokens hold three rows.
        (False, 192, 3),
        # The reply needs 32 of them, and the prompt, less its last token, 18 tokens once: three rows take 114.
        (True, 114, 3),
        (True, 113, 2),
    ],
)
def test_the_token_budget_bounds_the_rows_that_decode_together(model, chat, share, budget, rows):
    message = (Message("user", "code"),)
    assert len(chat.prompt_ids(message)) == 19
    engine = HfEngine(model, chat, HfEngineConfig(max_batch_tokens=budget, share_prefixes=share))
    with fed_shapes(model, engine) as shapes:
        sample(engine, [(message, Sampling(20, seed=index)) for index in range(7)])
    assert max(shape[0] for shape in shapes if shape[1] == 1) == rows


def test_a_long_row_after_short_ones_stays_within_the_budget():
    cache = SlotCache(1, torch.device("cpu"))
    shapes = []
    # Four rows of 32 fit 256 tokens with room for more; a fifth doubles them. Two rows of 96 (192 tokens) fit only
    # without the rows held before, and a short one beside them takes no more than it needs.
    for rows, columns in [(4, 32), (3, 32), (5, 32), (8, 32), (2, 96), (1, 32), (2, 128)]:
        cache.reserve(rows, columns, 256)
        shapes.append(cache.capacity)
    assert shapes == [(4, 32), (4, 32), (8, 32), (8, 32), (2, 96), (2, 96), (2, 128)]


def test_long_and_short_prompts_mix_while_the_cache_grows_and_shrinks(model, chat):
    prompts = [
        ((Message("user", WORDS[:length]),), Sampling(tokens, seed=length))
        for length, tokens in [(5, 9), (6, 30), (7, 12), (400, 40), (8, 30), (300, 5), (9, 3), (10, 60)]
    ]
    replies = sample(HfEngine(model, chat, HfEngineConfig(max_batch_tokens=700)), prompts)
    assert max(largest_difference(model, chat, reply) for reply in replies) < 1e-5


def test_greedy_takes_the_likeliest_token_with_certainty(model, chat):
    (reply,) = sample(HfEngine(model, chat, HfEngineConfig()), asks(1, params=SamplingParams(0.0)))
    assert reply.tokens.reply_ids == tuple(full_logprobs(model, chat, reply).argmax(-1).tolist())
    assert set(reply.tokens.logprobs) == {0.0}


def test_rows_of_one_batch_are_drawn_each_in_its_own_way(model, chat):
    ways = [
        SamplingParams(),
        SamplingParams(0.0),
        SamplingParams(0.5),
        SamplingParams(1.0, top_k=1),
        SamplingParams(2.0, top_p=0.5, top_k=7),
    ]
    prompts = [(messages, Sampling(8, way, seed=5)) for way, (messages, _) in zip(ways, asks(5))]
    together = sample(HfEngine(model, chat, HfEngineConfig()), prompts)
    alone = [sample(HfEngine(model, chat, HfEngineConfig()), [prompt])[0] for prompt in prompts]
    assert [r.tokens.reply_ids for r in together] == [r.tokens.reply_ids for r in alone]
    assert set(together[3].tokens.logprobs) == {0.0}


def test_the_models_generation_defaults_play_no_part(model, chat):
    expected = sample(HfEngine(model, chat, HfEngineConfig()), asks(2))
    before = model.generation_config.to_dict()
    model.generation_config.update(temperature=0.01, top_k=1, top_p=0.1, repetition_penalty=5.0, max_new_tokens=2)
    try:
        assert sample(HfEngine(model, chat, HfEngineConfig()), asks(2)) == expected
    finally:
        model.generation_config.update(**before)


def test_ids_beyond_the_tokenizer_are_never_sampled(small_model_path: Path, chat):
    padded = load_model(ModelConfig(path=str(small_model_path)), training=False)
    padded.resize_token_embeddings(chat.vocab_size + 60, mean_resizing=False)
    with torch.no_grad():
        padded.lm_head.weight[chat.vocab_size :] = padded.lm_head.weight[:60] * 10
    replies = sample(HfEngine(padded, chat, HfEngineConfig()), asks(8, tokens=30))
    assert max(max(reply.tokens.reply_ids) for reply in replies) < chat.vocab_size
    assert max(largest_difference(padded, chat, reply) for reply in replies) < 1e-5


def test_a_stop_string_ends_the_reply_and_is_not_in_its_text(model, chat):
    (free,) = sample(HfEngine(model, chat, HfEngineConfig()), asks(1))
    stop = free.text[6:8]
    messages, sampling = asks(1)[0]
    stopped = Sampling(sampling.max_tokens, stop=(stop, "never"), seed=sampling.seed)
    (reply,) = sample(HfEngine(model, chat, HfEngineConfig()), [(messages, stopped)])
    assert reply.stop == "stop"
    assert reply.text == free.text[: free.text.index(stop)]
    count = len(reply.tokens.reply_ids)
    assert reply.tokens.reply_ids == free.tokens.reply_ids[:count]
    assert stop in chat.decode(reply.tokens.reply_ids) and stop not in chat.decode(reply.tokens.reply_ids[:-1])


def test_the_context_refuses_long_prompts_and_cuts_replies(model, chat):
    engine = HfEngine(model, chat, HfEngineConfig())
    text = "seven " * 3000
    with pytest.raises(EngineError, match=r"prompt of \d+ tokens leaves no room .* context is 2048 tokens"):
        engine.submit(0, [Message("user", text)], Sampling(4))
    words = next(n for n in range(3000, 0, -1) if len(chat.prompt_ids([Message("user", "seven " * n)])) < 2048)
    messages = [Message("user", "seven " * words)]
    (reply,) = sample(engine, [(messages, Sampling(3000, SamplingParams(0.0)))])
    assert len(reply.tokens.prompt_ids) + len(reply.tokens.reply_ids) == 2048 or reply.stop == "stop"


def test_the_model_is_given_back_as_it_was(model, chat):
    model.train()
    engine = HfEngine(model, chat, HfEngineConfig())
    try:
        engine.submit(0, *asks(1)[0])
        engine.submit(1, *asks(1)[0])
        assert engine.step() == []
        assert engine.pending() == 2 and not model.training
        engine.cancel()
        assert engine.pending() == 0 and engine.step() == [] and model.training
        sample(engine, asks(2))
        assert model.training
    finally:
        model.eval()
    # Nothing that sampling made stands in the way of training.
    ids = torch.tensor([[3, 4, 5]])
    model(ids, labels=ids).loss.backward()
    model.zero_grad()


def test_eager_attention_gives_the_same_replies(model, chat, small_model_path: Path):
    config = ModelConfig(path=str(small_model_path), attention="eager")
    eager = sample(HfEngine(load_model(config, training=False), chat, HfEngineConfig()), asks(4))
    assert [r.tokens.reply_ids for r in eager] == [
        r.tokens.reply_ids for r in sample(HfEngine(model, chat, HfEngineConfig()), asks(4))
    ]


def test_a_kernel_that_takes_no_mask_is_left_for_sdpa_while_decoding(model, chat):
    expected = sample(HfEngine(model, chat, HfEngineConfig()), asks(2))
    model.set_attn_implementation("flex_attention")
    try:
        assert sample(HfEngine(model, chat, HfEngineConfig()), asks(2)) == expected
        assert model.config._attn_implementation == "flex_attention"
    finally:
        model.set_attn_implementation("sdpa")


def test_a_sleeping_engine_does_not_disturb_another_on_its_model(model, chat):
    (short, _), (long, _) = asks(2)
    wanted = (long, Sampling(12, SamplingParams(0.0)))
    (expected,) = sample(HfEngine(model, chat, HfEngineConfig()), [wanted])
    first, second = HfEngine(model, chat, HfEngineConfig()), HfEngine(model, chat, HfEngineConfig())
    model.set_attn_implementation("flex_attention")
    model.train()
    try:
        first.submit(0, short, Sampling(2, SamplingParams(0.0)))
        second.submit(0, *wanted)
        assert first.step() == second.step() == [] and len(first.step()) == 1
        assert model.training  # The first one rests, and gives the model back while the second goes on.
        found = []
        while second.pending():
            found += second.step()
            assert not second.pending() or not model.training
        assert found == [(0, expected)]
        assert model.training and model.config._attn_implementation == "flex_attention"
    finally:
        model.set_attn_implementation("sdpa")
        model.eval()


def sampled_under(hook, engine, model, prompts):
    """The replies while `hook` runs before each pass of `model`."""
    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        return sample(engine, prompts)
    finally:
        handle.remove()


def test_running_out_of_memory_says_what_to_lower(model, chat):
    def exhausted(module, args, kwargs):
        raise torch.OutOfMemoryError("no more")

    handle = model.register_forward_pre_hook(exhausted, with_kwargs=True)
    engine = HfEngine(model, chat, HfEngineConfig())
    engine.submit(0, *asks(1)[0])
    try:
        with pytest.raises(EngineError, match=r"lower engine\.max_batch_tokens \(now 262144\)"):
            engine.step()
    finally:
        handle.remove()
    assert engine.pending() == 0
    assert len(sample(engine, asks(1))) == 1


@pytest.mark.parametrize("share", [True, False])
def test_running_out_of_memory_halves_the_rows_and_changes_no_reply(model, chat, share, caplog):
    prompts = asks(11, same=3, tokens=7)
    expected = sample(HfEngine(model, chat, HfEngineConfig(share_prefixes=share)), prompts)
    rows, failures = [], []

    def exhausted(module, args, kwargs):
        count, width = kwargs["input_ids"].shape
        rows.append(count)
        # The second pass over one token of more than three rows: some rows have tokens already, others wait.
        if count > 3 and width == 1 and len(rows) > 3:
            failures.append(count)
            raise torch.OutOfMemoryError("no more\nof it")

    engine = HfEngine(model, chat, HfEngineConfig(max_batch=9, share_prefixes=share))
    sample(engine, asks(1))
    rows.clear()
    replies = sampled_under(exhausted, engine, model, prompts)
    assert [reply.tokens.reply_ids for reply in replies] == [reply.tokens.reply_ids for reply in expected]
    # Nine rows, then four, then two at a time, from here on.
    assert failures == [9, 4]
    assert ["at most 4 rows" in caplog.messages[0], "at most 2 rows" in caplog.messages[1]] == [True, True]
    assert len(caplog.messages) == 2 and "(no more)" in caplog.messages[0]
    assert sample(engine, prompts) is not None and engine.pending() == 0


def test_running_out_of_memory_in_a_prefill_loses_no_conversation(model, chat, caplog):
    prompts = asks(6, tokens=4)
    expected = sample(HfEngine(model, chat, HfEngineConfig()), prompts)
    engine = HfEngine(model, chat, HfEngineConfig())
    sample(engine, asks(1))
    left = [2]

    def exhausted(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 1 and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("no more")

    replies = sampled_under(exhausted, engine, model, prompts)
    assert [reply.tokens.reply_ids for reply in replies] == [reply.tokens.reply_ids for reply in expected]
    assert len(caplog.messages) == 2


def test_an_adapter_speaks(small_model_path: Path, chat, model):
    from peft import LoraConfig, get_peft_model

    base = load_model(ModelConfig(path=str(small_model_path)), training=False)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    replies = sample(HfEngine(adapted, chat, HfEngineConfig()), asks(4))
    adapted.eval()
    assert max(largest_difference(adapted, chat, reply) for reply in replies) < 1e-5
    assert max(largest_difference(model, chat, reply) for reply in replies) > 1e-2


def test_float32_weights_compute_in_bfloat16_when_asked(model, chat):
    replies = sample(HfEngine(model, chat, HfEngineConfig(), compute_dtype=torch.bfloat16), asks(6, same=2))
    with torch.autocast("cpu", torch.bfloat16):
        difference = max(largest_difference(model, chat, reply) for reply in replies)
    # bfloat16 has 8 bits: these logits, of size 3, are off by about 0.02, and differently in each kernel.
    assert difference < 0.1
    assert max(largest_difference(model, chat, reply) for reply in replies) > 1e-3


def test_logits_that_are_not_finite_are_an_error_and_end_the_work(small_model_path: Path, chat):
    broken = load_model(ModelConfig(path=str(small_model_path)), training=False)
    with torch.no_grad():
        broken.lm_head.weight[5] = math.nan
    engine = HfEngine(broken, chat, HfEngineConfig())
    engine.submit(0, *asks(1)[0])
    with pytest.raises(EngineError, match="logits are not finite"):
        engine.step()
    assert engine.pending() == 0


def test_a_model_that_slides_its_attention_is_refused(chat):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1,
        vocab_size=400, use_sliding_window=True, sliding_window=16, max_window_layers=1,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="full attention in every layer; 'qwen3' has full_attention, sliding"):
        HfEngine(Qwen3ForCausalLM(config), chat, HfEngineConfig())


def test_a_model_with_one_sliding_window_uses_the_window_alone(chat):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1,
        vocab_size=400, sliding_window=32,
    )  # fmt: skip
    engine = HfEngine(MistralForCausalLM(config), chat, HfEngineConfig())
    with pytest.raises(EngineError, match="context is 32 tokens"):
        engine.submit(0, *asks(4)[3])


def test_a_uniform_picks_its_token_of_the_cumulative_sum():
    # Probabilities 0.5, 0, 0.25, 0.25: stretches [0, .5), none, [.5, .75), [.75, 1).
    logits = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).log().repeat(5, 1)
    uniform = torch.tensor([0.0, 0.49, 0.5, 0.74, 1 - 2**-24], dtype=torch.float64)
    ids, logprobs = sample_tokens(logits, SamplingBatch.of([SamplingParams()] * 5, 4, torch.device("cpu")), uniform)
    assert ids.tolist() == [0, 0, 2, 2, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.25], abs=1e-6)


@pytest.mark.parametrize(
    ("sampling_params", "expected"),
    [
        # 0.4, 0.3, 0.2, 0.1: the two likeliest, renormalised.
        (SamplingParams(top_k=2), [4 / 7, 3 / 7, 0, 0]),
        # 0.4 + 0.3 reach 0.7 with two tokens; 0.75 needs a third.
        (SamplingParams(top_p=0.69), [4 / 7, 3 / 7, 0, 0]),
        (SamplingParams(top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        # Of the three likeliest (4, 3, 2 ninths), 4/9 + 3/9 reach 0.7.
        (SamplingParams(top_k=3, top_p=0.7), [4 / 7, 3 / 7, 0, 0]),
        # Temperature 1/2 squares: 16, 9, 4, 1 of 30.
        (SamplingParams(0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    ],
)
def test_logprobs_are_those_of_the_distribution_that_was_drawn_from(sampling_params, expected):
    count = 2000
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().repeat(count, 1)
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids, logprobs = sample_tokens(logits, SamplingBatch.of([sampling_params] * count, 4, torch.device("cpu")), uniform)
    counts = Counter(ids.tolist())
    # Evenly spaced uniforms hit each token in proportion, to one part in `count`.
    assert [counts[token] / count for token in range(4)] == pytest.approx(expected, abs=1 / count)
    for token, logprob in zip(ids.tolist(), logprobs.tolist()):
        assert math.exp(logprob) == pytest.approx(expected[token], abs=1e-6)


@given(st.integers(0, 2**63 - 1))
@settings(max_examples=20)
def test_a_seed_names_one_stream_of_numbers_below_one(seed):
    first, again, other = uniforms(seed), uniforms(seed), uniforms(seed + 1)
    numbers = [next(first) for _ in range(150)]
    assert numbers == [next(again) for _ in range(150)]
    assert numbers != [next(other) for _ in range(150)]
    assert 0 <= min(numbers) and max(numbers) < 1
