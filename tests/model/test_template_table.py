"""Every manner of chat template, and the real tokenizers: ids of prompts, first and last tokens, system prompts."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from memfactory.engines.hf.requests import Row
from memfactory.engines.hf.sampling import uniforms
from memfactory.errors import ConfigError
from memfactory.files.assets import asset
from memfactory.model.chat import ChatFormat
from memfactory.types import Message, Sampling
from real_models import real_model
from templates import MANNERS, tokenizer_of

REAL = {"tiny": "tiny", "real smollm2": "smollm2", "real qwen3": "qwen3-tokenizer"}
ASKED = Message("user", "What is the code of Alice?")
BRIEF = Message("system", "Be brief.")
REPLIED = Message("assistant", "The code is seven.")
CONVERSATIONS = {
    "a question": (ASKED,),
    "other letters": (Message("user", " naïve 東京 🙂\n\n\tcode  "),),
    "a second question": (ASKED, REPLIED, Message("user", "Go on.")),
    "a system prompt": (BRIEF, ASKED),
    "a system prompt and two questions": (BRIEF, ASKED, REPLIED, Message("user", "Go on.")),
}
ALL = [*MANNERS, *REAL]


@cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    if name in MANNERS:
        return tokenizer_of(name)
    return AutoTokenizer.from_pretrained(asset("tiny") if name == "tiny" else real_model(REAL[name]))


@cache
def chat_of(name: str) -> ChatFormat:
    return ChatFormat(tokenizer(name), MANNERS[name].options if name in MANNERS else None)


def as_transformers(name: str, messages: tuple[Message, ...], *, opening: bool = True) -> tuple[int, ...]:
    """The ids of `apply_chat_template`, which is what vLLM feeds."""
    if name in MANNERS and not MANNERS[name].system and messages[0] == BRIEF:
        messages = (Message("user", f"{BRIEF.content}\n\n{messages[1].content}"), *messages[2:])
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    options = dict(MANNERS[name].options) if name in MANNERS else {}
    return tuple(
        tokenizer(name).apply_chat_template(conversation, add_generation_prompt=opening, **options)["input_ids"]
    )


def whole_text(name: str, ids: tuple[int, ...]) -> str:
    return tokenizer(name).decode(list(ids), clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", ALL)
def test_a_prompt_has_the_ids_of_apply_chat_template(name: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    assert chat_of(name).prompt_ids(messages) == as_transformers(name, messages)


@pytest.mark.parametrize("name", [name for name, manner in MANNERS.items() if manner.bos])
def test_the_first_token_is_there_as_often_as_the_template_says(name: str) -> None:
    bos = tokenizer(name).bos_token_id
    # A template without it leaves it out, although the tokenizer puts it before a plain text: vLLM feeds none either.
    expected = 0 if name == "bos left to the tokenizer" else 1
    for messages in CONVERSATIONS.values():
        ids = chat_of(name).prompt_ids(messages)
        assert ids.count(bos) == expected
        assert (ids[0] == bos) == bool(expected)


@pytest.mark.parametrize("name", MANNERS)
def test_every_end_token_ends_a_reply_and_is_cut_from_it(name: str) -> None:
    chat, vocabulary = chat_of(name), tokenizer(name).get_vocab()
    prompt = chat.prompt_ids((ASKED,))
    ends = {vocabulary[end] for end in MANNERS[name].ends}
    # Without a generation config: the template itself shows the end of a turn.
    assert chat.stop_ids == ends
    words = tokenizer(name)("seven", add_special_tokens=False)["input_ids"]
    for end in ends:
        row = Row(0, prompt, Sampling(max_tokens=50), 50, uniforms(0))
        for number in words:
            row.reply_ids.append(number)
            assert row.reply(chat) is None
        row.reply_ids.append(end)
        row.logprobs = [0.0] * len(row.reply_ids)
        reply = row.reply(chat)
        assert reply is not None and reply.stop == "stop"
        assert reply.text == ("<think>\nseven" if name == "deepseek r1" else "seven")


@pytest.mark.parametrize(
    ("name", "end"),
    [("gemma", "<end_of_turn>"), ("llama 3", "<|eot_id|>"), ("mistral", "</s>"), ("qwen3", "<|im_end|>")],
)
def test_a_turn_ends_as_the_template_ends_it(name: str, end: str) -> None:
    chat = chat_of(name)
    assert chat.turn_end == tokenizer(name).get_vocab()[end]
    target = chat.written_reply((ASKED, REPLIED))
    assert target is not None and target[-1] == chat.turn_end


# System prompts


@pytest.mark.parametrize(("name", "words"), [("default system", "You are brief."), ("real smollm2", "named SmolLM")])
def test_a_default_system_prompt_stays_unless_another_is_given(name: str, words: str) -> None:
    chat = chat_of(name)
    assert words in whole_text(name, chat.prompt_ids((ASKED,)))
    own = whole_text(name, chat.prompt_ids((BRIEF, ASKED)))
    assert words not in own and BRIEF.content in own
    # An empty one is none: the template's words are gone.
    empty = whole_text(name, chat.prompt_ids((Message("system", ""), ASKED)))
    assert (
        empty == f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{ASKED.content}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_system_role_its_text_begins_the_first_question(caplog: pytest.LogCaptureFixture) -> None:
    chat = ChatFormat(tokenizer("gemma"))
    with caplog.at_level(logging.WARNING, logger="memfactory"):
        ids = chat.prompt_ids((BRIEF, ASKED))
        chat.prompt_ids((Message("system", "Be quick."), ASKED))
    assert whole_text("gemma", ids) == (
        "<bos><start_of_turn>user\nBe brief.\n\nWhat is the code of Alice?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert caplog.text.count("its chat template has no system role") == 1


def test_without_a_system_role_an_empty_system_prompt_is_none() -> None:
    chat = chat_of("gemma")
    assert chat.prompt_ids((Message("system", ""), ASKED)) == chat.prompt_ids((ASKED,))


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_roles_that_do_not_alternate_are_refused_in_words(name: str) -> None:
    with pytest.raises(ConfigError, match="roles user, user: roles must alternate user and assistant"):
        chat_of(name).prompt_ids((ASKED, ASKED))


# Look-alikes of control tokens in documents


def control_tokens(name: str) -> list[str]:
    added = tokenizer(name).added_tokens_decoder.values()
    return [str(token) for token in added if str(token) != "<unk>" and not str(token).startswith("<0x")]


@pytest.mark.parametrize("name", ALL)
def test_control_tokens_in_a_document_stay_letters(name: str) -> None:
    chat, vocabulary = chat_of(name), tokenizer(name).get_vocab()
    plain = chat.prompt_ids((Message("user", "Alice seven"),))
    for token in control_tokens(name):
        for text in (f"Alice {token} seven", f"{token}seven", f"a{token}{token}", token):
            ids = chat.prompt_ids((Message("user", text),))
            assert ids.count(vocabulary[token]) == plain.count(vocabulary[token]), text
            assert text in whole_text(name, ids)


@pytest.mark.parametrize("name", ALL)
def test_a_document_that_ends_with_a_tag_opens_no_thinking(name: str) -> None:
    chat = chat_of(name)
    words = tokenizer(name)("seven", add_special_tokens=False)["input_ids"]
    expected = "<think>\nseven" if name == "deepseek r1" else "seven"
    for text in ("Why?", "Why? <think>", "<think>\n"):
        assert chat.reply_text(chat.prompt_ids((Message("user", text),)), words) == expected


# Conversations whose earlier turns the template rewrites

THOUGHT = Message("assistant", "<think>\nAlice has it.\n</think>\n\nThe code is seven.")


@pytest.mark.parametrize("name", ["qwen3", "real qwen3"])
def test_a_target_has_its_thinking_and_earlier_turns_have_none(name: str) -> None:
    chat = chat_of(name)
    target = chat.written_reply((ASKED, THOUGHT))
    assert target is not None
    assert whole_text(name, target) == f"{THOUGHT.content}<|im_end|>"
    messages = (ASKED, THOUGHT, Message("user", "Go on."), REPLIED)
    assert "Alice has it." not in whole_text(name, chat.prompt_ids(messages[:3]))
    second = chat.written_reply(messages)
    assert second is not None
    assert whole_text(name, second) == "<think>\n\n</think>\n\nThe code is seven.<|im_end|>"
    # Prompt and target together are what the template writes, apart from the line break behind the end token.
    assert (*chat.prompt_ids(messages[:3]), *second) == as_transformers(name, messages, opening=False)[:-1]


def test_a_target_without_thinking_follows_the_closed_block() -> None:
    chat = chat_of("qwen3 quiet")
    target = chat.written_reply((ASKED, REPLIED))
    assert target is not None and whole_text("qwen3 quiet", target) == "The code is seven.<|im_end|>"
    # Thinking in the data has no place behind a block that is closed already: the row is learned as it stands.
    assert chat.written_reply((ASKED, THOUGHT)) is None


@pytest.mark.parametrize(
    ("message", "reply"),
    [(REPLIED, "</think>\n\nThe code is seven."), (THOUGHT, "Alice has it.\n</think>\n\nThe code is seven.")],
)
def test_a_target_behind_opened_thinking_ends_it(message: Message, reply: str) -> None:
    chat = chat_of("deepseek r1")
    prompt = chat.prompt_ids((ASKED,))
    assert whole_text("deepseek r1", prompt).endswith("<｜Assistant｜><think>\n")
    assert chat.written_reply((ASKED, message)) is None
    target = chat.following_reply(prompt, message.content)
    assert whole_text("deepseek r1", target) == f"{reply}<｜end▁of▁sentence｜>"
    assert chat.reply_text(prompt, target) == f"<think>\n{reply}"


@pytest.mark.parametrize("name", [name for name in MANNERS if "qwen3" not in name and name != "deepseek r1"])
def test_a_plain_target_is_what_the_template_writes(name: str) -> None:
    chat = chat_of(name)
    target = chat.written_reply((ASKED, REPLIED))
    assert target is not None
    whole = as_transformers(name, (ASKED, REPLIED), opening=False)
    assert (*chat.prompt_ids((ASKED,)), *target) == whole[: len(whole) - (whole[-1] != chat.turn_end)]


# Think tags of other names, and special ones


@pytest.mark.parametrize(
    "pair", [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>")]
)
@pytest.mark.parametrize("special", [True, False])
def test_every_models_thinking_reads_the_same(pair: tuple[str, str], special: bool, small_model_path: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(small_model_path)
    tokens.add_tokens(list(pair), special_tokens=special)
    chat = ChatFormat(tokens)
    ids = tokens(f"{pair[0]}Alice{pair[1]} seven", add_special_tokens=False)["input_ids"]
    prompt = chat.prompt_ids((ASKED,))
    assert chat.reply_text(prompt, [*ids, chat.turn_end]) == "<think>Alice</think> seven"
    opened = [*prompt, tokens.get_vocab()[pair[0]]]
    assert chat.reply_text(opened, ids[1:]) == "<think>\nAlice</think> seven"
