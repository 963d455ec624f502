"""The baseline: a training step as textbook code takes it, which the product is timed against and checked by.

`generate` on a whole batch padded on the left, every turn padded to the longest of the step, fixed rows a micro-batch
in the order they come, full logits at every position, a pass for the old log-probabilities and one for the reference,
gradient checkpointing. It shares agent, environment, credit and optimizer with the product, and no model code.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria

from benchmarks.measure import Clock
from benchmarks.product import endless, grpo_options, local_model, shorten
from memfactory.build import build_runtime, training_data
from memfactory.components import POLICY
from memfactory.config import Resolved
from memfactory.config.grpo import GrpoOptions
from memfactory.config.losses import LossOptions
from memfactory.errors import ConfigError
from memfactory.model.adapters import base_model
from memfactory.model.chat import ChatFormat
from memfactory.model.loading import compute_dtype
from memfactory.policy.batch import TrainingTurn, training_turns
from memfactory.policy.optimizer import make_optimizer
from memfactory.policy.reference import Reference
from memfactory.policy.weights import trainable
from memfactory.rollout import rollout
from memfactory.seeds import stream_seed
from memfactory.types import Group, Message, Reply, Sampling, Tokens


class PlainEngine:
    """`generate` on all that is pending, as one batch padded on the left; no row enters or leaves on the way."""

    gives_tokens = True

    def __init__(self, model: PreTrainedModel, chat: ChatFormat, dtype: torch.dtype) -> None:
        self.model, self.chat, self.dtype = model, chat, dtype
        self._pending: list[tuple[Hashable, tuple[int, ...], Sampling]] = []

    def submit(self, key: Hashable, messages: Sequence[Message], sampling: Sampling) -> None:
        self._pending.append((key, self.chat.prompt_ids(messages), sampling))

    def pending(self) -> int:
        return len(self._pending)

    def cancel(self) -> None:
        self._pending.clear()

    def close(self) -> None:
        self.cancel()

    def step(self) -> list[tuple[Hashable, Reply]]:
        pending, self._pending = self._pending, []
        if not pending:
            return []
        limits = [sampling.max_tokens for _, _, sampling in pending]
        rows = self.generate([prompt for _, prompt, _ in pending], limits, pending[0][2])
        replies = []
        for (key, prompt, _), limit, row in zip(pending, limits, rows, strict=True):
            end = next((at for at, token in enumerate(row[:limit], 1) if token in self.chat.stop_ids), limit)
            ids = tuple(row[:end])
            # The baseline records no log-probabilities of the sampler.
            tokens = Tokens(prompt, ids, (0.0,) * len(ids))
            replies.append((key, Reply(self.chat.reply_text(prompt, ids), "length", tokens)))
        return replies

    def generate(self, prompts: Sequence[tuple[int, ...]], limits: Sequence[int], like: Sampling) -> list[list[int]]:
        """The ids sampled behind each prompt, drawn as `like` says, until every row has as many as its limit."""
        device, width = self.model.device, max(map(len, prompts))
        ids = torch.tensor([[self.chat.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        params = like.params
        settings = GenerationConfig(
            max_new_tokens=max(limits),
            do_sample=params.temperature > 0,
            temperature=params.temperature or None,
            top_k=params.top_k,
            top_p=params.top_p,
            pad_token_id=self.chat.pad_id,
            eos_token_id=sorted(self.chat.stop_ids) or None,
        )
        torch.manual_seed(like.seed)
        self.model.eval()
        with torch.no_grad(), torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
                stopping_criteria=[_Limits(width, torch.tensor(limits, device=device))],
            )
        return out[:, width:].tolist()


class _Limits(StoppingCriteria):
    """A row is done when it has as many tokens as it may have; the batch goes on until all are."""

    def __init__(self, width: int, limits: Tensor) -> None:
        self.width, self.limits = width, limits

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        return input_ids.shape[1] - self.width >= self.limits


class PlainSide:
    """One training step of the baseline after the other; `rows` turns make a micro-batch."""

    def __init__(self, resolved: Resolved, rows: int = 4, *, checkpointing: bool = True, spread: float = 0.0) -> None:
        options = grpo_options(resolved)
        refuse_unknown(options)
        self.options, self.rows = options, rows
        stack = endless(build_runtime(resolved, training=True), 0.0)
        model, self.chat = local_model(stack)
        self.dtype = compute_dtype(resolved.config.model, model.device)
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        self.network = trainable(model, options.lora, self.dtype, 0)
        self.model = base_model(self.network)
        self.trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        needs_reference = options.loss.kl_coef > 0
        self.reference = Reference(self.network, self.dtype, continued=False) if needs_reference else None
        self.optimizer = make_optimizer(self.trained, options.optimizer)
        engine = PlainEngine(self.model, self.chat, self.dtype)
        if spread:
            shorten(engine, spread)
        self.stack = replace(stack, engines={**stack.engines, POLICY: engine})
        self.tasks = training_data(resolved).tasks()
        self.seed = resolved.config.seed
        self.clock = Clock(model.device)
        self.clock.watch(self.model)
        if self.reference is not None and self.reference.copy is not None:
            self.clock.watch(self.reference.copy)
        self.groups: list[Group] = []

    def step(self, number: int) -> None:
        """Take optimizer step `number`: sample, score, train."""
        with self.clock.phase("decode"):
            self.groups = self.sampled(number)
        self.gradients(self.turns())
        with self.clock.phase("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.trained, self.options.optimizer.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def sampled(self, number: int) -> list[Group]:
        """The groups of a step without training on them."""
        options, count = self.options, self.options.prompts_per_step
        return rollout(
            self.stack.sampler(options.sampling),
            self.stack.env,
            self.tasks[:count],
            group_size=options.group_size,
            seeds=[stream_seed(self.seed, "rollout", at) for at in range(count)],
        )

    def close(self) -> None:
        self.stack.close()

    def turns(self) -> list[TrainingTurn]:
        """The turns that the last step trained on."""
        return training_turns(self.groups, self.options)

    def gradients(self, turns: Sequence[TrainingTurn]) -> float:
        """Leave the gradient of the step in the parameters; the step's loss."""
        batches = list(self.batches(turns))
        with self.clock.phase("old"), torch.no_grad():
            old = [self.logprobs(self.model, batch) for batch in batches]
        reference: list[Tensor | None] = [None] * len(batches)
        if self.reference is not None:
            with self.clock.phase("reference"), torch.no_grad(), self.reference.model() as model:
                reference = [self.logprobs(model, batch) for batch in batches]
        self.network.train()
        total = 0.0
        for batch, before, other in zip(batches, old, reference, strict=True):
            with self.clock.phase("forward"):
                loss = self.loss(self.logprobs(self.model, batch), before, other, batch)
            with self.clock.phase("backward"):
                loss.backward()
            total += float(loss.detach())
        self.network.eval()
        return total

    def batches(self, turns: Sequence[TrainingTurn]) -> Iterator[dict[str, Tensor]]:
        """Rows in the order they come, prompts padded on the left and replies on the right to the step's longest."""
        prompt = max(len(turn.prompt_ids) for turn in turns)
        reply = max(len(turn.reply_ids) for turn in turns)
        weights = token_weight(turns, self.options.loss)
        device = self.clock.device
        for first in range(0, len(turns), self.rows):
            chosen = turns[first : first + self.rows]
            left = [prompt - len(turn.prompt_ids) for turn in chosen]
            right = [reply - len(turn.reply_ids) for turn in chosen]
            pad = self.chat.pad_id
            ids = [
                [pad] * a + [*turn.prompt_ids, *turn.reply_ids] + [pad] * b
                for turn, a, b in zip(chosen, left, right, strict=True)
            ]
            mask = [[0] * a + [1] * turn.length + [0] * b for turn, a, b in zip(chosen, left, right, strict=True)]
            replies = [[1.0] * len(turn.reply_ids) + [0.0] * b for turn, b in zip(chosen, right, strict=True)]
            yield {
                "ids": torch.tensor(ids, device=device),
                "mask": torch.tensor(mask, device=device),
                "reply": torch.tensor(replies, device=device),
                "advantages": torch.tensor([turn.advantage for turn in chosen], device=device)[:, None],
                "weights": torch.tensor(weights[first : first + self.rows], device=device)[:, None],
            }

    def logprobs(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """[rows, longest reply] log-probabilities, from float32 logits of every position over the whole vocabulary."""
        ids, mask = batch["ids"], batch["mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.autocast(ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        logprobs = torch.log_softmax(logits[:, :-1].float() / self.options.temperature, -1)
        chosen = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
        return chosen[:, -batch["reply"].shape[1] :]

    def loss(self, logprobs: Tensor, old: Tensor, reference: Tensor | None, batch: dict[str, Tensor]) -> Tensor:
        """PPO's clipped objective and the k3 estimate of the KL, summed with each token's weight in the whole step."""
        options = self.options.loss
        ratio = (logprobs - old).exp()
        clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
        loss = -torch.min(ratio * batch["advantages"], clipped * batch["advantages"])
        if reference is not None:
            difference = reference - logprobs
            loss = loss + options.kl_coef * (difference.exp() - difference - 1)
        return (loss * batch["weights"] * batch["reply"]).sum()


def token_weight(turns: Sequence[TrainingTurn], options: LossOptions) -> list[float]:
    """The weight of each turn's tokens: all tokens alike, or each turn's mean and then the mean of turns."""
    if options.weighting == "token":
        return [1 / sum(len(turn.reply_ids) for turn in turns)] * len(turns)
    return [1 / (len(turns) * len(turn.reply_ids)) for turn in turns]


def refuse_unknown(options: GrpoOptions) -> None:
    """Raise ConfigError for options that the plain side does not know, rather than measure something else."""
    loss = options.loss
    known = {
        "train.loss.objective: ppo": loss.objective == "ppo",
        "train.loss.weighting: token or turn": loss.weighting in ("token", "turn"),
        "train.loss.kl_estimator: k3": loss.kl_estimator == "k3" and not loss.kl_unbiased,
        "train.loss.dual_clip: null": loss.dual_clip is None,
        "train.loss.sampler_correction: none": not loss.corrects,
        "train.minibatches: 1 and train.epochs: 1": options.minibatches * options.epochs == 1,
    }
    wrong = [name for name, right in known.items() if not right]
    if wrong:
        raise ConfigError("the plain side only knows " + ", ".join(wrong))
