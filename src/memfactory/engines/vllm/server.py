"""vLLM servers on GPUs of their own as an engine: rollouts beside a training that needs all of its GPU.

Every reply is checked to come from the weights of the last sync. Exercised with vLLM 0.32's server on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memfactory.engines.base import Key, Outcome, Weights
from memfactory.engines.endpoint import Refused
from memfactory.engines.options import VllmServerConfig
from memfactory.engines.pool import REFUSING_STATUS, RequestPool, RetryPolicy, TryAgain, Waiting, Work
from memfactory.engines.vllm.remote_model import RemoteModel, Synced
from memfactory.engines.vllm.replies import Conversations
from memfactory.engines.vllm.servers import Servers
from memfactory.engines.vllm.weight_transfer import StoredWeights
from memfactory.environment import process_count
from memfactory.errors import ConfigError, EngineError, RequestRefused
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import load_architecture
from memfactory.model.options import ModelConfig
from memfactory.types import Message, Reply, Sampling


class VllmServerEngine:
    """Samples replies from the model that the servers at `config.url` hold.

    The processes of a run share the servers: the first syncs weights, the others follow. Without a trainer that syncs
    weights, those of `model` are synced before the first conversation. Raises ConfigError if no server answers or its
    command lacks a needed option; PromptTooLong for a prompt that does not fit, EngineError for a server that goes
    away and for one that holds other weights.
    """

    gives_tokens = True

    def __init__(self, model: ModelConfig, chat: ChatFormat, config: VllmServerConfig) -> None:
        self.model, self.chat, self.config = model, chat, config
        self._retry_policy = RetryPolicy(config.retries, config.backoff)
        self._servers = Servers(config, random_weights=model.random_weights)
        shape = load_architecture(model).get_text_config()
        self._conversations = Conversations(
            chat, context=self._servers.context, rows=shape.vocab_size, random=model.random_weights
        )
        self._pool = RequestPool(config.concurrency * len(config.urls), "vllm")

    def submit(self, key: Key, messages: Sequence[Message], sampling: Sampling) -> None:
        """Send a conversation as soon as a connection is free."""
        self._pool.submit(key, self._work(messages, sampling))

    def step(self) -> list[tuple[Key, Outcome]]:
        """Wait for at least one reply and return all that are ready."""
        ready = self._pool.ready()
        if any(isinstance(outcome, Reply) for _, outcome in ready):
            self._servers.confirm()
        return ready

    def try_sample(self, prompts: Sequence[tuple[Sequence[Message], Sampling]]) -> list[Outcome]:
        """The reply to each of `prompts`, or the error in its place, in their order. Pending conversations go on."""
        try:
            outcomes = self._pool.outcomes([self._work_or_refusal(*prompt) for prompt in prompts])
            self._servers.confirm()
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
        self._servers.close()

    def sleep(self) -> None:
        """The server's GPU is its own."""

    def update_weights(self, weights: Weights) -> None:
        """Sync the policy's weights; the server clears its prefix cache. Nothing may be pending.

        Raises EngineError if the server does not confirm the weights.
        """
        if self._pool.pending():
            raise ValueError(f"{self._pool.pending()} conversations are pending at the server that is to take weights")
        self._servers.take(weights)

    def synced(self) -> tuple[Synced, ...]:
        """Names and versions of the weights that this process has synced, for the other processes of the run."""
        return self._servers.synced()

    def follow(self, synced: Sequence[Synced]) -> None:
        """Use the weights that another process has synced. Nothing may be pending."""
        if self._pool.pending():
            raise ValueError(f"{self._pool.pending()} conversations are pending at the server that has new weights")
        self._servers.follow(synced)

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
        if not self._servers.updated:
            if process_count() > 1:
                raise ConfigError(
                    "engine: in a run of several processes a vLLM server takes weights from a trainer only; start "
                    "this command without torchrun or accelerate"
                )
            self.update_weights(StoredWeights(self.model))
        fields = {**parameters, "prompt": list(prompt), "return_token_ids": True}

        def work(waiting: Waiting) -> Reply:
            with self._servers.least_loaded() as model:
                return waiting.retry(
                    lambda: self._reply(model, prompt, sampling, fields), self._retry_policy, model.server.name
                )

        return work

    def _reply(
        self, model: RemoteModel, prompt: tuple[int, ...], sampling: Sampling, parameters: dict[str, Any]
    ) -> Reply:
        fields = {**parameters, "model": model.name}
        try:
            answer = model.server.post("/v1/completions", fields)
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
                f"{model.server.name} answered for {name!r} on {len(prompt_ids)} tokens, with {len(logprobs)} "
                f"log-probabilities of {len(reply_ids)} tokens; requested: {fields['model']!r} on {len(prompt)} tokens"
            )
        return self._conversations.reply(prompt, sampling, reply_ids, logprobs, finish_reason)
