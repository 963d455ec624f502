"""The processes that train together, and sums over all of them (docs/decisions/0001). It knows no model."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list

from memfactory.environment import process_count
from memfactory.errors import ConfigError, ProcessEndedError

T = TypeVar("T")
log = logging.getLogger("memfactory")
SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# Longer than any evaluation takes; the launcher reports a process that has died at once.
COLLECTIVE_TIMEOUT = timedelta(days=2)
# The words of gloo and NCCL when the other side has ended.
CLOSED = re.compile(r"[Cc]onnection (closed|reset) by peer")
BROKEN = re.compile(rf"gloo|NCCL|{CLOSED.pattern}|[Ss]ocket [Tt]imeout")
POLL, GRACE = 1.0, 120.0


def make_accelerator(device: torch.device) -> Accelerator:
    """Accelerate for `device`. While one process evaluates, saves or samples longer, the others wait for it."""
    timeout = InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[timeout])


def check_processes(accelerator: Accelerator) -> None:
    """Raise ConfigError if Accelerate itself is to shard the model."""
    if accelerator.distributed_type not in SUPPORTED:
        raise ConfigError(
            "training runs in one process or in several that torchrun or accelerate launch --multi_gpu starts, not "
            f"under {accelerator.distributed_type.value}; to shard the model over them write train.shard: fsdp2"
        )


def leave_processes() -> None:
    """Leave the group of processes, if this is one of several: one that ends as a member can abort at its exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def reporting_ended_process() -> Iterator[None]:
    """Raise ProcessEndedError if another process has ended: gloo and NCCL only report a broken connection."""
    try:
        yield
    except RuntimeError as error:
        if process_count() == 1 or not (isinstance(error, torch.distributed.DistError) or BROKEN.search(str(error))):
            raise
        # Without a closed connection the cause is less clear, and the library's own words may say more.
        words = "" if CLOSED.search(str(error)) else f" ({str(error).strip().partition(chr(10))[0]})"
        raise ProcessEndedError(
            f"another process of this run has ended, so the others cannot go on; the cause is its own error{words}"
        ) from error


@contextmanager
def watched_launcher() -> Iterator[None]:
    """End this process when the launcher of several has ended, as the launcher would have: nobody else does.

    It gets SIGTERM, so that the last whole step is saved, and ends without ceremony after `GRACE` seconds.
    """
    if process_count() == 1:
        yield
        return
    launcher, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(POLL):
            if os.getppid() != launcher:
                log.error("the launcher of this run is gone, so it stops")
                os.kill(os.getpid(), signal.SIGTERM)
                if not done.wait(GRACE):
                    os._exit(1)
                return

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def wait_for_all() -> None:
    """Wait until every process of the group is here."""
    PartialState().wait_for_everyone()


def of_first_process(value: T | None) -> T:
    """The first process's `value`, which must not be None, in all of them. Every process must call it."""
    values = [value]
    broadcast_object_list(values)
    (first,) = values
    if first is None:
        raise ValueError("the first process has no value to send")
    return first
