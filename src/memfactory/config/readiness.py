"""Whether this machine is ready for a command: files, keys, installed extras, a GPU. Nothing heavy is imported."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

from memfactory.components import ModuleOptions
from memfactory.config.answer_forms import reward_options, unearned
from memfactory.config.datasets import locate
from memfactory.config.endpoints import check_key
from memfactory.config.optimizer import LOW_BIT_PACKAGES, TORCHAO_KINDS
from memfactory.config.parts import is_dir
from memfactory.config.problems import Problems
from memfactory.config.rules import models, reward_engines
from memfactory.config.schema import Component, RunConfig
from memfactory.config.trained import trainer_options
from memfactory.config.training import TrainerOptions
from memfactory.config.tree import KeyPath, dotted
from memfactory.engines.options import EngineConfig, OpenAIEngineConfig, VllmEngineConfig, VllmServerConfig
from memfactory.errors import nearest
from memfactory.files.places import expanded
from memfactory.memory.options import OpenAIEmbedderConfig
from memfactory.model.gguf_file import against_vllm, gguf_instead, gguf_problem, is_gguf
from memfactory.model.near_models import TINY, is_adapter, is_tokenizer, model_hint, nearest_place
from memfactory.model.options import ModelConfig
from memfactory.registry import MODULES, Options
from memfactory.trackers.options import SwanlabConfig

Command = Literal["train", "eval", "infer", "traces"]
"""The verbs that need files; `traces` is `data traces`, which needs the training rows and the model's tokenizer."""
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


class Readiness:
    """Checks one validated config for one command, and adds to `problems` and `warnings`."""

    def __init__(self, config: RunConfig, base_dir: Path, problems: Problems, command: Command) -> None:
        self.config = config
        self.base_dir = base_dir
        self.problems = problems
        self.command = command
        self.warnings: list[str] = []

    def check(self) -> list[str]:
        """Check everything that the command uses; return the warnings."""
        if self.command == "traces":
            self._model_files(("model",), self.config.model)
            self._dataset(("data", "train"), self.config.data.train)
            return self.warnings
        if self.command == "train":
            self._can_be_trained()
            self._rewards_can_be_earned()
        used = dict(self._used_engines())
        for path, model in models(self.config).items():
            if path == ("model",) or path[:-1] in used:
                self._model_files(path, model)
                self._compute(path, model)
        self._engines(used)
        self._module_weights()
        if self.command == "train":
            self._datasets()
            self._optimizer()
            self._trackers()
            self._output()
        return self.warnings

    def _can_be_trained(self) -> None:
        config, options = self.config, trainer_options(self.config)
        if options is None:
            self.problems.add(("train",), "is missing: training needs a trainer, such as `train: {name: grpo}`")
            return
        if isinstance(config.engine, OpenAIEngineConfig) and options.policy is not None:
            self.problems.add(
                ("engine", "kind"),
                "an OpenAI-compatible endpoint cannot be trained: its replies have no token ids; use hf or vllm",
            )
        if config.data.train is None and not any(options.datasets()):
            self.problems.add(("data", "train"), "is missing: there is nothing to train on")
        modules = [(MODULES.get(module.name), module.options) for module in config.agent.modules.values()]
        asking = [options for module, options in modules if module.steps]
        if options.policy is not None and options.plays and modules and all(map(_frozen, asking)):
            self.problems.add(("agent",), "no module is trained: every one that asks has `interface: inference`")
        learning = [options for module, options in modules if module.learns_itself]
        if options.policy is None and all(map(_frozen, learning)):
            self.problems.add(
                ("agent",), "no module learns online; write for example `modules: {retriever: linear_reranker}`"
            )

    def _rewards_can_be_earned(self) -> None:
        """Refuse rewards that read a form of answers which the agent's prompts never ask for."""
        train, entries = trainer_options(self.config), getattr(self.config.env.options, "rewards", {})
        if train is None or not train.plays or self.problems.touch(("agent",), ("env",)):
            return
        options = reward_options(entries)
        credited = {name for weights in getattr(self.config.env.options, "steps", {}).values() for name in weights}
        for name, reason in unearned(self.config.agent, options):
            if options[name].weight or name in credited:
                self.problems.add(("env", "rewards", name), reason)
            else:
                self.warnings.append(f"env.rewards.{name} {reason}")

    def _folder(self, text: str) -> Path | None:
        places = (expanded(text) if text.startswith("~/") else Path(text), self.base_dir / text)
        return next((path for path in places if is_dir(path)), None)

    def _model_files(self, place: KeyPath, model: ModelConfig) -> None:
        if place != ("model",) or not isinstance(self.config.engine, OpenAIEngineConfig):
            self._model_path((*place, "path"), model.path)
        adapter = None if model.adapter is None else self._folder(model.adapter)
        if adapter is not None and not (adapter / "adapter_config.json").is_file():
            self.problems.add((*place, "adapter"), f"{adapter} is no PEFT adapter: it has no adapter_config.json")
        elif adapter is None and model.adapter is not None and not _may_be_hub_id(model.adapter):
            near = nearest_place(model.adapter, self.base_dir, is_adapter)
            hint = "" if near is None else f"; did you mean {near!r}?"
            self.problems.add((*place, "adapter"), f"there is no folder {model.adapter!r}{hint}")
        if model.chat_template is not None and locate(model.chat_template, self.base_dir) is None:
            self.problems.add((*place, "chat_template"), f"there is no file {model.chat_template!r}")

    def _model_path(self, place: KeyPath, path: str) -> None:
        if path == TINY:
            return
        folder, file = self._folder(path), locate(path, self.base_dir)
        if self.command == "traces" and is_tokenizer(folder or file or Path(path)):
            return
        if folder is not None:
            if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
                instead = gguf_instead(folder) or "it has no config.json"
                self.problems.add(place, f"{folder} is not a model folder: {instead}{self._of_traces()}")
        elif file is not None or is_gguf(path):
            problem = gguf_problem(file or Path(path))
            if problem is not None:
                self.problems.add(place, problem)
        elif not _may_be_hub_id(path):
            self.problems.add(
                place, f"there is no folder {path!r}; {model_hint(path, self.base_dir)}{self._of_traces()}"
            )
        elif "/" not in path and nearest(path, (TINY,)):
            self.problems.add(place, f"there is no folder {path!r}; did you mean {TINY!r}?")

    def _of_traces(self) -> str:
        if self.command != "traces":
            return ""
        return (
            ". Traces take only the tokenizer of the model (a tokenizer.json alone is enough): name the one that the "
            "training begins with, such as model.path=models/smollm2 after `memfactory data model smollm2 --output "
            "models/smollm2`"
        )

    def _module_weights(self) -> None:
        for slot, module in self.config.agent.modules.items():
            weights = getattr(module.options, "weights", None)
            if isinstance(weights, str) and locate(weights, self.base_dir) is None:
                self.problems.add(("agent", "modules", slot, "weights"), f"there is no file {weights!r}")

    def _datasets(self) -> None:
        data = self.config.data
        used: dict[KeyPath, Component | None] = {("data", "train"): data.train}
        used |= {("data", "eval", name): dataset for name, dataset in data.eval.items()}
        for path, dataset in used.items():
            self._dataset(path, dataset)

    def _dataset(self, path: KeyPath, dataset: Component | None) -> None:
        file = getattr(dataset.options, "path", None) if dataset is not None else None
        if isinstance(file, str) and locate(file, self.base_dir) is None and self._folder(file) is None:
            places = " or ".join(dict.fromkeys((str(Path.cwd()), str(self.base_dir.resolve()))))
            where = getattr(dataset.options, "published", "") if dataset is not None else ""
            self.problems.add(
                (*path, "path"), f"there is no file {file!r} in {places}" + (f"; {where}" if where else "")
            )

    def _compute(self, place: KeyPath, model: ModelConfig) -> None:
        if model.device.startswith("cuda") and not has_cuda():
            self.problems.add(
                (*place, "device"), f"{model.device!r} is asked for, but no CUDA GPU is found; use auto or cpu"
            )
        if model.attention == "flash_attention_2":
            here = (*place, "attention")
            self._needs(model, here, "flash_attention_2", "flash_attn", "flash-attn", "use auto or sdpa")
        if model.dtype in ("bfloat16", "float16") and not on_gpu(model):
            self.warnings.append(f"{dotted(place)}.dtype: {model.dtype} on a CPU is slow; auto takes float32 there")

    def _needs(self, model: ModelConfig, path: KeyPath, what: str, package: str, extra: str, instead: str) -> None:
        """Report a missing CUDA GPU for `model`, and a missing package of an extra."""
        if not on_gpu(model):
            self.problems.add(path, f"{what} needs a CUDA GPU, and none is used here; {instead}")
        elif not installed(package):
            self.problems.add(
                path, f"{what} needs an extra that is not installed: pip install 'memfactory[{extra}]'; or {instead}"
            )

    def _used_engines(self) -> Iterator[tuple[KeyPath, EngineConfig]]:
        """The policy's engine, and the engines of frozen modules and (in training) of judges."""
        yield ("engine",), self.config.engine
        modules = [
            module.options.engine
            for module in self.config.agent.modules.values()
            if isinstance(module.options, ModuleOptions) and module.options.interface == "inference"
        ]
        judges = [name for _, name in reward_engines(self.config)] if self.command == "train" else []
        for name in dict.fromkeys([*modules, *judges]):
            if name in self.config.engines:
                yield ("engines", name), self.config.engines[name]

    def _engines(self, used: Mapping[KeyPath, EngineConfig]) -> None:
        for path, engine in used.items():
            if isinstance(engine, VllmEngineConfig):
                self._needs(self.config.model, (*path, "kind"), "vLLM", "vllm", "vllm", "use kind: hf")
                if is_gguf(self.config.model.path):
                    self.problems.add(("model", "path"), against_vllm(self.config.model.path))
            elif isinstance(engine, OpenAIEngineConfig | VllmServerConfig):
                check_key(path, engine, self.problems)
        if isinstance(self.config.memory.embedder, OpenAIEmbedderConfig):
            check_key(("memory", "embedder"), self.config.memory.embedder, self.problems)

    def _optimizer(self) -> None:
        train = trainer_options(self.config)
        options = None if train is None else train.policy
        if options is None:
            return
        key, kind = ("train", "optimizer", "kind"), options.optimizer.kind
        if kind == "auto":
            if on_gpu(self.config.model):
                self.warnings += second_choice(options)
        elif kind == "adamw_8bit":
            self._needs(self.config.model, key, kind, "bitsandbytes", "bitsandbytes", "use auto")
        elif kind in TORCHAO_KINDS and not installed("torchao"):
            self.problems.add(
                key, f"{kind} needs an extra that is not installed: pip install 'memfactory[torchao]'; or use auto"
            )

    def _trackers(self) -> None:
        for tracker in self.config.trackers:
            if not isinstance(tracker, SwanlabConfig):
                continue
            if tracker.mode == "online" and not os.environ.get("SWANLAB_API_KEY"):
                self.warnings.append("trackers: SwanLab's mode online needs SWANLAB_API_KEY; it will log offline")
            if tracker.mode == "local" and not installed("swanboard"):
                self.warnings.append(
                    "trackers: SwanLab's mode local shows nothing without its dashboard: "
                    "pip install 'memfactory[dashboard]'"
                )

    def _output(self) -> None:
        folder = expanded(self.config.output or "runs").absolute()
        standing = next(place for place in (folder, *folder.parents) if os.path.exists(place))
        if not is_dir(standing):
            self.problems.add(("output",), f"{standing} is a file, no folder")
        elif not os.access(standing, os.W_OK | os.X_OK):
            self.problems.add(("output",), f"the run's folder cannot be written: {standing} is not writable")


def _frozen(options: Options) -> bool:
    return isinstance(options, ModuleOptions) and options.interface == "inference"


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def low_bit_packages() -> frozenset[str]:
    """The packages with 8-bit moments that can be used here. torchao compiles its first update."""
    return frozenset(
        package
        for package in LOW_BIT_PACKAGES
        if installed(package) and (package != "torchao" or _compiler() is not None)
    )


def second_choice(options: TrainerOptions) -> Iterator[str]:
    """A warning if `optimizer.kind: auto` takes another kind on this machine's GPU than with all packages."""
    packages = low_bit_packages()
    kind = options.optimizer.kind_on(cuda=True, stochastic=options.stochastic, packages=packages)
    if kind == options.optimizer.kind_on(cuda=True, stochastic=options.stochastic):
        return
    lacking = [] if options.stochastic else ["bitsandbytes is not installed"]
    if kind == "adamw_offload":
        lacking.append("torchao finds no C compiler" if installed("torchao") else "torchao is not installed")
    extra = "torchao" if options.stochastic else "bitsandbytes"
    moments = "float32 moments in host memory" if kind == "adamw_offload" else "torchao's 8-bit moments"
    yield (
        f"train.optimizer.kind: auto takes {kind} ({moments}), because {' and '.join(lacking)}; "
        f"pip install 'memfactory[{extra}]' for {options.optimizer.kind_on(cuda=True, stochastic=options.stochastic)}"
    )


def _compiler() -> str | None:
    """The C compiler that torch would use; None without one."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)


def on_gpu(model: ModelConfig) -> bool:
    """Whether `model` can have a GPU to run on."""
    return has_cuda() and model.device != "cpu"


def has_cuda() -> bool:
    """Whether the installed torch can have a GPU to use, without importing it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if metadata.version("torch").endswith("+cpu"):
        return False
    return any(Path(device).exists() for device in ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"))


def _may_be_hub_id(text: str) -> bool:
    """Whether `text` could be a hub id: at most one slash, and no sign of a path."""
    return _HUB_ID.fullmatch(text) is not None
