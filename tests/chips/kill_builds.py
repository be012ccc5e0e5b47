"""Kill builds with SIGKILL, run them again, and compare with a build left in peace.

``kill_builds.py every-step|chain|any-moment FOLDER`` prints the number of kills, and fails where
an unfinished folder opens or a rerun ends in other bytes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import geopandas  # noqa: F401  (loaded before forking, so that children start at once)
from synthetic import two_regions

from bharateo.chips import build as building
from bharateo.chips.store import Dataset
from bharateo.config import PlanConfig, SplitConfig
from bharateo.errors import DatasetError

PLAN = PlanConfig("grid", 40, split=SplitConfig(50, 8, 0.2, 0.2))
STEPS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "fsync"}


def build(output: Path) -> None:
    building.build(two_regions(), PLAN, output, 0)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def killed(output: Path, arm: Callable[[], None], seconds: float | None = None) -> bool:
    """Build in a child that ``arm`` prepares, kill it after ``seconds``; whether it was killed."""
    child = os.fork()
    if child == 0:
        arm()
        build(output)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return os.WIFSIGNALED(status)


def at_step(number: int, output: Path) -> Callable[[], None]:
    """Die just before the child's ``number``-th touch of the output folder."""

    def arm() -> None:
        left = number

        def step(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in STEPS and str(output) in str(arguments[:1]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = lambda descriptor: step("fsync", (output,))
        sys.addaudithook(step)

    return arm


def check(output: Path, whole: dict[str, bytes]) -> None:
    """An interrupted folder either says so or is complete, and a rerun makes it whole."""
    try:
        Dataset.open(output)
    except DatasetError:
        pass
    else:
        there = contents(output)
        assert all(there[name] == whole[name] for name in whole)
    build(output)
    assert contents(output) == whole
    shutil.rmtree(output)


def every_step(folder: Path, whole: dict[str, bytes]) -> int:
    step = 0
    while killed(folder / "d", at_step(step, folder / "d")):
        check(folder / "d", whole)
        step += 1
    return step


def chain(folder: Path, whole: dict[str, bytes]) -> int:
    """One folder, killed again and again, a few steps further every time."""
    kills = 0
    while killed(folder / "d", at_step(9 + kills, folder / "d")):
        kills += 1
    check(folder / "d", whole)
    return kills


def any_moment(folder: Path, whole: dict[str, bytes]) -> int:
    moments = random.Random(0)
    started = time.perf_counter()
    build(folder / "timed")
    seconds = time.perf_counter() - started
    kills = 0
    while kills < 20:
        if killed(folder / "d", lambda: None, moments.uniform(0, seconds)):
            kills += 1
        check(folder / "d", whole)
    return kills


if __name__ == "__main__":
    building.SHARD_BYTES = 120_000
    os.fsync = lambda descriptor: None  # what is lost with the power, a killed process still has
    place = Path(sys.argv[2])
    build(place / "whole")
    ways = {"every-step": every_step, "chain": chain, "any-moment": any_moment}
    print(ways[sys.argv[1]](place, contents(place / "whole")))
