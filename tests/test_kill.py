"""Both long verbs, as processes of their own, ended at random moments and run again.

``BHARATEO_KILLS`` sets how often each is ended, half of the time by SIGKILL and half by SIGTERM.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from bharateo.chips.store import Dataset
from bharateo.errors import DatasetError, RunError
from bharateo.training.run import Run
from small_datasets import contents
from tiny_mirror import write_config, write_mirror

KILLS = int(os.environ.get("BHARATEO_KILLS", "5"))
LARGER = ["--roi", "home=77.23,28.61,240", "--roi", "away=76.10,27.90,240"]
LONGER = ["--epochs", "8", "--set", "training.checkpoint_seconds=0.02"]


def last_write(folder: Path) -> int:
    """When something in the folder was last written, in nanoseconds."""
    times = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it took its final name just now
            times.append(path.stat().st_mtime_ns)
    return max(times)


@dataclass
class Verb:
    """A command and where it writes; ``work_s`` is how long it takes from its first file on."""

    arguments: list[str]
    output: Path
    work_s: float = 0.0

    def start(self) -> subprocess.Popen:
        """Start it, and wait until it writes something or ends."""
        command = [sys.executable, "-m", "bharateo", *self.arguments]
        before = last_write(self.output)
        process = subprocess.Popen(
            [*command, "--output", str(self.output)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while last_write(self.output) == before and process.poll() is None:
            time.sleep(0.002)
        return process

    def run(self) -> None:
        """Run it undisturbed, and take the time."""
        process = self.start()
        started = time.monotonic()
        error = process.communicate()[1]
        self.work_s = time.monotonic() - started
        assert process.returncode == 0, error

    def ended(self, after_s: float, by: signal.Signals) -> bool:
        """End it so long after its first write; whether it had not ended by itself before."""
        process = self.start()
        try:
            error = process.communicate(timeout=after_s)[1]
        except subprocess.TimeoutExpired:
            process.send_signal(by)
            process.communicate()
            return True
        assert process.returncode == 0, error
        return False


def kill_again_and_again(verb, work_s, check):
    """End the verb ``KILLS`` times, in one folder as long as it does not end, and run it again."""
    moments = random.Random(verb.arguments[0])
    kills = 0
    while kills < KILLS:
        by = signal.SIGTERM if kills % 2 else signal.SIGKILL
        if verb.ended(moments.uniform(0, 0.5 * work_s), by):
            kills += 1
            check()
        else:
            verb.output = verb.output.with_name(f"{verb.output.name}-{kills}")
    verb.run()


@pytest.mark.slow
@pytest.mark.long
def test_ended_again_and_again_and_run_again_everything_ends_in_the_same_bytes(tmp_path):
    write_mirror(tmp_path / "mirror")
    config = str(write_config(tmp_path))
    arguments = ["build", config, "--worldcover-root", str(tmp_path / "mirror"), *LARGER]
    whole, verb = (Verb(arguments, tmp_path / name) for name in ("dataset", "killed-dataset"))
    whole.run()

    def dataset_is_unfinished_or_whole():
        try:
            Dataset.open(verb.output)
        except DatasetError:
            return
        there = contents(verb.output)
        expected = contents(whole.output)
        assert all(there[name] == expected[name] for name in expected)

    kill_again_and_again(verb, whole.work_s, dataset_is_unfinished_or_whole)
    assert contents(verb.output) == contents(whole.output)

    arguments = ["pretrain", config, "--dataset", str(whole.output), *LONGER]
    whole, verb = (Verb(arguments, tmp_path / name) for name in ("run", "killed-run"))
    whole.run()

    def run_is_unfinished_or_whole():
        try:
            Run.open(verb.output)
        except RunError:
            return
        weights = (run.output / "model.safetensors" for run in (verb, whole))
        assert len({path.read_bytes() for path in weights}) == 1

    kill_again_and_again(verb, whole.work_s, run_is_unfinished_or_whole)
    there, expected = contents(verb.output), contents(whole.output)
    assert there.keys() == expected.keys()
    for name in ("model.safetensors", "config.yaml", "checkpoints/last.safetensors"):
        assert there[name] == expected[name]
    ours, theirs = (
        [json.loads(line) for line in files["history.jsonl"].splitlines()]
        for files in (there, expected)
    )
    for row in (*ours, *theirs):
        del row["chips_per_s"], row["data_wait"]
    assert ours == theirs
