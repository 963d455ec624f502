"""The folder of a run: created for this run alone, locked while the run lasts, and still there at its end."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from memfactory.config import Resolved, load_config, load_values
from memfactory.config.correction import with_correction
from memfactory.config.readiness import on_gpu
from memfactory.config.trained import options_of_trainer
from memfactory.config.training import LoopOptions
from memfactory.errors import ConfigError, MemFactoryError
from memfactory.files.checkpoints import checkpoint_damage, checkpoints, newest_intact
from memfactory.files.locks import LOCK, folder_lock, new_folder
from memfactory.files.places import expanded

log = logging.getLogger("memfactory")
RUNS = Path("runs")
# A resumed run may differ from its first part in these keys; every other difference would make it another run.
RESUMABLE = (
    "output",
    "engine.temperature",
    "engine.top_p",
    "trackers",
    "eval.max_unknown_fraction",
    # Never read from the run's folder, so it differs if the run is its own config.
    "model.trust_remote_code",
    # Compared by themselves: their names depend on where they lie, and a mistake in one may have to be mended.
    "plugins",
)
RESUMABLE_ENGINE = (
    "max_batch",
    "max_batch_tokens",
    "prefill_tokens",
    "packed_weights_gib",
    "weight_copy",
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "sleep",
    "url",
    "base_url",
    "api_key_env",
    "stream",
    "weights_folder",
    "concurrency",
    "timeout",
    "retries",
    "backoff",
    "max_retry_wait",
    "startup_timeout",
    "update_timeout",
)
"""Keys of engines for resources and addresses: errors ask users to change them before a run goes on."""
_CORRECTION = "train.loss.sampler_correction"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run and the checkpoint to go on from (None: from the start). `identity` is the folder itself,
    even if another one takes its name later."""

    folder: Path
    checkpoint: Path | None
    identity: tuple[int, int]

    def check(self) -> None:
        """Raise MemFactoryError if the folder was deleted, moved or replaced since the run opened it."""
        if _identity(self.folder) != self.identity:
            raise MemFactoryError(
                f"the run folder {self.folder} was deleted, moved or replaced while the run was writing it. Later "
                "outputs are in a new folder of that name, without the earlier ones"
            )


@contextmanager
def open_run_folder(resolved: Resolved, resume: str | None) -> Iterator[RunFolder]:
    """The run's folder, locked. `resume` is None for a new run, "auto" for the newest run of this config (or the
    configured output), or the path of a run folder or checkpoint.

    Raises ConfigError if the folder and `resume` do not fit, InUseError if another process writes the folder. A
    folder that was made here and stayed empty is removed again.
    """
    folder, checkpoint = _chosen(resolved, resume)
    with ExitStack() as stack:
        if folder is None:
            folder = new_folder(RUNS, f"{resolved.name}-{datetime.now():%Y%m%d-%H%M%S}")
            stack.callback(_remove_if_empty, folder)
        elif not folder.exists():
            stack.callback(_remove_if_empty, folder)
        stack.enter_context(folder_lock(folder))
        if resume is None:
            _refuse_used(folder)
        else:
            if (folder / "config.yaml").is_file():
                refuse_another_config(folder, resolved)
            checkpoint = _newest(folder, resume) if checkpoint is None else _intact(checkpoint)
        _tell_of_other_plugins(folder, resolved)
        yield RunFolder(folder, checkpoint, _identity(folder) or (0, 0))


def _chosen(resolved: Resolved, resume: str | None) -> tuple[Path | None, Path | None]:
    """The run folder (None: a new one under runs/) and the checkpoint that `resume` names, if it names one."""
    if resume not in (None, "auto"):
        named = expanded(resume)
        if not named.is_dir():
            raise ConfigError(f"--resume {resume}: there is no such folder")
        return (named.parent.parent, named) if named.parent.name == "checkpoints" else (named, None)
    if resolved.config.output is not None:
        return expanded(resolved.config.output), None
    if resume is None:
        return None, None
    earlier = earlier_runs(RUNS, resolved.name)
    if not earlier:
        log.warning("--resume: %s holds no earlier run of %s, so a new one starts", RUNS, resolved.name)
        return None, None
    # Several seeds or settings of one config stand side by side; the run that goes on is the newest with these.
    same = [folder for folder in earlier if not _differences(folder, resolved)]
    folder = (same or earlier)[-1]
    log.info("--resume: continuing %s", folder)
    return folder, None


def earlier_runs(parent: Path, name: str) -> list[Path]:
    """The run folders that `name` was given in `parent`, oldest first."""
    form = re.compile(re.escape(name) + r"-(\d{8}-\d{6})(?:-(\d+))?")
    matches = [(form.fullmatch(path.name), path) for path in (parent.iterdir() if parent.is_dir() else ())]
    dated = [(match[1], int(match[2] or 1), path) for match, path in matches if match and path.is_dir()]
    return [path for _, _, path in sorted(dated)]


def _newest(folder: Path, resume: str) -> Path | None:
    """The newest intact checkpoint in `folder`; None if it never had any.

    Raises MemFactoryError if checkpoints exist and none of them is intact.
    """
    newest, wrong = newest_intact(folder / "checkpoints")
    if wrong and newest is None:
        raise MemFactoryError(
            f"--resume: none of the checkpoints in {folder / 'checkpoints'} can be used. To start anew, name another "
            "output. " + "; ".join(wrong)
        )
    for reason in wrong:
        log.warning("--resume: %s; falling back to %s", reason, newest)
    if newest is None and (resume != "auto" or any(path.name != LOCK for path in folder.iterdir())):
        log.warning("--resume: %s holds no checkpoint yet, so the run starts from its beginning", folder)
    elif newest is None:
        log.warning("--resume: %s holds no earlier run, so a new one starts", folder)
    return newest


def _intact(checkpoint: Path) -> Path:
    """`checkpoint`, which must be undamaged. Raises MemFactoryError, which names the intact ones."""
    reason = checkpoint_damage(checkpoint)
    if reason is not None:
        others = [path.name for path in checkpoints(checkpoint.parent) if checkpoint_damage(path) is None]
        there = f"intact are: {', '.join(others)}" if others else "no other checkpoint is intact"
        raise MemFactoryError(f"--resume {checkpoint} cannot be used: {reason}; {there}")
    return checkpoint


def _refuse_used(folder: Path) -> None:
    if any(path.name != LOCK for path in folder.iterdir()):
        raise ConfigError(
            f"the run folder {folder} is not empty. Continue it with --resume, or name another folder with output=..."
        )


def refuse_another_config(folder: Path, resolved: Resolved) -> None:
    """Raise ConfigError when the run in `folder` was started with settings that make it another run."""
    different = _differences(folder, resolved)
    if different:
        raise ConfigError([f"{folder} cannot be resumed with a different configuration:", *different])


def _tell_of_other_plugins(folder: Path, resolved: Resolved) -> None:
    """Warn if a run is resumed with other code than it was started with."""
    path = folder / "config.yaml"
    if not path.is_file():
        return
    before = load_values(path).get("plugins") or []
    now = [plugin.copy for plugin in resolved.plugins]
    if now != before:
        log.warning(
            "%s was started with the plugins %s; it continues with %s",
            folder,
            before or "(none)",
            now or "(none)",
        )


def _differences(folder: Path, resolved: Resolved) -> list[str]:
    """The settings of the run in `folder` that are others in `resolved`, a line each."""
    path = folder / "config.yaml"
    if not path.is_file():
        return []
    try:
        before, now = _leaves(load_values(path)), _leaves(resolved.values)
    except ConfigError as error:
        return list(error.problems)
    different = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if any(key not in before or key == _CORRECTION for key in different):
        before |= _read_today(folder, resolved, before, now)
    return [
        f"{key}: {before.get(key)!r} in {folder}, now {now.get(key)!r}"
        for key in different
        if before.get(key) != now.get(key) and not _may_differ(key, str(now.get("train.name")))
    ]


def _read_today(
    folder: Path, resolved: Resolved, before: Mapping[str, object], now: Mapping[str, object]
) -> dict[str, object]:
    """The keys that an earlier version, which wrote `before`, did not know, at their defaults for that run.

    A `sampler_correction` that stands for that of `resolved` is given as it is written there.
    """
    try:
        earlier = load_config(folder)
    except ConfigError:
        return {}
    values = {key: value for key, value in _leaves(earlier.values).items() if key in now and key not in before}
    if _CORRECTION in before and _correction(earlier) == _correction(resolved):
        values[_CORRECTION] = now.get(_CORRECTION)
    return values


def _correction(resolved: Resolved) -> object:
    """The importance correction of a run on this machine, also where `auto` stands for it; None if it has none."""
    config = resolved.config
    if config.train is None or not isinstance(config.train.options, LoopOptions):
        return None
    options = with_correction(config.train.options, config, cuda=on_gpu(config.model))
    return getattr(getattr(options, "loss", None), "sampler_correction", None)


def _may_differ(key: str, trainer: str) -> bool:
    """Whether a run of `trainer` may be resumed with another value of `key`."""
    options = options_of_trainer(trainer)
    if options is not None and key.partition(".")[0] == "train":
        return key.partition(".")[2] in options.resumable
    if key.startswith(("engine.", "engines.")) and key.rpartition(".")[2] in RESUMABLE_ENGINE:
        return True
    return any(key == k or key.startswith(k + ".") for k in RESUMABLE)


def _leaves(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, Mapping) and value:
        return {k: v for name, part in value.items() for k, v in _leaves(part, f"{path}{name}.").items()}
    return {path.rstrip("."): list(value) if isinstance(value, tuple) else value}


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
