"""The same work in several processes that know each other through gloo, forked from this one so that none imports."""

import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def in_processes(count, work, folder: Path, *, seconds=90) -> list[int]:
    """Call `work(rank)` in each of `count` processes and return their exit codes; what they print goes to
    `folder`/rank-N.txt."""
    port, children = free_port(), []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            _live(rank, count, port, work, folder)
        children.append(child)
    deadline, codes = time.monotonic() + seconds, {}
    while len(codes) < count:
        for rank, child in enumerate(children):
            if rank not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[rank] for rank in range(count)]


def _live(rank, count, port, work, folder):
    """Become the process `rank`; never returns."""
    code = 1
    try:
        said = os.open(folder / f"rank-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
        code = work(rank) or 0
    except BaseException:  # noqa: BLE001 - a forked process ends here, whatever ended its work
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
