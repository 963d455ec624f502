"""A vLLM server on a GPU of its own as an engine: rollouts beside a training that needs all of its GPU.

Every reply is checked to come from the weights of the last sync. Exercised with vLLM 0.32's server on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memfactory.engines.base import Key, Outcome, Weights
from memfactory.engines.endpoint import Refused
from memfactory.engines.options import VllmServerConfig
from memfactory.engines.pool import REFUSING_STATUS, RequestPool, RetryPolicy, TryAgain, Waiting, Work
from memfactory.engines.vllm.http import VllmServer
from memfactory.engines.vllm.remote_model import RemoteModel
from memfactory.engines.vllm.replies import Conversations
from memfactory.engines.vllm.weight_transfer import StoredWeights
from memfactory.environment import process_count
from memfactory.errors import ConfigError, EngineError, RequestRefused
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import load_architecture
from memfactory.model.options import ModelConfig
from memfactory.types import Message, Reply, Sampling


class VllmServerEngine:
    """Samples replies from the model that the server at `config.url` holds.

    The processes of a run share the server: the first syncs weights, the others follow. Without a trainer that syncs
    weights, those of `model` are synced before the first conversation. Raises ConfigError if no server answers or its
    command lacks a needed option; PromptTooLong for a prompt that does not fit, EngineError for a server that goes
    away and for one that holds other weights.
    """

    gives_tokens = True

    def __init__(self, model: ModelConfig, chat: ChatFormat, config: VllmServerConfig) -> None:
        self.model, self.chat, self.config = model, chat, config
        self._server = VllmServer(config)
        self._retry_policy = RetryPolicy(config.retries, config.backoff)
        self._remote = RemoteModel(self._server, config, random_weights=model.random_weights)
        shape = load_architecture(model).get_text_config()
        self._conversations = Conversations(
            chat, context=self._remote.context, rows=shape.vocab_size, random=model.random_weights
        )
        self._pool = RequestPool(config.concurrency, "vllm")

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        """Send a conversation as soon as a connection is free."""
        self._pool.submit(key, self._work(messages, sampling))

    def step(self) -> list[tuple[Key, Outcome]]:
        """Wait for at least one reply and return all that are ready."""
        ready = self._pool.ready()
        if any(isinstance(outcome, Reply) for _, outcome in ready):
            self._remote.confirm()
        return ready

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
        """The reply to each of `prompts`, or the error in its place, in their order. Pending conversations go on."""
        try:
            outcomes = self._pool.outcomes([self._work_or_refusal(*prompt) for prompt in prompts])
            self._remote.confirm()
        except EngineError as error:
            return [error for _ in prompts]
        return outcomes

    def check(self, messages: Sequence[Message]) -> None:
        self._conversations.check(self.chat.prompt_ids(messages))

    def pending(self) -> int:
        return self._pool.pending()

    def cancel(self) -> None:
        self._pool.cancel()

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()
        self._remote.close()

    def sleep(self) -> None:
        """The server's GPU is its own."""

    def update_weights(self, weights: Weights) -> None:
        """Sync the policy's weights; the server clears its prefix cache. Nothing may be pending.

        Raises EngineError if the server does not confirm the weights.
        """
        if self._pool.pending():
            raise ValueError(f"{self._pool.pending()} conversations are pending at the server that is to take weights")
        self._remote.take(weights)

    def synced(self) -> tuple[str, str | None]:
        """The name and version of the weights that this process has synced, for the other processes of the run."""
        return self._remote.synced()

    def follow(self, synced: tuple[str, str | None]) -> None:
        """Use the weights that another process has synced. Nothing may be pending."""
        if self._pool.pending():
            raise ValueError(f"{self._pool.pending()} conversations are pending at the server that has new weights")
        self._remote.follow(*synced)

    def _work_or_refusal(self, messages: Sequence[Message], sampling: Sampling) -> Work:
        try:
            return self._work(messages, sampling)
        except RequestRefused as refusal:
            refused = refusal

        def refuse(waiting: Waiting) -> Reply:
            raise refused

        return refuse

    def _work(self, messages: Sequence[Message], sampling: Sampling) -> Work:
        """The work of a thread on one conversation: it tries until a reply comes or no retry is left."""
        prompt = self.chat.prompt_ids(messages)
        parameters = self._conversations.parameters(prompt, sampling)
        if not self._remote.updated:
            if process_count() > 1:
                raise ConfigError(
                    "engine: in a run of several processes a vLLM server takes weights from a trainer only; start "
                    "this command without torchrun or accelerate"
                )
            self.update_weights(StoredWeights(self.model))
        fields = {**parameters, "model": self._remote.name, "prompt": list(prompt), "return_token_ids": True}
        return lambda waiting: waiting.retry(
            lambda: self._reply(prompt, sampling, fields), self._retry_policy, self._server.name
        )

    def _reply(self, prompt: tuple[int, ...], sampling: Sampling, fields: dict[str, Any]) -> Reply:
        try:
            answer = self._server.post("/v1/completions", fields)
        except Refused as error:
            if error.status in REFUSING_STATUS:
                raise RequestRefused(str(error)) from error
            raise
        try:
            choice = answer["choices"][0]
            reply_ids, prompt_ids = tuple(choice["token_ids"]), tuple(choice["prompt_token_ids"])
            logprobs, name = choice["logprobs"]["token_logprobs"], answer["model"]
            finish_reason = choice["finish_reason"]
        except (LookupError, TypeError) as error:
            raise TryAgain(f"the answer is not a completion with token ids: {str(answer)[:200]}") from error
        if prompt_ids != prompt or name != fields["model"] or len(logprobs) != len(reply_ids):
            raise EngineError(
                f"{self._server.name} answered for {name!r} on {len(prompt_ids)} tokens, with {len(logprobs)} "
                f"log-probabilities of {len(reply_ids)} tokens; requested: {fields['model']!r} on {len(prompt)} tokens"
            )
        return self._conversations.reply(prompt, sampling, reply_ids, logprobs, finish_reason)
