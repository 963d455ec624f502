"""The OpenAI-compatible engine against a real HTTP server that misbehaves in every way that endpoints do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from local_server import LocalServer
from memfactory.engines.base import sample, sample_or_errors
from memfactory.engines.openai import OpenAIEngine
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.engines.scripted import ScriptedEngine
from memfactory.errors import ConfigError, EngineError
from memfactory.text import after_thinking
from memfactory.types import Message, Reply, Sampling, SamplingParams

Answer = tuple[int, str, dict[str, str]]


def completion(content: object = "fine", finish: str = "stop") -> Answer:
    body = {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish}]}
    return 200, json.dumps(body), {}


def error(status: int, words: str, **headers: str) -> Answer:
    return status, json.dumps({"error": {"message": words}}), {k.replace("_", "-"): v for k, v in headers.items()}


class Endpoint(LocalServer):
    """A chat endpoint on this machine; `answer(request, number)` says what the n-th request gets."""

    def __init__(self) -> None:
        self.answer: Callable[[dict, int], Answer] = lambda request, number: completion()
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.drip = 0.0
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.lock:
                    endpoint.requests.append(request)
                    endpoint.times.append(time.monotonic())
                    number = len(endpoint.requests)
                    endpoint.under_way += 1
                    endpoint.most_under_way = max(endpoint.most_under_way, endpoint.under_way)
                try:
                    status, body, headers = endpoint.answer(request, number)
                finally:
                    # Before the reply is out: with it in hand the client may ask again at once.
                    with endpoint.lock:
                        endpoint.under_way -= 1
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.respond(status, body.encode(), headers)

            def respond(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                if status == 0:
                    self.connection.close()
                    return
                self.send_response(status)
                self.send_header("Content-Type", headers.pop("type", "application/json"))
                self.send_header("Content-Length", headers.pop("length", str(len(body))))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for start in range(0, len(body), 8 if endpoint.drip else len(body) or 1):
                    self.wfile.write(body[start : start + (8 if endpoint.drip else len(body))])
                    self.wfile.flush()
                    time.sleep(endpoint.drip)

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(Handler)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    yield served
    served.close()


def engine_at(url: str, **options: object) -> OpenAIEngine:
    values = {"model": "judge", "base_url": url, "api_key_env": "", "timeout": 0.3, "retries": 2, "backoff": 0.01}
    return OpenAIEngine(OpenAIEngineConfig.model_validate(values | options))


def asks(count: int) -> list[tuple[tuple[Message, ...], Sampling]]:
    return [((Message("user", str(index)),), Sampling(5, SamplingParams(0.5), seed=index)) for index in range(count)]


def last_said(request: dict) -> str:
    return request["messages"][-1]["content"]


def test_replies_come_back_to_the_conversations_they_belong_to(endpoint):
    def answer(request: dict, number: int) -> Answer:
        time.sleep(0.05 if last_said(request) in "02" else 0)
        return completion("re " + last_said(request), "length" if last_said(request) == "3" else "stop")

    endpoint.answer = answer
    engine = engine_at(endpoint.url)
    assert sample(engine, asks(6)) == [Reply(f"re {i}", "length" if i == 3 else "stop") for i in range(6)]
    assert engine.pending() == 0 and engine.step() == []
    assert not engine.gives_tokens


def test_half_a_surrogate_pair_in_a_reply_is_replaced(endpoint):
    endpoint.answer = lambda request, number: completion("half \ud83d of \ud83d\ude00")
    assert sample(engine_at(endpoint.url), asks(1)) == [Reply("half \ufffd of \U0001f600", "stop")]


def test_the_request_says_exactly_what_the_sampling_says(endpoint):
    messages = (Message("system", "be brief"), Message("user", "hello"))
    engine = engine_at(endpoint.url, max_tokens_field="max_completion_tokens")
    sample(engine, [(messages, Sampling(7, SamplingParams(0.25, top_p=0.5, top_k=3), stop=("\n",), seed=2**31 + 5))])
    sample(engine_at(endpoint.url, send_seed=False), [(messages[1:], Sampling(7))])
    assert endpoint.requests == [
        {
            "model": "judge",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
            "temperature": 0.25,
            "max_completion_tokens": 7,
            "top_p": 0.5,
            "top_k": 3,
            "stop": ["\n"],
            "seed": 5,
        },
        {"model": "judge", "messages": [{"role": "user", "content": "hello"}], "temperature": 1.0, "max_tokens": 7},
    ]


def test_at_most_as_many_requests_are_under_way_as_configured(endpoint):
    def answer(request: dict, number: int) -> Answer:
        time.sleep(0.02)
        return completion()

    endpoint.answer = answer
    sample(engine_at(endpoint.url, concurrency=3), asks(12))
    assert endpoint.most_under_way == 3


@pytest.mark.parametrize(
    "trouble",
    [
        error(500, "boom"),
        error(503, "overloaded"),
        error(429, "slow down"),
        error(408, "late"),
        (0, "", {}),
        (200, "not json at all", {}),
        (200, "<html>maintenance</html>", {"type": "text/html"}),
        (200, "", {}),
        (200, "[]", {}),
        (200, '"text"', {}),
        (200, '{"choices": []}', {}),
        (200, '{"choices": null}', {}),
        (200, '{"choices": [{"message": null}]}', {}),
        (200, '{"choices": [{"message": {"content": [1]}}]}', {}),
        (200, '{"choices": [{"mess', {"length": "5000"}),
        completion(None),
    ],
)
def test_passing_trouble_is_tried_again(endpoint, trouble):
    endpoint.answer = lambda request, number: (trouble[0], trouble[1], dict(trouble[2])) if number < 3 else completion()
    assert sample(engine_at(endpoint.url), asks(1)) == [Reply("fine", "stop")]
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (error(500, "boom"), "gave no reply in 3 tries: HTTP 500: .*boom"),
        ((0, "", {}), "gave no reply in 3 tries: the connection "),
        ((200, "maintenance", {}), "gave no reply in 3 tries: the answer is not a chat completion: 'maintenance'"),
        (completion(None), "gave no reply in 3 tries: the answer has no text"),
        ((200, "[" * 100_000, {}), r"gave no reply in 3 tries: the answer is not a chat completion: '\[\[\["),
    ],
)
def test_lasting_trouble_is_an_error_and_never_a_made_up_reply(endpoint, trouble, words):
    endpoint.answer = lambda request, number: (trouble[0], trouble[1], dict(trouble[2]))
    with pytest.raises(EngineError, match=words) as caught:
        sample(engine_at(endpoint.url), asks(1))
    assert "'judge' at http://127.0.0.1" in str(caught.value)
    assert len(endpoint.requests) == 3


def test_an_endpoint_that_is_down_is_an_error_that_says_so():
    with pytest.raises(EngineError, match=r"gave no reply in 3 tries: the connection failed \(.*refused"):
        sample(engine_at("http://127.0.0.1:9/v1"), asks(1))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_fails_at_once_with_the_servers_words(endpoint, status):
    endpoint.answer = lambda request, number: error(status, "no such model: judge")
    with pytest.raises(EngineError, match=f"refuses the request with HTTP {status}: .*no such model: judge"):
        sample(engine_at(endpoint.url), asks(1))
    assert len(endpoint.requests) == 1


def test_a_spent_quota_fails_at_once(endpoint):
    body = json.dumps({"error": {"message": "you are out of credit", "code": "insufficient_quota"}})
    endpoint.answer = lambda request, number: (429, body, {})
    with pytest.raises(EngineError, match="out of credit"):
        sample(engine_at(endpoint.url), asks(1))
    assert len(endpoint.requests) == 1


def test_a_reply_cut_by_a_content_filter_is_an_error(endpoint):
    endpoint.answer = lambda request, number: completion("so far", "content_filter")
    with pytest.raises(EngineError, match="content filter"):
        sample(engine_at(endpoint.url), asks(1))


def test_a_slow_endpoint_runs_into_the_timeout_and_never_hangs(endpoint):
    def answer(request: dict, number: int) -> Answer:
        time.sleep(0.6)
        return completion()

    endpoint.answer = answer
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"gave no reply in 2 tries: no answer within 0\.1 seconds"):
        sample(engine_at(endpoint.url, timeout=0.1, retries=1), asks(1))
    assert time.monotonic() - started < 0.5


def test_an_endpoint_that_drips_runs_into_the_timeout_too(endpoint):
    endpoint.drip = 0.3
    started = time.monotonic()
    # Long enough for the answer to begin on a busy machine; the whole would take several seconds.
    with pytest.raises(EngineError, match="1 try: the answer was not complete after 1 seconds"):
        sample(engine_at(endpoint.url, timeout=1, retries=0), asks(1))
    assert time.monotonic() - started < 1.5


def test_a_rate_limit_is_waited_out_as_long_as_the_server_asks(endpoint):
    endpoint.answer = lambda request, number: error(429, "wait", Retry_After="0.25") if number == 1 else completion()
    sample(engine_at(endpoint.url), asks(1))
    assert 0.25 <= endpoint.times[1] - endpoint.times[0] < 0.5


def test_waiting_doubles_with_each_try(endpoint):
    endpoint.answer = lambda request, number: error(500, "boom")
    with pytest.raises(EngineError):
        sample(engine_at(endpoint.url, retries=3, backoff=0.04), asks(1))
    pauses = [b - a for a, b in zip(endpoint.times, endpoint.times[1:])]
    # 0.04 x 2^n, each times a jitter between 0.5 and 1.5, and the request itself.
    for pause, base in zip(pauses, (0.04, 0.08, 0.16)):
        assert base * 0.5 <= pause < base * 1.5 + 0.1


def test_one_failing_request_does_not_lose_the_others(endpoint):
    endpoint.answer = lambda request, number: (
        error(400, "bad one") if last_said(request) == "2" else completion("re " + last_said(request))
    )
    engine = engine_at(endpoint.url)
    for index, (messages, sampling) in enumerate(asks(5)):
        engine.submit(index, messages, sampling)
    outcomes: dict = {}
    while engine.pending():
        outcomes.update(engine.step())
    failure = outcomes.pop(2)
    assert isinstance(failure, EngineError) and "bad one" in str(failure)
    assert outcomes == {number: Reply(f"re {number}", "stop") for number in (0, 1, 3, 4)}


def test_replies_are_returned_before_errors(endpoint):
    endpoint.answer = lambda request, number: error(400, "bad one") if last_said(request) == "0" else completion()
    engine = engine_at(endpoint.url, concurrency=1)
    for index, (messages, sampling) in enumerate(asks(3)):
        engine.submit(index, messages, sampling)
    while len(endpoint.requests) < 3 or endpoint.under_way:
        time.sleep(0.005)
    time.sleep(0.05)
    assert [key for key, _ in engine.step()] == [1, 2, 0]


def test_try_sample_gives_each_outcome_and_leaves_pending_work_alone(endpoint):
    endpoint.answer = lambda request, number: (
        error(400, "bad one") if last_said(request) == "1" else completion("re " + last_said(request))
    )
    engine = engine_at(endpoint.url)
    engine.submit("mine", *asks(8)[7])
    outcomes = sample_or_errors(engine, asks(3))
    assert outcomes[0] == Reply("re 0", "stop") and outcomes[2] == Reply("re 2", "stop")
    assert isinstance(outcomes[1], EngineError) and "bad one" in str(outcomes[1])
    assert engine.pending() == 1
    ready = []
    while engine.pending():
        ready += engine.step()
    assert ready == [("mine", Reply("re 7", "stop"))]


def test_cancelled_work_is_forgotten_and_the_engine_goes_on(endpoint):
    def answer(request: dict, number: int) -> Answer:
        if last_said(request) == "0":
            time.sleep(0.2)
        return completion("re " + last_said(request))

    endpoint.answer = answer
    engine = engine_at(endpoint.url, concurrency=1, timeout=5)
    for index, (messages, sampling) in enumerate(asks(3)):
        engine.submit(index, messages, sampling)
    while not endpoint.requests:
        time.sleep(0.005)
    engine.cancel()
    assert engine.pending() == 0 and engine.step() == []
    assert sample(engine, [asks(6)[5]]) == [Reply("re 5", "stop")]
    assert [last_said(request) for request in endpoint.requests] == ["0", "5"]


def test_a_bug_of_ours_in_a_thread_is_raised_and_not_waited_for(endpoint):
    engine = engine_at(endpoint.url)
    unserialisable: str = object()  # type: ignore[assignment]
    with pytest.raises(TypeError):
        sample(engine, [((Message("user", unserialisable),), Sampling(5))])
    with pytest.raises(TypeError):
        engine.try_sample([((Message("user", unserialisable),), Sampling(5))])


def test_an_interrupted_program_does_not_wait_for_the_endpoint(endpoint, tmp_path: Path):
    def answer(request: dict, number: int) -> Answer:
        time.sleep(5)
        return completion()

    endpoint.answer = answer
    program = f"""
import time
from memfactory.engines.openai import OpenAIEngine
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.types import Message, Sampling
engine = OpenAIEngine(OpenAIEngineConfig(model="judge", base_url="{endpoint.url}", api_key_env="", timeout=60))
engine.submit(0, [Message("user", "hello")], Sampling(5))
engine.step()
print("leaving", time.time(), flush=True)
raise KeyboardInterrupt
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    ended = time.time()
    left = float(done.stdout.split()[1])
    assert "KeyboardInterrupt" in done.stderr and ended - left < 3


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="'judge' needs a key in the environment variable JUDGE_KEY"):
        OpenAIEngine(OpenAIEngineConfig(model="judge", api_key_env="JUDGE_KEY"))
    monkeypatch.setenv("JUDGE_KEY", "secret")
    OpenAIEngine(OpenAIEngineConfig(model="judge", api_key_env="JUDGE_KEY")).close()


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="'localhost:8000' is not an address"):
        engine_at("localhost:8000")


def test_any_engine_can_be_sampled_with_its_errors():
    def script(messages, sampling):
        if messages[-1].content == "1":
            raise EngineError("down")
        return "yes"

    scripted = ScriptedEngine(script, tokens=False)
    assert [str(outcome) if isinstance(outcome, EngineError) else outcome.text for outcome in
            sample_or_errors(scripted, asks(3))] == ["yes", "down", "yes"]  # fmt: skip


def test_an_engine_that_fails_as_a_whole_fails_all_without_a_reply():
    class Plain:
        gives_tokens = False

        def __init__(self) -> None:
            self.waiting: list = []

        def submit(self, key, messages, sampling) -> None:
            self.waiting.append(key)

        def step(self) -> list:
            key = self.waiting.pop(0)
            if key == 1:
                raise EngineError("down")
            return [(key, Reply("yes", "stop"))]

        def pending(self) -> int:
            return len(self.waiting)

        def cancel(self) -> None:
            self.waiting.clear()

        def close(self) -> None: ...

    plain = Plain()
    first, second, third = sample_or_errors(plain, asks(3))
    assert first == Reply("yes", "stop") and str(second) == str(third) == "down"
    assert plain.pending() == 0
    plain.submit(7, *asks(1)[0])
    with pytest.raises(ValueError, match="1 conversations are pending"):
        sample_or_errors(plain, asks(1))


def test_template_options_are_sent_as_the_servers_know_them(endpoint):
    sample(engine_at(endpoint.url, template_options={"enable_thinking": "no", "effort": "low"}), asks(1))
    sample(engine_at(endpoint.url), asks(1))
    first, second = endpoint.requests
    assert first["chat_template_kwargs"] == {"enable_thinking": False, "effort": "low"}
    assert "chat_template_kwargs" not in second


def test_an_endpoint_without_template_options_is_told_in_its_words(endpoint):
    endpoint.answer = lambda request, number: error(400, "Unrecognized request argument supplied: chat_template_kwargs")
    (outcome,) = sample_or_errors(engine_at(endpoint.url, template_options={"enable_thinking": False}), asks(1))
    assert isinstance(outcome, EngineError)
    assert "argument supplied: chat_template_kwargs" in str(outcome)
    assert "this endpoint takes no template_options" in str(outcome)


def test_replies_behind_opened_thinking_begin_inside_it(endpoint):
    replies = iter(["Rome or", "Rome? yes</think> Rome", "<think>x</think> Rome"])
    endpoint.answer = lambda request, number: completion(next(replies), "length")
    engine = engine_at(endpoint.url, opens_thinking=True, concurrency=1)
    texts = [sample(engine, [ask])[0].text for ask in asks(3)]
    assert texts == ["<think>\nRome or", "<think>\nRome? yes</think> Rome", "<think>x</think> Rome"]
    assert [after_thinking(text) for text in texts] == [None, "Rome", "Rome"]
