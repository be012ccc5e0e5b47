"""The memory allocator of this process: whether freed memory is kept for later or given back."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_ONE_MIB = 1 << 20
_ONE_GIB = 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc keep freed arrays instead of returning them to the kernel, for training.

    Without it a training step pays thousands of page faults. Returns whether it took effect
    (glibc only). It changes the whole process, so verbs call it, never an import. PyTorch is asked
    for huge pages too (Linux), which it hears if it has not allocated anything yet.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    return _mallopt({_M_MMAP_THRESHOLD: _ONE_GIB, _M_TRIM_THRESHOLD: _ONE_GIB})


def return_freed_memory() -> bool:
    """Let glibc return freed arrays at once, and keep few pools for threads, for building.

    Left alone it keeps up to 32 MB pieces in a pool for every thread, half as much again as a
    build needs. Returns whether it took effect (glibc only).
    """
    return _mallopt({_M_MMAP_THRESHOLD: _ONE_MIB, _M_TRIM_THRESHOLD: _ONE_MIB, _M_ARENA_MAX: 2})


def _mallopt(settings: dict[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    took = [mallopt(option, value) for option, value in settings.items()]
    return all(took)
