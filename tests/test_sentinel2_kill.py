"""Builds with many processes, killed at random moments: the rerun ends in the same bytes.

Units wait for the server, so that there is time to kill somebody.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO

import pytest

from bharateo.chips.store import Dataset
from bharateo.errors import DatasetError
from sentinel2_rig import done, served, two_zone_world
from small_datasets import contents

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
]

KILLS = 10
PATIENCE_S = 180.0
LATENCY_S = 0.06


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    """Two zones read block by block: 13 units."""
    world = two_zone_world(tmp_path_factory.mktemp("world"))
    with served(world, data__plan__unit_blocks="[1,1]") as rig:
        yield rig


@pytest.fixture(scope="module")
def whole(rig, tmp_path_factory):
    """The files of a build that nobody disturbed, by one process."""
    output = tmp_path_factory.mktemp("whole") / "dataset"
    assert done(rig.build(output))
    rig.files.latency_s = LATENCY_S
    return contents(output)


# Processes


@dataclass
class Process:
    """A process of this Python, and what it says."""

    popen: subprocess.Popen
    log: IO[bytes]

    @property
    def pid(self):
        return self.popen.pid

    def has_ended(self):
        return self.popen.poll() is not None

    def kill(self):
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def said(self):
        self.log.seek(0)
        return self.log.read().decode()

    def ends_well(self):
        assert self.popen.wait(PATIENCE_S) == 0, self.said()


@contextlib.contextmanager
def running(*command):
    """A process that does not outlive the block."""
    with tempfile.TemporaryFile() as log:
        popen = subprocess.Popen(
            [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        process = Process(popen, log)
        try:
            yield process
        finally:
            process.kill()


def building(command):
    return running("-m", "bharateo", *command)


def wait_for(condition, what):
    """Wait until something holds; it is an error if it takes a minute."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"waited in vain for {what}"
        time.sleep(0.005)


def wait_for_units(process, output):
    """Wait until a build has read some."""
    wait_for(lambda: process.has_ended() or num_units(output) >= 2, "the first units")
    assert not process.has_ended(), process.said()


def status(pid):
    """(parent, start time) of a process that runs, None of one that does not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), fields[19])


def children(pid):
    """The processes that a process started and that run: pid -> start time."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = {each: status(each) for each in pids}
    return {each: told[1] for each, told in found.items() if told and told[0] == pid}


def pool_workers(pid):
    """The children that read, without Python's own helper."""
    return [
        child for child in children(pid)
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]  # fmt: skip


def survivors(processes):
    return [pid for pid, start in processes.items() if (status(pid) or (0, ""))[1] == start]


def num_units(output):
    with contextlib.suppress(FileNotFoundError):  # they have just gone into shards
        return len(list(output.glob(".build/*/units/*/*.json")))
    return 0


def is_unfinished_or_whole(output, whole):
    try:
        Dataset.open(output)
    except DatasetError:
        return True
    there = contents(output)
    return all(there[name] == whole[name] for name in whole)


# A pool of processes


@pytest.mark.long
def test_killed_ten_times_the_build_ends_in_the_same_bytes_and_leaves_no_worker(
    rig, whole, tmp_path
):
    folders = (tmp_path / f"dataset-{number}" for number in itertools.count())
    output, random = next(folders), Random(7)
    seconds = seconds_of_work(rig.build(output, "--workers", "2"), output)
    moments = [seconds * (number + random.random()) / KILLS for number in range(KILLS)]
    output = next(folders)
    for moment in random.sample(moments, KILLS):
        while not killed(rig.build(output, "--workers", "2"), output, moment):
            assert contents(output) == whole
            output, moment = next(folders), 0.8 * moment  # the machine is less busy now
        assert is_unfinished_or_whole(output, whole)
        if (output / "dataset.json").exists():
            output = next(folders)
    with building(rig.build(output, "--workers", "2")) as process:
        process.ends_well()
    assert contents(output) == whole


def seconds_of_work(command, output):
    """How long a build takes from its first write on."""
    with building(command) as process:
        wait_for(lambda: process.has_ended() or output.exists(), "the first file")
        started = time.monotonic()
        process.ends_well()
        return time.monotonic() - started


def killed(command, output, after_s):
    """Kill a build so long after its first write, with no child left; False if it ended before."""
    with building(command) as process:
        wait_for(lambda: process.has_ended() or output.exists(), "the first file")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(after_s)
            process.ends_well()
            return False
        workers = children(process.pid)
        process.kill()
        wait_for(lambda: not survivors(workers), "the workers' end")
        return True


def test_a_killed_worker_is_replaced_and_the_build_goes_on(rig, whole, tmp_path):
    output = tmp_path / "dataset"
    with building(rig.build(output, "--workers", "2")) as process:
        wait_for_units(process, output)
        first, *_ = pool_workers(process.pid)
        os.kill(first, signal.SIGKILL)
        process.ends_well()
    assert contents(output) == whole


# A Dask cluster


@contextlib.contextmanager
def cluster(folder, num_workers):
    """A scheduler with its address, and its workers."""
    where = folder / "scheduler.json"
    place = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", ":0",
             "--scheduler-file", str(where)]  # fmt: skip
    frugal = ["--no-nanny", "--nthreads", "1", "--memory-limit", "1GB", "--death-timeout", "60",
              "--local-directory", str(folder)]  # fmt: skip
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(
            running("-m", "distributed.cli.dask_scheduler", "--port", "0", *place)
        )
        wait_for(lambda: where.exists() or scheduler.has_ended(), "the scheduler")
        assert not scheduler.has_ended(), scheduler.said()
        workers = [
            stack.enter_context(running("-m", "distributed.cli.dask_worker", *frugal, *place))
            for _ in range(num_workers)
        ]
        yield scheduler, json.loads(where.read_text())["address"], workers


@pytest.mark.long
def test_a_cluster_gives_the_same_bytes_whoever_is_killed(rig, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path))
    with cluster(tmp_path, 3) as (scheduler, address, workers):
        output = tmp_path / "worker-killed"
        with building(rig.build(output, "--scheduler", address)) as process:
            wait_for_units(process, output)
            workers[0].kill()
            process.ends_well()
        assert contents(output) == whole

        output = tmp_path / "client-killed"
        with building(rig.build(output, "--scheduler", address)) as process:
            wait_for_units(process, output)
            process.kill()
        assert is_unfinished_or_whole(output, whole)
        with building(rig.build(output, "--scheduler", address)) as process:
            process.ends_well()
        assert contents(output) == whole

        output = tmp_path / "scheduler-killed"
        with building(rig.build(output, "--scheduler", address)) as process:
            wait_for_units(process, output)
            scheduler.kill()
            assert process.popen.wait(PATIENCE_S) == 1
            said = process.said()
        assert f"\nbharateo: BuildError: the Dask scheduler {address} does not answer" in said
    assert done(rig.build(output)), "without the cluster it goes on"
    assert contents(output) == whole
