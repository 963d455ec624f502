"""Chat templates in the manner of well-known models, written for the tests, each on a small tokenizer of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = (
    "What is the code of Alice? The code of Alice is seven.",
    "Be brief. Go on. user model assistant system think",
)
ALTERNATES = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user and assistant') }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{% set last = namespace(user=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in m.content else '' %}"
    "{% if loop.index0 > last.user %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ answer }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}" + ALTERNATES + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set turns = messages[1:] if messages[0].role == 'system' else messages %}{{ bos_token }}{% for m in turns %}"
    + ALTERNATES
    + "{% if m.role == 'user' %}[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are brief.<|im_end|>\n{% endif %}" + CHATML
)


@dataclass(frozen=True)
class Manner:
    """A template with the tokens that it needs. `ends` are all tokens that end a reply.

    `bos`: the token that the template, or (`bos_by_tokenizer`) only the tokenizer's own encoding of a text, puts first.
    `system`: the template takes a system message. `spaces`: the tokenizer puts a space before a text (SentencePiece).
    """

    template: str
    ends: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    unmarked: tuple[str, ...] = ()
    bos: str | None = None
    bos_by_tokenizer: bool = False
    system: bool = True
    spaces: bool = False
    options: Mapping[str, bool] = field(default_factory=dict)


MANNERS = {
    "chatml": Manner(CHATML, ("<|im_end|>",), ("<|im_start|>",)),
    "default system": Manner(DEFAULT_SYSTEM, ("<|im_end|>",), ("<|im_start|>",)),
    "qwen3": Manner(QWEN, ("<|im_end|>",), ("<|im_start|>",), ("<think>", "</think>", "<tool_call>")),
    "qwen3 quiet": Manner(
        QWEN, ("<|im_end|>",), ("<|im_start|>",), ("<think>", "</think>"), options={"enable_thinking": False}
    ),
    "gemma": Manner(GEMMA, ("<eos>", "<end_of_turn>"), ("<start_of_turn>",), bos="<bos>", system=False, spaces=True),
    "llama 3": Manner(
        LLAMA,
        ("<|end_of_text|>", "<|eot_id|>"),
        ("<|start_header_id|>", "<|end_header_id|>"),
        bos="<|begin_of_text|>",
        bos_by_tokenizer=True,
    ),
    "mistral": Manner(MISTRAL, ("</s>",), ("[INST]", "[/INST]"), bos="<s>", bos_by_tokenizer=True, spaces=True),
    "deepseek r1": Manner(
        DEEPSEEK,
        ("<｜end▁of▁sentence｜>",),
        ("<｜User｜>", "<｜Assistant｜>"),
        ("<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
        bos_by_tokenizer=True,
    ),
    "bos left to the tokenizer": Manner(CHATML, ("<|im_end|>",), ("<|im_start|>",), bos="<s>", bos_by_tokenizer=True),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `MANNERS[name]`, with its template."""
    manner = MANNERS[name]
    special = [*([manner.bos] if manner.bos else []), *manner.ends, *manner.tokens]
    bpe = Tokenizer(models.BPE(byte_fallback=manner.spaces, unk_token="<unk>" if manner.spaces else None))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if manner.spaces:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        bpe.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = sorted({chr(number) for number in range(33, 127)} | {"▁", "\n"})
        special = ["<unk>", *special, *(f"<0x{number:02X}>" for number in range(256))]
    else:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.add_tokens([AddedToken(token, special=False) for token in manner.unmarked])
    if manner.bos_by_tokenizer and manner.bos:
        single, pair = f"{manner.bos} $A", f"{manner.bos} $A $B"
        number = bpe.token_to_id(manner.bos)
        bpe.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(manner.bos, number)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=manner.bos, eos_token=manner.ends[0])
    tokenizer.chat_template = manner.template
    return tokenizer
