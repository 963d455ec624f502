"""What turns texts into vectors: hashed words, encoders, endpoints; and the cache that keeps their vectors."""

import logging
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy
import pytest

from local_server import JsonServer
from memfactory.errors import ConfigError, EngineError
from memfactory.memory.bank import BankSource
from memfactory.memory.embedder import VectorStore
from memfactory.memory.embedders import build_embedder
from memfactory.memory.lexical_embedder import LexicalEmbedder
from memfactory.memory.options import HfEmbedderConfig, LexicalEmbedderConfig, MemoryConfig, OpenAIEmbedderConfig
from memfactory.memory.vector_cache import FILE, CachedEmbedder
from memfactory.types import MemoryItem


class Counting:
    """Gives each text the vector (length, number of a's, 1) and notes what it was asked."""

    identity = "counting"

    def __init__(self, identity="counting", factor=1.0):
        self.identity = identity
        self.factor = factor
        self.asked = []

    def embed(self, texts):
        self.asked += texts
        rows = [(len(text), text.count("a"), 1) for text in texts]
        with numpy.errstate(invalid="ignore"):
            return self.factor * numpy.array(rows, numpy.float32).reshape(len(texts), 3)

    def embed_queries(self, texts):
        return -self.embed(texts)


def test_lexical_vectors_are_the_same_on_every_machine():
    embedder = LexicalEmbedder(LexicalEmbedderConfig(dimensions=16, ngrams=()))
    # blake2b("w:cat") in 8 bytes is 0xf89e2de2a3f5cdc4. Its digits add up to 151, so its place is 151 modulo 15 = 1;
    # its first bit says plus. The last number of a text is the root of the 4 words that it is longer by.
    assert embedder.embed(["cat"])[0].tolist() == [0.0, 1.0, *[0.0] * 13, 2.0]
    assert embedder.embed_queries(["cat"])[0].tolist() == [0.0, 1.0, *[0.0] * 14]


def test_lexical_ngrams_count_together_what_the_options_say():
    config = LexicalEmbedderConfig(dimensions=2**20, ngrams=(3,), ngram_weight=0.5)
    vector = LexicalEmbedder(config).embed_queries(["cat cat"])[0]
    # <cat> has the n-grams "<ca", "cat", "at>", which count 0.5 / sqrt(3) each; all is said twice: 1 + ln 2.
    twice = 1 + numpy.log(2)
    expected = sorted([twice, *[twice * 0.5 / numpy.sqrt(3)] * 3])
    assert sorted(numpy.abs(vector[vector != 0])) == pytest.approx(expected, rel=1e-6)


def test_padding_keeps_short_texts_from_matching_for_being_short():
    items = [MemoryItem("short", "", "dog!"), MemoryItem("long", "", "the dog barks at the cat")]
    scores = {}
    for padding in (0.0, 8.0):
        config = LexicalEmbedderConfig(dimensions=4096, ngrams=(), padding=padding)
        found = BankSource(MemoryConfig(embedder=config)).open(items).search("Did the dog see a cat?", 2)
        scores[padding] = {one.item.id: one.score for one in found}
    # The question has three words: of the short text it has one of one, of the long one two of three.
    assert scores[0.0] == pytest.approx({"short": 1 / 3**0.5, "long": 2 / 3}, abs=1e-6)
    assert scores[8.0] == pytest.approx({"short": 1 / (3 * 9) ** 0.5, "long": 2 / (3 * 11) ** 0.5}, abs=1e-6)


def test_lexical_vectors_do_not_depend_on_what_else_is_embedded():
    embedder = build_embedder(LexicalEmbedderConfig())
    texts = ["Ann has a dog", "", "naïve 名前", "\ud800 half a pair", "Ann has a dog"]
    together = embedder.embed(texts)
    for text, vector in zip(texts, together):
        assert (LexicalEmbedder(LexicalEmbedderConfig()).embed([text])[0] == vector).all()
    assert not together[1].any()


def test_each_text_is_embedded_once_and_blank_ones_never():
    embedder = Counting()
    store = VectorStore(embedder.embed)
    first = store.vectors(["banana", " ", "kiwi", "banana"])
    second = store.vectors(["kiwi", "fig", "", "banana"])
    assert embedder.asked == ["banana", "kiwi", "fig"]
    # (6, 3, 1) and (4, 0, 1) at length 1.
    assert first[0] == pytest.approx(numpy.array([6, 3, 1]) / numpy.sqrt(46))
    assert first[2] == pytest.approx(numpy.array([4, 0, 1]) / numpy.sqrt(17))
    assert (first[0] == first[3]).all() and (first[0] == second[3]).all()
    assert not first[1].any() and not second[2].any()


def test_vectors_of_nothing_have_the_right_length():
    store = VectorStore(Counting().embed)
    assert store.vectors([]).shape == (0, 3)
    assert store.vectors([""]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("wrong", [numpy.nan, numpy.inf])
def test_a_vector_that_is_not_finite_is_an_error_and_not_kept(wrong):
    embedder = Counting(factor=wrong)
    store = VectorStore(embedder.embed)
    with pytest.raises(EngineError, match="not finite"):
        store.vectors(["kiwi"])
    embedder.factor = 1.0
    assert numpy.isfinite(store.vectors(["kiwi"])).all()


def test_a_change_of_length_is_an_error():
    shapes = iter([(1, 3), (1, 4)])
    store = VectorStore(lambda texts: numpy.ones(next(shapes), numpy.float32))
    store.vectors(["one"])
    with pytest.raises(EngineError, match=r"vectors of shape \(1, 4\) where \(1, 3\) was expected"):
        store.vectors(["two"])


def test_forks_and_banks_of_one_source_embed_each_text_once():
    source = BankSource()
    embedder = Counting()
    source._texts, source._queries = VectorStore(embedder.embed), VectorStore(embedder.embed_queries)
    items = [MemoryItem(f"i{number}", "", "a" * number) for number in range(1, 9)]
    bank = source.open(items)
    for fork in [bank.fork(), bank.fork(), source.open(items), source.open(items[:3])]:
        fork.update("i1", "banana")
        fork.search("kiwi", 3)
    assert sorted(embedder.asked) == sorted([*("a" * number for number in range(1, 9)), "banana", "kiwi"])


# Encoders


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small random encoder with a tokenizer of single letters."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh: "])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


def hidden_states(folder, text):
    """The encoder's own token vectors of one text alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(**encoded).last_hidden_state[0].numpy()


TEXTS = ["abc", "a", "hhhhhhhhgfedcba", "bad cafe"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_an_encoder_pools_each_text_as_if_it_were_alone(encoder, pooling):
    config = HfEmbedderConfig(path=str(encoder), pooling=pooling, batch_size=3, device="cpu")
    vectors = build_embedder(config).embed(TEXTS)
    for text, vector in zip(TEXTS, vectors):
        states = hidden_states(encoder, text)
        expected = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[pooling]
        assert vector == pytest.approx(expected, abs=1e-5)


def test_an_encoder_puts_its_prefixes_before_texts_and_questions(encoder):
    plain = build_embedder(HfEmbedderConfig(path=str(encoder), device="cpu"))
    prefixed = build_embedder(HfEmbedderConfig(path=str(encoder), query_prefix="g: ", text_prefix="h: ", device="cpu"))
    assert prefixed.embed(["abc"]) == pytest.approx(plain.embed(["h: abc"]), abs=1e-6)
    assert prefixed.embed_queries(["abc"]) == pytest.approx(plain.embed(["g: abc"]), abs=1e-6)
    assert prefixed.identity != plain.identity


def test_an_encoder_cuts_long_texts(encoder):
    # [CLS] a b c [SEP]: five tokens are left of any longer text.
    embedder = build_embedder(HfEmbedderConfig(path=str(encoder), max_tokens=5, device="cpu"))
    assert embedder.embed(["abcdefgh" * 50]) == pytest.approx(embedder.embed(["abc"]), abs=1e-6)


def test_an_encoder_says_once_that_it_cuts_texts(encoder, caplog):
    embedder = build_embedder(HfEmbedderConfig(path=str(encoder), max_tokens=5, device="cpu"))
    embedder.embed(["a", "abc"])
    assert caplog.messages == []
    # [CLS], eight letters, [SEP].
    embedder.embed(["abcdefgh", "a"])
    embedder.embed(["abcdefgh"])
    (told,) = caplog.messages
    assert "memory.embedder.max_tokens is 5, and 1 of the texts to embed are longer, the longest 10 tokens" in told


def test_an_encoder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"memory\.embedder\.path: no encoder can be loaded from"):
        build_embedder(HfEmbedderConfig(path=str(tmp_path), device="cpu"))


def test_a_bank_finds_with_an_encoder(encoder):
    source = BankSource(MemoryConfig(embedder=HfEmbedderConfig(path=str(encoder), device="cpu")))
    bank = source.open([MemoryItem(text, "", text) for text in TEXTS])
    assert bank.search("hhhhhhhhgfedcba", 1)[0].item.id == "hhhhhhhhgfedcba"
    assert bank.embed_query("abc").shape == (16,)


# Endpoints


class EmbeddingServer(JsonServer):
    """Answers each request with what `reply(request)` gives: rows, an HTTP status, or raw bytes."""

    def __init__(self, reply):
        super().__init__(headers=[("retry-after-ms", "1")])
        self.reply = reply
        self.requests = []

    def answer(self, path, body):
        self.requests.append(body)
        said = self.reply(body)
        return said if isinstance(said, int | bytes) else {"data": said}


def rows_of(request):
    """An embedding for each text, in the wrong order: the index counts."""
    rows = [{"index": place, "embedding": [len(text), 1.0]} for place, text in enumerate(request["input"])]
    return rows[::-1]


@pytest.fixture
def serve():
    servers = []

    def start(reply, **options):
        servers.append(EmbeddingServer(reply))
        config = OpenAIEmbedderConfig(model="small", base_url=servers[-1].url, api_key_env=None, **options)
        return servers[-1], build_embedder(config)

    yield start
    for server in servers:
        server.close()


def test_an_endpoint_is_asked_in_batches_and_its_indexes_count(serve):
    server, embedder = serve(rows_of, batch_size=2)
    assert embedder.embed(["one", "three", "sixsix"]).tolist() == [[3, 1], [5, 1], [6, 1]]
    assert [request["input"] for request in server.requests] == [["one", "three"], ["sixsix"]]
    assert {(request["model"], request["encoding_format"]) for request in server.requests} == {("small", "float")}


def test_an_endpoint_is_tried_again_after_rate_limits_and_server_errors(serve):
    said = iter([429, 503, None])
    server, embedder = serve(lambda request: next(said) or rows_of(request), retries=2)
    assert embedder.embed(["one"]).tolist() == [[3, 1]]
    assert len(server.requests) == 3


def test_an_outage_of_an_endpoint_is_an_error_that_says_what_happened(serve):
    server, embedder = serve(lambda request: 500, retries=1)
    with pytest.raises(EngineError, match=r"'small' at http://127.* gave no embeddings: HTTP 500"):
        embedder.embed(["one"])
    assert len(server.requests) == 2
    server.close()
    with pytest.raises(EngineError, match="the connection failed"):
        embedder.embed(["one"])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"<html>", "is not JSON"),
        (b"[]", "gave no embeddings for 2"),
        (b'{"data": null}', "gave no embeddings for 2"),
        (b'{"data": [{"index": 0, "embedding": [1]}]}', "gave no embeddings for 2"),
        (b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": null}]}', "gave no embeddings for 2"),
        (b'{"data": [{"index": 0, "embedding": ["x"]}, {"index": 1, "embedding": [1]}]}', "gave no embeddings for 2"),
        (
            b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}',
            r"different lengths: \[1, 2\]",
        ),
    ],
)
def test_an_answer_that_is_no_embedding_is_an_error(serve, said, told):
    _, embedder = serve(lambda request: said, retries=0)
    with pytest.raises(EngineError, match=told):
        embedder.embed(["one", "two"])


def test_an_endpoint_that_gives_nan_is_an_error_of_the_bank(serve):
    server, _ = serve(lambda request: b'{"data": [{"index": 0, "embedding": [NaN, 1]}]}')
    config = OpenAIEmbedderConfig(model="small", base_url=server.url, api_key_env=None, retries=0)
    bank = BankSource(MemoryConfig(embedder=config)).open([MemoryItem("i", "", "dog")])
    with pytest.raises(EngineError, match="not finite"):
        bank.search("dog", 1)


def test_an_endpoint_needs_its_key_and_an_address(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="environment variable SOME_KEY, which is not set"):
        build_embedder(OpenAIEmbedderConfig(model="small", api_key_env="SOME_KEY"))
    with pytest.raises(ConfigError, match="'localhost' is not an address"):
        build_embedder(OpenAIEmbedderConfig(model="small", api_key_env=None, base_url="localhost"))


# The cache


def test_the_cache_asks_only_for_what_it_does_not_hold(tmp_path):
    embedder = Counting()
    first = CachedEmbedder(embedder, tmp_path).embed(["banana", "kiwi", "banana"])
    second = CachedEmbedder(embedder, tmp_path).embed(["kiwi", "fig", "banana"])
    assert embedder.asked == ["banana", "kiwi", "fig"]
    assert first.tolist() == [[6, 3, 1], [4, 0, 1], [6, 3, 1]]
    assert second.tolist() == [[4, 0, 1], [3, 0, 1], [6, 3, 1]]


def test_the_cache_keeps_embedders_and_questions_apart(tmp_path):
    one, other = Counting("one"), Counting("other", factor=2.0)
    assert CachedEmbedder(one, tmp_path).embed(["kiwi"]).tolist() == [[4, 0, 1]]
    assert CachedEmbedder(other, tmp_path).embed(["kiwi"]).tolist() == [[8, 0, 2]]
    assert CachedEmbedder(one, tmp_path).embed_queries(["kiwi"]).tolist() == [[-4, 0, -1]]
    assert CachedEmbedder(one, tmp_path).embed(["kiwi"]).tolist() == [[4, 0, 1]]


def test_what_is_not_finite_is_not_kept(tmp_path):
    CachedEmbedder(Counting(factor=numpy.nan), tmp_path).embed(["kiwi"])
    assert CachedEmbedder(Counting(), tmp_path).embed(["kiwi"]).tolist() == [[4, 0, 1]]


def test_a_vector_that_was_damaged_is_computed_anew(tmp_path):
    CachedEmbedder(Counting(), tmp_path).embed(["kiwi", "fig"])
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("UPDATE vectors SET vector = zeroblob(12)")
    file.close()
    embedder = Counting()
    assert CachedEmbedder(embedder, tmp_path).embed(["kiwi", "fig"]).tolist() == [[4, 0, 1], [3, 0, 1]]
    assert embedder.asked == ["kiwi", "fig"]
    assert CachedEmbedder(embedder, tmp_path).embed(["kiwi"]).tolist() == [[4, 0, 1]]
    assert embedder.asked == ["kiwi", "fig"]


def test_a_file_that_was_damaged_is_begun_anew_with_a_warning(tmp_path, caplog):
    texts = [f"text {number}" for number in range(500)]
    expected = CachedEmbedder(Counting(), tmp_path).embed(texts).tolist()
    for damage in (b"this is not a database" * 100, None):
        content = bytearray((tmp_path / FILE).read_bytes())
        if damage is None:
            # Every page but the first.
            content[4096:] = numpy.random.default_rng(0).bytes(len(content) - 4096)
        (tmp_path / FILE).write_bytes(damage or bytes(content))
        with caplog.at_level(logging.WARNING, "memfactory"):
            assert CachedEmbedder(Counting(), tmp_path).embed(texts).tolist() == expected
        assert "is damaged and starts anew" in caplog.text
        caplog.clear()
        again = Counting()
        assert CachedEmbedder(again, tmp_path).embed(texts).tolist() == expected
        assert again.asked == []


def test_a_cache_that_cannot_be_used_is_left_alone_with_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "memfactory"):
        assert CachedEmbedder(Counting(), tmp_path / "file").embed(["kiwi"]).tolist() == [[4, 0, 1]]
    assert "cannot be used" in caplog.text


def test_vectors_of_another_length_are_computed_anew(tmp_path, caplog):
    CachedEmbedder(Counting(), tmp_path).embed(["kiwi"])
    shorter = Counting()
    shorter.embed = lambda texts: numpy.ones((len(texts), 2), numpy.float32)
    CachedEmbedder(shorter, tmp_path).embed(["fig"])
    assert CachedEmbedder(Counting(), tmp_path).embed(["kiwi", "fig"]).tolist() == [[4, 0, 1], [3, 0, 1]]
    assert "different lengths" in caplog.text


def fill(folder, begin, rounds):
    embedder = CachedEmbedder(Counting(), folder)
    for number in range(rounds):
        texts = [f"text {begin + number} {place}" for place in range(20)]
        assert embedder.embed(texts).tolist() == Counting().embed(texts).tolist()


def test_processes_share_the_cache(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill, args=(tmp_path, begin, 20)) for begin in (0, 10)]
    for worker in workers:
        worker.start()
    fill(tmp_path, 5, 20)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    embedder = Counting()
    CachedEmbedder(embedder, tmp_path).embed([f"text {number} {place}" for number in range(30) for place in range(20)])
    assert embedder.asked == []


def test_a_kill_while_the_cache_is_written_leaves_right_vectors(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_memory_embedders import fill\n"
        "print('begun', flush=True)\n"
        "fill(Path(sys.argv[2]), 0, 100000)\n"
    )
    words = [sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    embedder = Counting()
    texts = [f"text {number} {place}" for number in range(3) for place in range(20)]
    assert CachedEmbedder(embedder, tmp_path).embed(texts).tolist() == Counting().embed(texts).tolist()
    # What was committed before the kill is there.
    assert len(embedder.asked) < len(texts)


def test_a_run_keeps_vectors_where_the_config_says(tmp_path, serve):
    server, _ = serve(rows_of)
    config = OpenAIEmbedderConfig(model="small", base_url=server.url, api_key_env=None)
    for _ in range(2):
        bank = BankSource(MemoryConfig(embedder=config, cache=str(tmp_path))).open([MemoryItem("i", "", "dog")])
        assert bank.search("cat", 1)[0].score == pytest.approx(1.0)
    assert len(server.requests) == 2
    BankSource(MemoryConfig(cache=str(tmp_path / "lexical"))).open([MemoryItem("i", "", "dog")]).search("dog", 1)
    assert not (tmp_path / "lexical").exists()
