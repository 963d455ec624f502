"""Endpoints that are set up wrongly: the error names the setting to change, or the models that exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from local_server import LocalServer
from memfactory.engines.addresses import address_problem
from memfactory.engines.base import sample_or_errors
from memfactory.engines.endpoint_hints import setting_hint
from memfactory.engines.openai import OpenAIEngine
from memfactory.engines.options import OpenAIEngineConfig
from memfactory.errors import EngineError, RequestRefused
from memfactory.memory.embedders import build_embedder
from memfactory.memory.options import OpenAIEmbedderConfig
from memfactory.redaction import REDACTED
from memfactory.types import Message, Sampling

SERVED = ["qwen3-4b-instruct", "smollm2-135m", *(f"other-{number}" for number in range(7))]


class ModelServer(LocalServer):
    """A server with the models `SERVED` below /v1. It refuses every chat with `refusal`, a status and a body."""

    def __init__(self) -> None:
        self.refusal: tuple[int, object] = (404, {"error": {"message": "The model `qwen3-4b` does not exist."}})
        self.models: Any = {"data": [{"id": name} for name in SERVED]}
        self.gets: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.gets.append(self.path)
                found = self.path == "/v1/models" and server.models is not None
                self.respond(200 if found else 404, server.models if found else "404 page not found")

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                below = self.path.startswith("/v1/") and not self.path.startswith("/v1/chat/completions/")
                self.respond(*(server.refusal if below else (404, "404 page not found")))

            def respond(self, status: int, body: object) -> None:
                sent = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *words: object) -> None:
                pass

        super().__init__(Handler)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    started = ModelServer()
    yield started
    started.close()


def outcome(url: str, **options: object) -> object:
    values = {"model": "qwen3-4b", "base_url": url, "api_key_env": "", "retries": 0, "timeout": 2}
    engine = OpenAIEngine(OpenAIEngineConfig.model_validate(values | options))
    try:
        return sample_or_errors(engine, [((Message("user", "x"),), Sampling(5))])[0]
    finally:
        engine.close()


def embedded(url: str) -> str:
    config = OpenAIEmbedderConfig(model="qwen3-4b", base_url=url, api_key_env="", retries=0, timeout=2)
    with pytest.raises(EngineError) as caught:
        build_embedder(config).embed(["x"])
    return str(caught.value)


FIRST = "'qwen3-4b-instruct', 'smollm2-135m', 'other-0', 'other-1', 'other-2' and 4 more"


def test_a_model_that_is_not_there_lists_those_that_are(server: ModelServer) -> None:
    told = outcome(server.url)
    assert isinstance(told, EngineError) and not isinstance(told, RequestRefused)
    assert str(told).endswith(f"The model `qwen3-4b` does not exist. (the endpoint has {FIRST})")
    assert embedded(server.url).endswith(f"(the endpoint has {FIRST})")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "Not Found", "code": "model_not_found"}}),
        (400, {"detail": "The model qwen3-4b does not exist"}),
        (400, {"error": {"message": "Invalid model name passed in model=qwen3-4b"}}),
        (404, {"error": "model 'qwen3-4b' not found, try pulling it first"}),
        (404, {"detail": "Not Found"}),
    ],
)
def test_every_servers_words_for_a_model_that_is_not_there_are_known(
    status: int, body: object, server: ModelServer
) -> None:
    server.refusal = (status, body)
    assert "(the endpoint has 'qwen3-4b-instruct', " in str(outcome(server.url))


@pytest.mark.parametrize("models", [None, "text", [], {"data": 3}, {"data": [{"name": "x"}]}, {"data": []}])
def test_an_endpoint_without_a_list_of_models_is_quoted_alone(models: object, server: ModelServer) -> None:
    server.models = models
    assert str(outcome(server.url)).endswith("HTTP 404: The model `qwen3-4b` does not exist.")


def test_the_list_of_models_holds_no_key_and_no_long_name(server: ModelServer) -> None:
    server.models = {"data": [{"id": "sk-abcdefgh12345678"}, {"id": "x" * 5000}, {"id": 7}, {"id": "half \ud83d"}]}
    told = str(outcome(server.url))
    assert REDACTED in told and "abcdefgh" not in told and "x" * 101 not in told
    told.encode()


def test_a_model_that_is_there_is_not_the_reason(server: ModelServer) -> None:
    assert "has" not in str(outcome(server.url, model="smollm2-135m")).partition("does not exist.")[2]


def test_other_refusals_ask_for_no_list(server: ModelServer) -> None:
    for status, words in ((401, "Incorrect API key"), (400, "content is too rude"), (403, "no access to this model")):
        server.refusal = (status, {"error": {"message": words}})
        assert str(outcome(server.url)).endswith(words)
    assert server.gets == []


def test_an_address_without_its_version_is_told(server: ModelServer) -> None:
    root = server.url.removesuffix("/v1")
    assert str(outcome(root)).endswith("404 page not found (perhaps the address lacks /v1 at its end)")
    assert embedded(root).endswith("(perhaps the address lacks /v1 at its end)")
    # An address with another version, as Gemini's, is not doubted.
    assert str(outcome(f"{root}/v1beta/openai")).endswith("404 page not found")


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("http://h:80/v1/chat/completions", "http://h:80/v1"),
        ("http://h/v1/chat/completions/", "http://h/v1"),
        ("https://h/v1/completions", "https://h/v1"),
        ("https://h/v1/embeddings", "https://h/v1"),
        ("https://h/v1/responses", "https://h/v1"),
    ],
)
def test_the_address_of_a_request_is_refused(address: str, base: str) -> None:
    problem = address_problem(address)
    assert problem is not None and problem.endswith(f"is added to it; write {base}")
    assert address_problem(base) is None


@pytest.mark.parametrize(
    ("words", "way"),
    [
        ("'temperature' does not support 0.0 with this model. Only the default (1) value is supported.", "temperature"),
        ("This model only support stream mode, please enable the stream parameter", "stream: true"),
        ("System role not supported", "leave prompts.system out"),
        ("Unrecognized request argument supplied: top_k", "top_k"),
        ("body.seed: Extra inputs are not permitted", "send_seed: false"),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens_field"),
    ],
)
def test_a_field_that_a_model_does_not_take_has_a_way_out(words: str, way: str, server: ModelServer) -> None:
    server.refusal = (400, {"error": {"message": words}})
    told = str(outcome(server.url))
    assert words in told and way in told.partition(words)[2]


def test_words_about_other_things_get_no_hint() -> None:
    for words in ("The model `seed-oss-36b` is busy", "a sunflower-seed", "The temperature in Rome"):
        assert setting_hint(words) == ""


def test_tls_at_a_server_without_it_is_told(server: ModelServer) -> None:
    told = str(outcome(f"https://127.0.0.1:{server.port}/v1"))
    assert "the server answers without TLS: write http://" in told
