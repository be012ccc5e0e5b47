"""The machine: arithmetic precision of one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch


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
