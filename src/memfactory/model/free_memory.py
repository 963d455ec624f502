"""Memory that was freed but that the C library still holds: returned to the system after large work on a CPU."""

from __future__ import annotations

import ctypes
import sys


def return_free_memory() -> None:
    """Have the C library return freed memory to the system; glibc keeps pages below memory in use.

    Pages that are needed again come fresh from the system, which takes a fraction of a second for a GiB.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
