"""Who cuts the units: this process, a pool of processes, or a Dask cluster. Same code, same result.

Each way takes jobs in order, keeps a bounded number under way, and gives outcomes as they come. A
worker that dies takes nothing with it but the jobs it had, which are given out again.

Whoever cuts a unit writes its pixels to the build's folder and answers in a few bytes. Workers of a
cluster must therefore share that folder, and every local folder that is read, under the same paths.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bharateo.chips.cut import Cutter, Job
from bharateo.chips.scratch import Kept, Scratch
from bharateo.errors import BuildError, ConfigError, SourceError, UnreachableError
from bharateo.machine import num_cores
from bharateo.memory import return_freed_memory
from bharateo.pixels.http import Traffic, web_address

Progress = Callable[[int, int, str], None]
"""Told ``(done, total, message)``; ``done`` starts again with every message."""

Outcome = Kept | SourceError

_JOBS_AHEAD = 2
"""Jobs under way for every worker: one that it does, one that waits for it."""

_MOST_DEATHS = 5
"""How often workers may die in a row before the build gives up."""

_LOOK_EVERY_S = 0.05
_PATIENCE_S = 60.0
"""How long a cluster may be without a worker: they may be about to come."""

_UNITS_FOR_ONE = 4
"""A process more is started for every so many units; a few are done faster without."""


@dataclass(frozen=True)
class Workers:
    """Who reads: ``processes`` here (None: as many as there are cores, fewer for little work), or
    the workers of the Dask ``scheduler`` at an address such as ``tcp://10.0.0.1:8786``.
    """

    processes: int | None = None
    scheduler: str | None = None


def run_all(
    cutter: Cutter, jobs: Mapping[int, Job], workers: Workers | None, attempts: int
) -> Iterator[tuple[int, Outcome]]:
    """Every job's number with what was kept, or with the error of its last attempt.

    Without ``workers`` this process does it all: other processes import the program that started
    them again, which scripts and notebooks are seldom made for. Errors other than a source's own
    come out as they are.

    Raises:
        ConfigError: a cluster's workers would look for the root of a source, or for a scene's
            file, below whatever folder they have been started in.
    """
    workers = workers or Workers(processes=1)
    if workers.scheduler:
        places = [*cutter.landcover.places()]
        places += [each for job in jobs.values() for each in cutter.image.places(job.scene)]
        for place in dict.fromkeys(places):
            if web_address(place) is None and not Path(place).is_absolute():
                raise ConfigError(
                    f"{place} is a relative path, which the workers of a scheduler would look for "
                    "in folders of their own: give the whole path, e.g. "
                    f"{Path(place).absolute()}, of a folder that all workers share"
                )
        return _with_dask(cutter, jobs, workers.scheduler, attempts)
    num = workers.processes or min(num_cores(), len(jobs) // _UNITS_FOR_ONE)
    if num <= 1 or len(jobs) <= 1:
        return _one_by_one(cutter, jobs, attempts)
    return _with_pool(cutter, jobs, num, attempts)


class Tally:
    """Counts what units bring in, and says so: chips a second, bytes and requests, time left."""

    def __init__(self, num_units: int, num_done: int, progress: Progress) -> None:
        self.num_units, self.num_done = num_units, num_done
        self.failed = 0
        self._progress = progress
        self._start, self._first_done = time.monotonic(), num_done
        self._chips = 0
        self._traffic = Traffic()

    def add(self, kept: Kept) -> None:
        """Count a unit that is done."""
        self.num_done += 1
        self._chips += kept.num_chips
        self._traffic.requests += kept.traffic.requests
        self._traffic.bytes += kept.traffic.bytes

    def say(self, what: str) -> None:
        """Tell how far it has come."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        parts = [what]
        if self._chips:
            parts = [f"{what}, {self._chips:,} chips, {self._chips / seconds:.0f} chips/s"]
        if self._traffic.requests:
            megabytes = self._traffic.bytes / 1e6
            parts.append(
                f"{megabytes:,.1f} MB in {self._traffic.requests:,} requests, "
                f"{megabytes / seconds:.1f} MB/s"
            )
        done = self.num_done - self._first_done
        if done and self.num_done < self.num_units:
            left = int(seconds / done * (self.num_units - self.num_done))
            parts.append(f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
        if self.failed:
            parts.append(f"{self.failed} failed")
        self._progress(self.num_done, self.num_units, ", ".join(parts))


class _Queue:
    """Jobs to do, those that failed again at the end."""

    def __init__(self, jobs: Mapping[int, Job], attempts: int) -> None:
        self.jobs = jobs
        self.waiting = deque(jobs)
        self.left = dict.fromkeys(jobs, attempts)

    def outcome(self, index: int, outcome: Outcome) -> Outcome | None:
        """The outcome if it is final; None if the job is to be tried again."""
        self.left[index] -= 1
        if isinstance(outcome, UnreachableError) and self.left[index] > 0:
            self.waiting.append(index)
            return None
        return outcome


def _one_by_one(
    cutter: Cutter, jobs: Mapping[int, Job], attempts: int
) -> Iterator[tuple[int, Outcome]]:
    queue = _Queue(jobs, attempts)
    while queue.waiting:
        index = queue.waiting.popleft()
        outcome = queue.outcome(index, cutter.do(jobs[index]))
        if outcome is not None:
            yield index, outcome


# Other processes get the cutter as bytes, once unpickled by each.


@lru_cache(maxsize=2)
def _unpickled(cutter: bytes) -> Cutter:
    opened: Cutter = pickle.loads(cutter)
    return opened


def _remote(cutter: bytes, job: Job) -> Outcome:
    return _unpickled(cutter).do(job)


def _start_worker() -> None:
    """Keep little memory, and end when the process that started this one is gone, however."""
    return_freed_memory()
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _new_pool(num: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would copy open files and locks
    return ProcessPoolExecutor(num, context, initializer=_start_worker)


def _with_pool(
    cutter: Cutter, jobs: Mapping[int, Job], num: int, attempts: int
) -> Iterator[tuple[int, Outcome]]:
    queue, packed = _Queue(jobs, attempts), pickle.dumps(cutter)
    pool, deaths = _new_pool(num), 0
    under_way: dict[Future[Outcome], int] = {}
    try:
        while queue.waiting or under_way:
            try:
                while queue.waiting and len(under_way) < num * _JOBS_AHEAD:
                    index = queue.waiting[0]
                    under_way[pool.submit(_remote, packed, jobs[index])] = index
                    queue.waiting.popleft()
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    outcome = queue.outcome(under_way[future], future.result())
                    index = under_way.pop(future)
                    deaths = 0
                    if outcome is not None:
                        yield index, outcome
            except BrokenProcessPool as error:
                deaths += 1
                if deaths > _MOST_DEATHS:
                    raise _too_many_deaths() from error
                queue.waiting.extendleft(sorted(under_way.values(), reverse=True))
                under_way.clear()
                pool.shutdown(wait=False)
                pool = _new_pool(num)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()


def _with_dask(
    cutter: Cutter, jobs: Mapping[int, Job], scheduler: str, attempts: int
) -> Iterator[tuple[int, Outcome]]:
    try:
        from distributed import Client
        from distributed.client import FutureCancelledError
        from distributed.comm.core import CommClosedError
    except ImportError as error:
        raise BuildError(
            "--scheduler needs Dask: run `pip install 'bharateo[cluster]'` here and on every worker"
        ) from error
    try:
        client = Client(scheduler, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        raise BuildError(
            f"the Dask scheduler {scheduler} does not answer ({error}): check its address, as "
            "`dask scheduler` prints it, e.g. tcp://10.0.0.1:8786"
        ) from error
    try:
        yield from _on_cluster(client, cutter, jobs, attempts)
    except (FutureCancelledError, CommClosedError) as error:
        raise BuildError(
            f"the Dask scheduler {scheduler} does not answer any more "
            f"({type(error).__name__}): start it again; what was read is kept, run the same "
            "command again"
        ) from error


def _on_cluster(
    client: Any, cutter: Cutter, jobs: Mapping[int, Job], attempts: int
) -> Iterator[tuple[int, Outcome]]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    queue, packed = _Queue(jobs, attempts), pickle.dumps(cutter)
    with client:
        under_way: dict[Any, int] = {}
        completed = as_completed(loop=client.loop)
        deaths = 0

        def num_workers() -> int:
            return len(client.scheduler_info(n_workers=-1)["workers"])

        def wait_for_one() -> None:
            """Wait for a job to end, but not for ever where there is nobody to do it."""
            last_seen = time.monotonic()
            while not completed.has_ready():
                time.sleep(_LOOK_EVERY_S)
                if num_workers():
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > _PATIENCE_S:
                    raise BuildError(
                        f"the Dask scheduler has had no worker for {_PATIENCE_S:g} s: start some "
                        "(`dask worker ADDRESS`); what was read is kept, run the same command again"
                    )

        def give_out() -> None:
            most = max(num_workers(), 1) * _JOBS_AHEAD
            while queue.waiting and len(under_way) < most:
                index = queue.waiting.popleft()
                future = client.submit(_remote, packed, jobs[index], pure=False)
                under_way[future] = index
                completed.add(future)

        give_out()
        while under_way:
            wait_for_one()
            future = next(completed)
            index = under_way.pop(future)
            try:
                outcome = queue.outcome(index, future.result())
                deaths = 0
            except KilledWorker as error:
                deaths += 1
                if deaths > _MOST_DEATHS:
                    raise _too_many_deaths() from error
                queue.waiting.append(index)
                outcome = None
            future.release()
            give_out()
            if isinstance(outcome, Kept):
                _wait_until_seen(cutter.scratch, index)
            if outcome is not None:
                yield index, outcome


def _wait_until_seen(scratch: Scratch, index: int) -> None:
    """Wait until what a worker says it has written is there: network folders take their time."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while not scratch.is_cut(index):
        if time.monotonic() > give_up_at:
            raise BuildError(
                f"a worker has written unit {index} to {scratch.folder}, and it is not there: "
                "--output must be a folder that all workers share with this machine, under the "
                "same path"
            )
        time.sleep(_LOOK_EVERY_S)


def _too_many_deaths() -> BuildError:
    return BuildError(
        "workers die again and again, most likely for lack of memory: start fewer (--workers) or "
        "make plan.unit_blocks smaller; what was read is kept, run the same command again"
    )
