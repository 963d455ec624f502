"""Ways out for users whose endpoint refuses a request: the setting to change, or the models that it has."""

from __future__ import annotations

import difflib
import re
from urllib.parse import urlsplit

from memfactory.engines.endpoint import Endpoint, Refused, parsed_json
from memfactory.engines.pool import TryAgain
from memfactory.errors import EngineError
from memfactory.redaction import redacted_message
from memfactory.text import writable

MOST_MODELS = 5
LIST_SECONDS = 3.0
"""The longest that a list of models is waited for."""
_NO_MODEL = re.compile(
    r"\bmodel\b.*\b(?:not exist|not found|not supported|unknown|no such)|(?:unknown|no such|invalid) model",
    re.IGNORECASE,
)
_TEMPERATURE = re.compile(r"\btemperature\b.*(?:not support|only the default|unsupported)", re.IGNORECASE)
_STREAM = re.compile(r"\bonly supports? stream|\bstream\b.*\b(?:required|must be|enable)", re.IGNORECASE)
_SYSTEM = re.compile(r"\bsystem (?:role|message|prompt)s?\b.*\bnot (?:supported|allowed)", re.IGNORECASE)
_SEED = re.compile(r"(?<![\w-])seed(?![\w-])")
_TOP_K = re.compile(r"\btop_k\b")


def setting_hint(words: str) -> str:
    """The setting for an endpoint that does not know a field of the request, by its `words`; "" without one."""
    if "max_completion_tokens" in words:
        return " (write max_tokens_field: max_completion_tokens)"
    if "chat_template_kwargs" in words:
        return " (this endpoint takes no template_options: leave them out)"
    if _TEMPERATURE.search(words):
        return (
            " (this model samples at temperature 1 only: infer --temperature 1, eval.temperature=1, or temperature: 1 "
            "of a judge's or frozen module's engine)"
        )
    if _STREAM.search(words):
        return " (write stream: true)"
    if _SYSTEM.search(words):
        return " (this model takes no system prompt: leave prompts.system out)"
    if _TOP_K.search(words):
        return " (this endpoint takes no top_k: leave it out)"
    return " (write send_seed: false)" if _SEED.search(words) else ""


def missing_hint(endpoint: Endpoint, model: str, refusal: Refused) -> str:
    """For a model or path that the endpoint does not know: the models that it has, nearest first, or the version that
    its address lacks; "" for any other refusal."""
    unknown_model = refusal.code == "model_not_found" or _NO_MODEL.search(str(refusal))
    if refusal.status != 404 and not (unknown_model and refusal.status in (400, 422)):
        return ""
    models = _models(endpoint)
    if models and model not in models:
        near = difflib.get_close_matches(model, models, n=MOST_MODELS, cutoff=0.5)
        shown = [*near, *(name for name in models if name not in near)][:MOST_MODELS]
        more = f" and {len(models) - len(shown)} more" if len(models) > len(shown) else ""
        return f" (the endpoint has {', '.join(map(repr, shown))}{more})"
    if not models and not re.search(r"/v\d", urlsplit(endpoint.address).path):
        return " (perhaps the address lacks /v1 at its end)"
    return ""


def _models(endpoint: Endpoint) -> list[str]:
    """The names of the endpoint's models; empty if it does not list them."""
    try:
        answer = endpoint.request("GET", "/models", None, min(LIST_SECONDS, endpoint.timeout))
        names = [row["id"] for row in parsed_json(answer.body)["data"]]
    except (TryAgain, EngineError, ValueError, LookupError, TypeError):
        return []
    return [redacted_message(writable(name))[:100] for name in names if isinstance(name, str)]
