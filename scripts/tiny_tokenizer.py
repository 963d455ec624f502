"""The embedded model's tokenizer: byte-level BPE that encodes any text, with the generated world's words whole."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from memfactory.data.synthetic.conversation_traces import ConversationTracesDataset, ConversationTracesOptions
from memfactory.data.synthetic.conversation_world import TOPICS, State
from memfactory.data.synthetic.fact_traces import DRILL_PROMPT, NOTHING, UNKNOWN
from memfactory.data.synthetic.fact_world import FILLER, MENTOR, NAMES, RELATIONS, Fact
from memfactory.formats.recurrent_prompts import ANSWER_PROMPT, UPDATE_PROMPT
from memfactory.modules.recurrent_memory import RecurrentMemoryOptions

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Qwen's split before merging, except that marks never join the letters after them, and that digits form pairs, so that
# the number of a memory is one token.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The commonest English words and word parts, so that other texts are not spelled letter by letter.
COMMON = Path(__file__).with_name("tiny_words.txt")
NUMBERS = 41
DEMONSTRATIONS = 200
WORD_WEIGHT = 8
WORLD_WEIGHT = 60


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens. Raises ValueError when a name or value is not one token."""
    bpe = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), bytes_only])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=WORD_WEIGHT,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    for word in [*world_words(), *map(str, range(NUMBERS))]:
        for text in (f" {word}", word):
            if len(tokenizer.encode(text)) != 1:
                raise ValueError(f"{text!r} is not one token of a vocabulary of {len(tokenizer)}")
    return tokenizer


def world_words() -> list[str]:
    """Every name and value of the generated world."""
    return [*NAMES, *(value for relation in RELATIONS.values() for value in relation.values)]


def twins(tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    """The ids of every word that is one token with the space before it and one without."""
    vocabulary = tokenizer.get_vocab()
    spaced = ((token, number) for token, number in vocabulary.items() if token.startswith("Ġ") and len(token) > 1)
    return sorted((number, vocabulary[token[1:]]) for token, number in spaced if token[1:] in vocabulary)


def _texts() -> list[str]:
    world = [form for word in world_words() for form in (f" {word}", word)]
    for key, relation in RELATIONS.items():
        fact = Fact(NAMES[0], key, relation.values[0])
        world += [f" {fact.sentence}", f" {fact.correction}", relation.question.format(NAMES[0])]
    world += [Fact(NAMES[0], MENTOR, NAMES[1]).sentence, f"{NOTHING.format(NAMES[0])}\n- ", f"\\boxed{{{UNKNOWN}}}"]
    for key, topic in TOPICS.items():
        state = State(NAMES[0], key, topic.values[0])
        world += [f" {state.sentence}", f" {state.utterance(changed=True)}"]
        world += [state.question(), state.question(paraphrased=True)]
    world += [form for number in range(NUMBERS) for form in (f" {number}", str(number))]
    world += [form for sentence in FILLER for form in (sentence, f" {sentence}")]
    world += [UPDATE_PROMPT, ANSWER_PROMPT, DRILL_PROMPT, RecurrentMemoryOptions().empty_memory]
    world += [CHAT_TEMPLATE, "system\n", "user\n", "assistant\n"]
    traces = ConversationTracesDataset(ConversationTracesOptions(rows=DEMONSTRATIONS), Path())
    replies = [row.values["messages"][1]["content"] for row in traces.rows()]
    world += [*traces.prompts.values()]
    words = COMMON.read_text(encoding="utf-8").split()
    return (
        world * WORLD_WEIGHT
        + replies * WORD_WEIGHT
        + [form for word in words for form in (f" {word}", word)] * WORD_WEIGHT
    )
