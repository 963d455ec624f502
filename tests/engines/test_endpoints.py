"""Endpoints that misbehave: each request ends in time and size, as a reply, an unknown or an error with their words."""

from __future__ import annotations

import gzip
import json
import re
import resource
import socket
import struct
import threading
import time
import tracemalloc
import zlib

import numpy
import pytest

from hostile_server import HostileServer, answering, dripping, read_request
from memfactory.engines.addresses import address_problem, public_address
from memfactory.engines.base import sample_or_errors
from memfactory.engines.chat_replies import read_reply
from memfactory.engines.endpoint import Endpoint
from memfactory.engines.openai import OpenAIEngine
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.engines.pool import TryAgain
from memfactory.engines.server_words import requested_wait, server_words
from memfactory.errors import ConfigError, EngineError, PromptTooLong, RequestRefused
from memfactory.memory.embedders import build_embedder
from memfactory.memory.options import OpenAIEmbedderConfig
from memfactory.redaction import REDACTED
from memfactory.types import Message, Reply, Sampling, SamplingParams

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
OK = b"HTTP/1.1 200 OK\r\n"


def completion(**message):
    finish = message.pop("finish", "stop")
    return json.dumps({"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}]})


@pytest.fixture
def serve():
    servers = []

    def start(act):
        servers.append(HostileServer(act))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def chat(server, **options):
    """What becomes of one conversation."""
    values = {"model": "m", "base_url": server.url, "api_key_env": "", "timeout": 0.3, "retries": 0, "backoff": 0.01}
    engine = OpenAIEngine(OpenAIEngineConfig.model_validate(values | options))
    try:
        return sample_or_errors(engine, [((Message("user", "x"),), Sampling(5, SamplingParams(0.0)))])[0]
    finally:
        engine.close()


def embed(server, **options):
    """What becomes of one text."""
    values = {"model": "m", "base_url": server.url, "api_key_env": "", "timeout": 0.3, "retries": 0, "backoff": 0.01}
    embedder = build_embedder(OpenAIEmbedderConfig.model_validate(values | options))
    try:
        return embedder.embed(["x"])
    except EngineError as error:
        return error


ASKING = [chat, embed]


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    "act",
    [
        dripping(b"", b"H"),
        dripping(OK, b"X: y\r\n"),
        dripping(OK + b"X: ", b"y"),
        dripping(OK + b"Content-Length: 100000\r\n\r\n", b" "),
        dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        dripping(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping(b"", b"", pause=0.05),
    ],
)
def test_an_answer_that_drips_ends_with_the_timeout(serve, ask, act):
    began = time.monotonic()
    outcome = ask(serve(act))
    assert isinstance(outcome, EngineError)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("ask", ASKING)
def test_a_name_that_is_looked_up_for_ever_ends_with_the_timeout(serve, ask, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *place, **options: over.wait(5) and [])
    began = time.monotonic()
    assert "no answer within 0.3 seconds" in str(ask(serve(answering(b""))))
    assert time.monotonic() - began < 1.0
    over.set()


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    "act",
    [
        dripping(OK + b"\r\n", b" " * 2**20, pause=0),
        dripping(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + b" " * 2**20 + b"\r\n", pause=0),
        dripping(OK + b"Content-Length: 20000000000\r\n\r\n", b" " * 2**20, pause=0),
        answering(zlib.compress(b" " * 300 * 2**20), Content_Encoding="deflate"),
        answering(gzip.compress(b" " * 300 * 2**20, 1), Content_Encoding="gzip"),
    ],
)
def test_an_endless_answer_is_not_read(serve, ask, act):
    tracemalloc.start()
    outcome = ask(serve(act), timeout=10, **({"batch_size": 1} if ask is embed else {}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(outcome, EngineError) and "MiB, which is not read" in str(outcome)
    assert peak < 150 * 2**20


def test_packed_answers_are_unpacked(serve):
    body = completion(content="fine").encode()
    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "Deflate": raw.compress(body) + raw.flush(),
    }
    for encoding, sent in packed.items():
        assert chat(serve(answering(sent, Content_Encoding=encoding))) == Reply("fine", "stop")


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    ("act", "told"),
    [
        (answering(b"garbage", Content_Encoding="gzip"), "not complete gzip"),
        (answering(b"garbage", Content_Encoding="deflate"), "not complete deflate"),
        (answering(gzip.compress(b"{}" * 5000)[:-9], Content_Encoding="gzip"), "not complete gzip"),
        (answering(b"garbage", Content_Encoding="br"), "'br'"),
        (answering(b"[" * 200_000), "completion|JSON"),
        (answering(b'{"a":' * 100_000), "completion|JSON"),
        (answering(b"\xff\xfe{}"), "completion|JSON"),
        (answering(b""), "completion|JSON"),
        (answering(b"null"), "completion|no embeddings"),
        (answering(b"NaN"), "completion|no embeddings"),
        (lambda server, connection, request: connection.sendall(b"garbage\r\n\r\n"), "BadStatusLine"),
        (lambda server, connection, request: connection.sendall(b"HTTP/1.1 abc\r\n\r\n"), "BadStatusLine"),
        (lambda server, connection, request: connection.sendall(b"HTTP/1.1 999 ?\r\n\r\n"), "HTTP 999|no embeddings"),
        (lambda server, connection, request: connection.sendall(OK + b"X" * 70000 + b"\r\n\r\n"), "LineTooLong"),
        (lambda server, connection, request: connection.sendall(OK + b"X: y\r\n" * 200 + b"\r\n"), "more than 100"),
        (lambda server, connection, request: connection.sendall(OK + b"Content-Length: 9\r\n\r\n{}"), "missing"),
        (
            lambda server, connection, request: connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}"),
            "Incomplete",
        ),
        (lambda server, connection, request: None, "the connection "),
    ],
)
def test_what_is_no_answer_is_an_error_that_says_so(serve, ask, act, told):
    outcome = ask(serve(act))
    assert isinstance(outcome, EngineError) and re.search(told, str(outcome)), outcome


def vectors(encoded):
    return b'{"data": [{"index": 0, "embedding": [' + encoded + b"]}]}"


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + vectors(b"1"),
        vectors(b"1").decode().encode("utf-16"),
        vectors(b"1").decode().encode("utf-32"),
        vectors(b'"1"'),
        vectors(b"true"),
        vectors(b"[" * 20_000 + b"]" * 20_000),
        vectors(b"1" + b"0" * 5000),
    ],
)
def test_what_is_no_vector_in_utf_8_is_no_vector(serve, body):
    assert isinstance(embed(serve(answering(body))), EngineError)


def test_vectors_of_whole_numbers_are_vectors(serve):
    assert numpy.array_equal(embed(serve(answering(vectors(b"1, 2.5e0, -3")))), [[1, 2.5, -3]])


@pytest.mark.parametrize("asked", ["9999", "inf", "Infinity", "1e400", "Fri, 31 Dec 9998 23:59:59 GMT"])
@pytest.mark.parametrize("ask", ASKING)
def test_no_server_is_waited_for_longer_than_configured(serve, ask, asked):
    server = serve(answering(b'{"error": "slow down"}', "429 Too Many Requests", Retry_After=asked))
    began = time.monotonic()
    outcome = ask(server, retries=2, max_retry_wait=0.1)
    assert "slow down" in str(outcome) and len(server.requests) == 3
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("given", ["nan", "inf", "-5", "soon", "1.5s", "", "Fri, 31 Dec 99999 23:59:59 GMT", "1e400"])
def test_a_wait_that_makes_no_sense_is_none(given):
    assert requested_wait({"retry-after": given}) is None
    assert requested_wait({"retry-after": given, "retry-after-ms": "250"}) == 0.25
    assert requested_wait({}) is None


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("ask", ASKING)
def test_a_redirect_to_another_host_is_not_followed(serve, ask, status):
    other = serve(answering(completion(content="stolen")))
    here = serve(answering(b"", status, Location=other.url + "/chat/completions?token=abcdefgh1"))
    outcome = ask(here)
    assert isinstance(outcome, EngineError) and "not followed" in str(outcome)
    assert f":{other.port}" in str(outcome) and "abcdefgh1" not in str(outcome)
    assert other.requests == []


@pytest.mark.parametrize("location", ["http://[::1", "", "http://:x/", "//", "/\x7f ü", "ftp://127.0.0.1/x"])
@pytest.mark.parametrize("ask", ASKING)
def test_a_redirect_to_nowhere_is_an_error(serve, ask, location):
    outcome = ask(serve(answering(b"", "307 Temporary", Location=location)))
    assert isinstance(outcome, EngineError)


def test_many_open_files_do_not_disturb_connections(serve):
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, HARD), HARD))
    files = [open("/dev/null") for _ in range(1100)]
    try:
        server = serve(keeping(completion(content="fine")))
        config = OpenAIEngineConfig(
            model="m", base_url=server.url, api_key_env=None, concurrency=1, retries=0, timeout=2
        )
        engine = OpenAIEngine(config)
        asked = [((Message("user", str(number)),), Sampling(5)) for number in range(3)]
        assert sample_or_errors(engine, asked) == [Reply("fine", "stop")] * 3
        assert len(server.requests) == 1
        engine.close()
    finally:
        for file in files:
            file.close()


def keeping(body):
    """An act that answers each request on a connection."""

    def act(server, connection, request):
        while request:
            connection.sendall(OK + f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
            request = read_request(connection)

    return act


def test_a_redirect_on_the_same_server_is_followed_and_ends(serve):
    def act(server, connection, request):
        following = {b"/v1/chat/completions": "/a", b"/a": "/b"}.get(request.split()[1])
        if following:
            answering(b"", "307 Temporary", Location=following)(server, connection, request)
        else:
            answering(completion(content="there"))(server, connection, request)

    assert chat(serve(act), timeout=2) == Reply("there", "stop")
    circle = serve(answering(b"", "308 Permanent", Location="/v1/chat/completions"))
    assert "redirects in circles" in str(chat(circle, timeout=2))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"error": {"message": "no such model"}}', "no such model"),
        (b'{"error": "model not found, try pulling it"}', "model not found, try pulling it"),
        (b'{"detail": "The model m does not exist"}', "The model m does not exist"),
        (b'{"detail": [{"loc": ["body", "seed"], "msg": "extra"}]}', "body.seed: extra"),
        (b'{"object": "error", "message": "does not exist", "code": 404}', "does not exist"),
        (b'[{"error": {"message": "API key not valid"}}]', "API key not valid"),
        (b'{"errors": ["one", {"message": "two"}]}', "one; two"),
        (b"Bad request: unknown field top_k", "Bad request: unknown field top_k"),
        (b"<html><title>Just a moment...</title><body>x</body></html>", "Just a moment..."),
        (b"<html><body>gone  <b>away</b></body></html>", "gone away"),
        (b'"text"', "text"),
        (b"", "Bad Request"),
        (b'{"error": {"message": "x"', '{"error": {"message": "x"'),
        (b'{"error": "bad key sk-abcdefgh1234"}', f"bad key {REDACTED}"),
    ],
)
def test_a_refusal_keeps_the_servers_words(serve, body, told):
    assert server_words(body, 400)[0] == told
    for ask in ASKING:
        outcome = ask(serve(answering(body, "400 Bad Request")))
        assert isinstance(outcome, EngineError) and f"HTTP 400: {told}" in str(outcome)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"error": "Use \'max_completion_tokens\' instead."}', "(write max_tokens_field: max_completion_tokens)"),
        (b'{"detail": [{"loc": ["body", "seed"], "msg": "extra"}]}', "(write send_seed: false)"),
    ],
)
def test_a_field_that_an_endpoint_does_not_know_has_a_way_out(serve, body, told):
    assert str(chat(serve(answering(body, "422 No")))).endswith(told)


def test_a_code_is_found_wherever_it_stands():
    assert server_words(b'{"error": {"code": "insufficient_quota", "message": "x"}}')[1] == "insufficient_quota"
    assert server_words(b'[{"error": {"type": "a"}}]')[1] == "a"
    assert server_words(b'{"code": "b", "message": "x"}')[1] == "b"
    assert server_words(b'{"code": 4}')[1] == server_words(b"x")[1] == ""


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        ({"content": [{"type": "text", "text": "Pa"}, "r", {"type": "output_text", "text": "is"}]}, "Paris"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "."}]}, {"text": "Paris"}]}, "Paris"),
        ({"content": "Paris", "reasoning_content": "hmm", "finish": None}, "Paris"),
        ({"content": "<think>\nx\n</think>\n\nParis", "finish": "eos_token"}, "<think>\nx\n</think>\n\nParis"),
        ({"content": "Par", "finish": "MAX_TOKENS"}, "Par"),
    ],
)
def test_every_shape_of_content_is_a_reply(message, reply):
    found = read_reply(completion(**message).encode(), "m", 5)
    assert found == Reply(reply, "length" if message.get("finish") == "MAX_TOKENS" else "stop")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"content": None, "refusal": "I can't help with that."}, "declines to answer: I can't help with that"),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "declines to answer: no"),
        ({"content": "Par", "finish": "content_filter"}, "content filter of m cut the reply off"),
        ({"content": None, "finish": "SAFETY"}, r"content filter of m cut the reply off \(safety"),
        ({"content": "", "reasoning_content": "hmm", "finish": "length"}, "at 5 tokens: all of them are thinking"),
        ({"content": "", "finish": "length"}, "at 5 tokens: none is content"),
    ],
)
def test_a_refusal_is_an_unknown_with_its_reason(serve, message, told):
    with pytest.raises(RequestRefused, match=told):
        read_reply(completion(**message).encode(), "m", 5)
    server = serve(answering(completion(**message)))
    assert isinstance(chat(server, retries=2), RequestRefused)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"content": ""}, "has no text"),
        ({"content": " \n"}, "has no text"),
        ({}, "has no text"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "a tool call"),
        ({"content": "", "reasoning_content": "hmm"}, "thinking and no content"),
        ({"content": "", "reasoning": "hmm"}, "thinking and no content"),
    ],
)
def test_an_empty_reply_is_tried_again_and_then_unknown(serve, message, told):
    with pytest.raises(TryAgain, match=told):
        read_reply(completion(**message).encode(), "m", 5)
    server = serve(answering(completion(**message)))
    outcome = chat(server, retries=1)
    assert isinstance(outcome, RequestRefused) and told in str(outcome)
    assert len(server.requests) == 2


def test_an_error_under_status_200_is_tried_again(serve):
    server = serve(answering(b'{"error": {"message": "Provider returned error", "code": 502}}'))
    outcome = chat(server, retries=1)
    assert "the answer is an error: Provider returned error" in str(outcome) and len(server.requests) == 2


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("localhost:8000", "begins with http"),
        ("ftp://host/v1", "begins with http"),
        ("http://127.0.0.1:abc/v1", "abc"),
        ("http://127.0.0.1:99999/v1", "port|Port"),
        ("http://[::1/v1", "not an address"),
        ("http:///v1", "names no host"),
        ("http://host:0/v1", "port 0"),
        ("http://host/v1 \n", "white space"),
        ("http://" + "a" * 70 + "/v1", "looked up"),
        ("http://host/v1?x=1", "without"),
        ("http://host/ü/v1", "'/%C3%BC/v1'"),
    ],
)
def test_an_address_that_is_none_is_told(address, told):
    problem = address_problem(address)
    assert problem and re.search(told, problem)
    for build in (
        lambda: OpenAIEngine(OpenAIEngineConfig(model="m", base_url=address, api_key_env=None)),
        lambda: build_embedder(OpenAIEmbedderConfig(model="m", base_url=address, api_key_env=None)),
    ):
        with pytest.raises(ConfigError, match="base_url: "):
            build()


def test_addresses_that_are_fine_pass():
    for address in ("http://localhost:8000/v1", "https://host/", "http://[::1]:80/v1", "https://bücher.example/v1"):
        assert address_problem(address) is None
    assert public_address("https://a:b@host:8/v1?x#y") == "https://host:8/v1"


def test_connections_are_reused_and_reopened_after_the_server_closed(serve):
    def act(server, connection, request):
        body = completion(content="fine").encode()
        connection.sendall(OK + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.requests.append(read_request(connection))
        connection.sendall(OK + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)

    server = serve(act)
    config = OpenAIEngineConfig(
        model="m", base_url=server.url, api_key_env=None, concurrency=1, retries=0, timeout=2, temperature=0
    )
    engine = OpenAIEngine(config)
    for number in range(5):
        assert sample_or_errors(engine, [((Message("user", str(number)),), Sampling(5))]) == [Reply("fine", "stop")]
        time.sleep(0.02)
    assert len([request for request in server.requests if request]) == 5
    engine.close()


def test_a_proxy_is_used_where_the_environment_names_one(serve, monkeypatch):
    proxy = serve(answering(completion(content="through the proxy")))
    monkeypatch.setenv("http_proxy", f"http://me:pass@127.0.0.1:{proxy.port}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")

    class Far:
        url = "http://far.invalid/v1"

    assert chat(Far) == Reply("through the proxy", "stop")
    head = proxy.requests[0].partition(b"\r\n\r\n")[0]
    assert head.startswith(b"POST http://far.invalid/v1/chat/completions HTTP/1.1")
    assert b"Host: far.invalid\r\n" in head + b"\r\n" and b"Proxy-Authorization: Basic" in head


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "This model's maximum context length is 8 tokens. However, you requested 9."}),
        (400, {"message": "Too many tokens.", "code": "context_length_exceeded"}),
        (400, {"message": "The input (9 tokens) is longer than the model's context length (8 tokens)."}),
        (400, {"message": "request (9 tokens) exceeds the available context size (8 tokens), try increasing it"}),
        (500, {"message": "too large", "code": 500, "type": "exceed_context_size_error"}),
        (400, {"message": "prompt is too long: 9 tokens > 8 maximum"}),
    ],
)
def test_a_prompt_beyond_the_context_is_known_by_any_servers_words(serve, status, error):
    server = serve(answering(json.dumps({"error": error}), status=f"{status} No"))
    assert isinstance(chat(server), PromptTooLong)


def reset(server, connection, request):
    """Close the connection with a reset: unread bytes stay, and closing waits for nothing."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_request_with_an_effect_is_not_sent_again_after_a_reset(serve):
    once, again = serve(reset), serve(reset)
    with pytest.raises(TryAgain, match="the connection broke off"):
        Endpoint(once.url, name="a", key=None, timeout=2).post_once("/take", {}, 2)
    with pytest.raises(TryAgain, match="the connection broke off"):
        Endpoint(again.url, name="a", key=None, timeout=2).post("/look", {})
    # A first request and one after each of the two pauses.
    assert (len(once.requests), len(again.requests)) == (1, 3)
