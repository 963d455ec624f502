"""The embedded model: what it is, what its tokenizer guarantees, and that what it was made from begins as a circuit."""

import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memfactory.data.synthetic.conversation_world import TOPICS, State
from memfactory.data.synthetic.fact_world import FILLER, MENTOR, RELATIONS, Fact, units
from memfactory.data.synthetic.facts import DocumentOptions, draw_document
from memfactory.engines.hf.engine import HfEngine
from memfactory.engines.options import HfEngineConfig
from memfactory.formats.recurrent_prompts import ANSWER_PROMPT
from memfactory.model.chat import ChatFormat
from memfactory.modules.recurrent_memory import RecurrentMemoryModule, RecurrentMemoryOptions
from memfactory.registry import DATASETS
from memfactory.text import fill
from memfactory.types import Message, Sampling, SamplingParams

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FOLDER = Path(str(resources.files("memfactory") / "assets" / "tiny"))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import tiny_tokenizer
        import tiny_weights
    finally:
        sys.path.remove(str(SCRIPTS))
    return tiny_tokenizer, tiny_weights


def test_the_model_is_a_small_qwen3_that_fits_in_the_package(model, tokenizer):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8e6
    assert model.config.model_type == "qwen3" and model.num_parameters() < 3e6
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 32768
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.config.vocab_size == len(tokenizer)


def test_the_tokenizer_encodes_any_text(tokenizer):
    for text in ("naïve 東京 \x00\t  two  spaces\r\n\n", "🙂\ud7ff", "".join(map(chr, range(1, 300)))):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_name_and_value_is_one_token_with_and_without_its_space(tokenizer, scripts):
    for word in scripts[0].world_words():
        assert len(tokenizer.encode(word)) == len(tokenizer.encode(f" {word}")) == 1


def test_a_token_is_a_word_or_a_mark_in_every_sentence_of_the_world(tokenizer):
    facts = [Fact("Ada", key, relation.values[0]) for key, relation in RELATIONS.items()]
    sentences = [*FILLER, *(fact.sentence for fact in facts), *(fact.correction for fact in facts)]
    for sentence in (*sentences, Fact("Ada", MENTOR, "Boris").sentence):
        assert len(tokenizer.encode(f" {sentence}")) == units(sentence)


def test_a_token_of_a_memory_is_a_word_a_mark_or_a_number(tokenizer):
    for key, topic in TOPICS.items():
        state = State("Ada", key, topic.values[0])
        assert len(tokenizer.encode(f" {state.sentence}")) == units(state.sentence)
    # The brackets, nineteen commas and the numbers.
    assert len(tokenizer.encode(str(list(range(1, 21))))) == 2 + 19 + 20


def test_chunks_as_long_as_sections_are_the_sections(tokenizer):
    options = DocumentOptions(chunk_words=64, corrections=0.3, two_hops=0.3)
    module = RecurrentMemoryModule(RecurrentMemoryOptions(chunk_tokens=64), ChatFormat(tokenizer))
    for index in range(20):
        document = draw_document(options, index)
        chunks = module.chunks(" ".join(document.chunks), "a task")
        assert [chunk.strip() for chunk in chunks] == list(document.chunks)


def greedy(model, tokenizer, asked):
    """The model's likeliest reply to each of `asked`."""
    engine = HfEngine(model, ChatFormat(tokenizer), HfEngineConfig())
    for index, text in enumerate(asked):
        engine.submit(index, [Message("user", text)], Sampling(32, SamplingParams(temperature=0.0)))
    replies = {}
    while len(replies) < len(asked):
        replies.update(engine.step())
    return [replies[index].text for index in range(len(asked))]


def test_it_answers_from_a_memory_that_holds_the_fact(model, tokenizer):
    documents = [draw_document(DocumentOptions(split="heldout"), index) for index in range(24)]
    prompts = []
    for document in documents:
        fact = next(s.fact for part in document.statements for s in part if s.fact.person == document.hops[0])
        prompts.append(fill(ANSWER_PROMPT, {"question": document.question, "memory": f"- {fact.sentence}"}))
    replies = greedy(model, tokenizer, prompts)
    right = sum(said == f"\\boxed{{{document.answer}}}" for said, document in zip(replies, documents, strict=True))
    # These facts were held out of training: copying them is recall, not memory of the training data.
    assert right >= 23


@pytest.mark.parametrize("step", ["answer", "cite"])
def test_it_answers_rephrased_questions_from_retrieved_memories(model, tokenizer, step):
    dataset = DATASETS.get("conversation_traces")
    options = dataset.Options(split="heldout", rows=24, steps={step: 1}, items=5, paraphrased=1.0, absent=0.0)
    shown = [[message["content"] for message in row.values["messages"]] for row in dataset(options, Path()).rows()]
    replies = greedy(model, tokenizer, [asked for asked, _ in shown])
    assert sum(said == wanted for said, (_, wanted) in zip(replies, shown, strict=True)) >= 22


def test_untrained_weights_are_the_same_for_the_same_seed(scripts):
    make = scripts[1].make_model
    first, again, other = (make(300, 2, 0, [(10, 11)], seed).state_dict() for seed in (4, 4, 5))
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["model.embed_tokens.weight"].equal(other["model.embed_tokens.weight"])


def test_the_untrained_first_layer_looks_one_to_five_places_back(scripts):
    model = scripts[1].make_model(300, 2, 0, [(10, 11)], seed=0)
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 300, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention = model(ids, output_attentions=True).attentions[0][0]
    for head in range(5):
        looked_at = attention[head, 10:].argmax(-1)
        assert (torch.arange(10, 60) - looked_at == head + 1).float().mean() > 0.9


def test_the_untrained_model_copies_after_a_repeated_prefix(scripts):
    model = scripts[1].make_model(300, 2, 0, [(10, 11)], seed=0)
    words = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:40]
    ids = torch.cat([words, words])[None]
    with torch.no_grad():
        likely = model(ids).logits[0].topk(5).indices
    # Position p of the second half follows the words that stood before p - 40 in the first; chance would be 5 in 300.
    found = [words[p + 1 - 40] in likely[p] for p in range(44, 79)]
    assert sum(found) / len(found) > 0.5
