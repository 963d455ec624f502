"""TRL's GRPOTrainer on work of benchmarks.step with one turn: the same model, prompts, lengths, loss and optimizer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Clock
from benchmarks.product import grpo_options, local_model
from memfactory.build import build_runtime, training_data
from memfactory.components import POLICY
from memfactory.config import Resolved
from memfactory.config.grpo import GrpoOptions
from memfactory.engines.scripted import ScriptedEngine
from memfactory.errors import ConfigError
from memfactory.play import Sampler
from memfactory.rollout import rollout
from memfactory.types import Message, Reply, Tokens

SINGLE_TURN = ("memory_r1", "rmm")


class TrlSide:
    """TRL's own training loop, paused between two optimizer steps until the next is requested.

    `train()` runs in a thread that is woken for one step at a time, so that the measured time has its whole loop and no
    more. Replies have `new_tokens` tokens, as on the other sides. TRL's defaults, except: no reports, no shuffling, and
    gradient checkpointing off unless `checkpointing` (on the CPU it is faster without).
    """

    def __init__(self, resolved: Resolved, folder: Path, new_tokens: int, *, checkpointing: bool = False) -> None:
        options = grpo_options(resolved)
        if options.lora is not None or options.loss.weighting != "token" or options.loss.objective != "ppo":
            raise ConfigError("the side trl trains the whole model with objective ppo and weighting token")
        stack = build_runtime(resolved, training=True)
        model, chat = local_model(stack)
        tasks = training_data(resolved).tasks()
        self._engine = stack.engines[POLICY]
        prompts = single_turns(stack, tasks[: options.prompts_per_step])
        # TRL loads its reference from where the policy came from.
        home = folder / "trl-model"
        model.save_pretrained(home)
        chat.tokenizer.save_pretrained(home)
        model.config._name_or_path = str(home)
        self.clock = Clock(model.device)
        self.clock.watch(model)
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._closing = False
        self.trainer = self._trainer(stack, prompts, options, folder, new_tokens, checkpointing)
        self._attach()
        self._thread = threading.Thread(target=self._train, args=(torch.get_num_threads(),), daemon=True)
        self._thread.start()
        self._wait()

    def _trainer(
        self,
        stack: Any,
        prompts: list[tuple[Message, ...]],
        options: GrpoOptions,
        folder: Path,
        new_tokens: int,
        checkpointing: bool,
    ) -> Any:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        device = stack.model.device.type
        arguments = GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=device == "cpu",
            bf16=device == "cuda",
            report_to=[],
            save_strategy="no",
            max_steps=1_000_000,
            learning_rate=options.optimizer.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=options.optimizer.max_grad_norm,
            per_device_train_batch_size=options.group_size,
            gradient_accumulation_steps=len(prompts),
            num_generations=options.group_size,
            max_completion_length=new_tokens,
            generation_kwargs={"min_new_tokens": new_tokens},
            temperature=options.temperature,
            beta=options.loss.kl_coef,
            epsilon=options.loss.clip_low,
            gradient_checkpointing=checkpointing,
            shuffle_dataset=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        conversations = [
            {"prompt": [{"role": message.role, "content": message.content} for message in messages]}
            for messages in prompts
        ]
        return GRPOTrainer(
            model=stack.model,
            reward_funcs=spread,
            args=arguments,
            train_dataset=Dataset.from_list(conversations),
            processing_class=stack.chat.tokenizer,
        )

    def _attach(self) -> None:
        from transformers import PrinterCallback, TrainerCallback

        side, timed = self, self.clock.timed

        class Pause(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                side._pause(control)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                side._pause(control)

        trainer = self.trainer
        trainer.add_callback(Pause())
        # The benchmark prints its own results.
        trainer.remove_callback(PrinterCallback)
        trainer._generate_and_score_completions = timed("reference", trainer._generate_and_score_completions)
        trainer._generate_single_turn = timed("decode", trainer._generate_single_turn)
        trainer.compute_loss = timed("forward", trainer.compute_loss)
        trainer.accelerator.backward = timed("backward", trainer.accelerator.backward)
        if trainer.ref_model is not None:
            self.clock.watch(trainer.ref_model)

    def _train(self, threads: int) -> None:
        # The number of threads belongs to the thread that asks for it.
        torch.set_num_threads(threads)
        try:
            self.trainer.train()
        except BaseException as error:  # noqa: BLE001 - it is raised where the step was asked for
            self._error = error
        self._done.release()

    def _pause(self, control: Any) -> None:
        if not self._closing:
            self._done.release()
            self._go.acquire()
        control.should_training_stop = self._closing

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def step(self, number: int) -> None:
        """Let TRL take one optimizer step."""
        self._go.release()
        self._wait()

    def close(self) -> None:
        self._closing = True
        self._go.release()
        self._thread.join()
        self._engine.close()


def spread(completions: list[Any], **_: Any) -> list[float]:
    """The place in the batch as reward: every group has variance."""
    return [float(place) for place in range(len(completions))]


def single_turns(stack: Any, tasks: Any) -> list[tuple[Message, ...]]:
    """The conversations of one episode of each task."""

    def silent(messages: Any, sampling: Any) -> Reply:
        return Reply("", "stop", Tokens((0,), (0,), (0.0,)))

    engine = ScriptedEngine(silent)
    sampler = Sampler(stack.agent, {**stack.engines, POLICY: engine})
    rollout(sampler, stack.env, tasks, group_size=1, seeds=range(len(tasks)))
    return [messages for messages, _ in engine.requests]
