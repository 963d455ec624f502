"""Streamed chat completions: whole ones are replies, and the others are errors with the server's words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from hostile_server import HostileServer, answering
from memfactory.engines.base import Outcome, sample_or_errors
from memfactory.engines.chat_replies import read_reply
from memfactory.engines.openai import OpenAIEngine
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.engines.pool import TryAgain
from memfactory.errors import EngineError, RequestRefused
from memfactory.types import Message, Reply, Sampling

Serve = Callable[[bytes], HostileServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[HostileServer] = []

    def start(body: bytes) -> HostileServer:
        servers.append(HostileServer(answering(body, Content_Type="text/event-stream")))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def reply_at(server: HostileServer, **options: object) -> Outcome:
    values = {"model": "m", "base_url": server.url, "api_key_env": "", "retries": 0, "timeout": 2}
    engine = OpenAIEngine(OpenAIEngineConfig.model_validate(values | options))
    try:
        return sample_or_errors(engine, [((Message("user", "x"),), Sampling(5))])[0]
    finally:
        engine.close()


def stream(*chunks: object, end: str = "data: [DONE]\n\n") -> bytes:
    return ("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end).encode()


def chunk(finish: str | None = None, index: int = 0, **delta: object) -> dict[str, object]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


USAGE: dict[str, object] = {"choices": [], "usage": {"total_tokens": 3}}
WHOLE = {
    "in two chunks": stream(chunk(role="assistant"), chunk(content="Pa"), chunk(content="ris"), chunk("stop"), USAGE),
    "without an end mark": stream(chunk(content="Paris"), chunk("stop"), end=""),
    "without a finish reason": stream(chunk(content="Paris")),
    "with comments and names of events": b": ping\r\n\r\nevent: message\r\nid: 7\r\n"
    + stream(chunk(content="Paris")).replace(b"\n", b"\r\n"),
    "in lines of one event": b'data: {"choices": [{"delta":\ndata: {"content": "Paris"}}]}\n\ndata:[DONE]\n\n',
    "beside another choice": stream(chunk(content="Rome", index=1), chunk(content="Paris"), chunk("stop")),
    "behind a byte order mark": b"\xef\xbb\xbf" + stream(chunk(content="Paris")),
    "of content parts": stream(chunk(content=[{"type": "text", "text": "Par"}]), chunk(content=[{"text": "is"}])),
    "behind thinking": stream(chunk(reasoning_content="hm"), chunk(reasoning_content="m"), chunk(content="Paris")),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_stream_is_a_reply(case: str) -> None:
    assert read_reply(WHOLE[case], "m", 5) == Reply("Paris", "stop")


def test_a_line_separator_inside_a_text_ends_no_line() -> None:
    body = 'data: {"choices": [{"delta": {"content": "one\u2028two\u0085three"}, "finish_reason": "stop"}]}\n\n'
    assert read_reply(body.encode(), "m", 5).text == "one\u2028two\u0085three"


def test_a_stream_says_that_it_was_cut() -> None:
    body = stream(chunk(content="Paris is"), chunk("length"))
    assert read_reply(body, "m", 5) == Reply("Paris is", "length")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (stream(chunk(content="Par"), end=""), "the stream ended before the reply did"),
        (stream(chunk(content="Par"), {"error": {"message": "Overloaded"}}), "the answer is an error: Overloaded"),
        (stream(chunk(content="Par"), {"error": "out of memory"}, end=""), "the answer is an error: out of memory"),
        (b'data: {"choices": [{"delta": {"content": "Par', "not a chat completion"),
        (stream([1]), "not a chat completion"),
        (stream({"choices": [3]}), "not a chat completion"),
        (stream(chunk(content="Par"), chunk(content=["is"])), "not a chat completion"),
        (b"data: \xff\n\n", "not a chat completion"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "not a chat completion"),
        (stream(chunk("stop")), "the answer has no text"),
        (stream(chunk("tool_calls", tool_calls=[{"index": 0}])), "the answer has a tool call"),
        (stream(chunk("stop", reasoning_content="hmm")), "thinking and no content"),
    ],
)
def test_a_stream_without_a_whole_reply_is_tried_again(body: bytes, words: str) -> None:
    with pytest.raises(TryAgain, match=words):
        read_reply(body, "m", 5)


def test_a_stream_of_thinking_alone_names_the_limit() -> None:
    with pytest.raises(RequestRefused, match="at 5 tokens: all of them are thinking"):
        read_reply(stream(chunk(reasoning_content="hmm"), chunk("length")), "m", 5)


def test_a_refusal_in_a_stream_has_its_reason() -> None:
    with pytest.raises(RequestRefused, match="declines to answer: I cannot"):
        read_reply(stream(chunk(refusal="I can"), chunk(refusal="not."), chunk("stop")), "m", 5)


def test_text_that_only_begins_like_an_event_keeps_its_words() -> None:
    for body in (b"retry: in an hour", b": nothing here"):
        with pytest.raises(TryAgain, match=f"not a chat completion: '{body.decode()}'"):
            read_reply(body, "m", 5)


def test_a_long_stream_is_read_in_linear_time() -> None:
    body = stream(*[chunk(content="ab")] * 20_000)
    began = time.process_time()
    assert read_reply(body, "m", 5).text == "ab" * 20_000
    assert time.process_time() - began < 5


def test_an_endpoint_that_streams_unasked_is_read(serve: Serve) -> None:
    assert reply_at(serve(stream(chunk(content="Paris"), chunk("stop")))) == Reply("Paris", "stop")


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_is_requested_only_if_configured(wanted: bool, serve: Serve) -> None:
    server = serve(stream(chunk(content="Paris"), chunk("stop")))
    assert reply_at(server, stream=wanted) == Reply("Paris", "stop")
    sent = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
    assert sent.get("stream") is (True if wanted else None)


def test_a_stream_that_breaks_off_is_an_error(serve: Serve) -> None:
    outcome = reply_at(serve(stream(chunk(content="Par"), end="")), retries=1, backoff=0.01)
    assert isinstance(outcome, EngineError) and "gave no reply in 2 tries: the stream ended" in str(outcome)
