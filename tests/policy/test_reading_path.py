"""One optimizer step can be read without jumping: it changes file at most ten times."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType

import memfactory.policy
from memfactory.policy.policy import Policy
from small_policy import small_policy, some_turns

ROOM = Path(memfactory.policy.__file__).parent


def functions_in_reading_order(policy: Policy) -> list[tuple[str, str]]:
    """File and name of every function of the room that one update calls, each once, in the order of its first call.

    Comprehensions and lambdas are read with the function around them, and the gradient of an autograd function with
    its forward pass. Files of other rooms are left out: the model's layers below, and registries and options.
    """
    read: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, argument: object) -> None:
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        gradient = name == "backward" and "ctx" in frame.f_code.co_varnames
        if ROOM in file.parents and not name.startswith("<") and not gradient:
            read[str(file.relative_to(ROOM)), f"{name}:{frame.f_code.co_firstlineno}"] = None

    turns = policy.score_reference(some_turns())
    before = sys.gettrace()
    sys.settrace(note)
    try:
        policy.update(turns)
    finally:
        sys.settrace(before)
    return list(read)


def test_an_update_changes_file_at_most_ten_times(small_model_path: Path) -> None:
    files = [file for file, _ in functions_in_reading_order(small_policy(small_model_path, loss={"kl_coef": 0.1}))]
    changes = [file for before, file in pairwise(files) if file != before]
    assert files[0] == "policy.py" and files[-1] == "optimizer.py"
    assert len(changes) <= 10, changes
