"""The machine: arithmetic precision and the memory allocator of one process."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_ONE_GIB = 1 << 30


def has_native_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_precision(precision: str) -> str:
    """``auto`` becomes ``bf16`` where the processor has it and ``fp32`` elsewhere."""
    if precision == "auto":
        return "bf16" if has_native_bf16() else "fp32"
    return precision


def autocast(precision: str) -> Callable[[], AbstractContextManager[object]]:
    """A maker of contexts in which matrix products run in ``fp32`` or ``bf16``."""
    if precision == "bf16":
        return partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext


def raise_allocator_thresholds() -> bool:
    """Let glibc keep freed activations instead of returning them to the kernel at every step.

    Without it a training step pays thousands of page faults. Returns whether it took effect
    (glibc only). It changes the whole process, so verbs call it, never an import.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _ONE_GIB) and mallopt(_M_TRIM_THRESHOLD, _ONE_GIB))
