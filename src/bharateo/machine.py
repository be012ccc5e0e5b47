"""What a process may use of its machine: cores, native bf16, memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_native_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cores_of_quota(root: Path = Path("/")) -> float | None:
    """The cores' worth of time that a control group (version 2) leaves; None without a limit.

    ``root`` holds ``sys``.
    """
    with suppress(OSError, ValueError):
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return float(quota) / float(period)
    return None


def memory_bytes(root: Path = Path("/")) -> tuple[float, float] | None:
    """Memory available and in all: the machine's, or what its control group leaves of it.

    None where the system does not tell (not Linux). ``root`` holds ``proc`` and ``sys``.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = {line.split(":")[0]: float(line.split()[1]) for line in lines}
    available, total = kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    for limit_file, used_file in _GROUP_FILES:
        limit, used = _number(root / limit_file), _number(root / used_file)
        if limit is not None and used is not None and limit < total:
            # What files occupy is given back when it is wanted.
            kept = _number((root / used_file).with_name("memory.stat"), "inactive_file") or 0.0
            available, total = min(available, max(0.0, limit - used + kept)), limit
    return available, total


_V1 = "sys/fs/cgroup/memory"
_GROUP_FILES = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    (f"{_V1}/memory.limit_in_bytes", f"{_V1}/memory.usage_in_bytes"),
)
"""Limit and use of this process's control group, in versions 2 and 1."""


def _number(path: Path, key: str | None = None) -> float | None:
    """The number in a file, or beside a key in it; None without one (``max``: no limit)."""
    try:
        words = path.read_text().split()
        return float(words[0] if key is None else words[words.index(key) + 1])
    except (OSError, ValueError, IndexError):
        return None


def first_rank() -> bool:
    """Whether this process speaks: under ``torchrun`` every rank runs a verb, and one says so."""
    return os.environ.get("RANK", "0") == "0"
