"""A composite killed at any moment: the rerun ends in the same bytes. And its memory."""

import os
import signal
import time
from random import Random

import pytest

from bharateo.composite import ground
from composite.test_composite import check, one_zone
from composite.worlds import WEST_BOX, catalogue, command, two_zone_days
from small_datasets import contents

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of this process"),
]

KILLS = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return two_zone_days(tmp_path_factory.mktemp("days"))


@pytest.fixture(autouse=True)
def many_windows(monkeypatch):
    monkeypatch.setattr(ground, "WINDOW_PX", 128)


def test_windows_are_the_whole_in_every_pixel(world, tmp_path):
    with catalogue(one_zone(world, "2021-12-05", "2022-01-14", "2022-02-03")) as composite:
        assert composite(tmp_path / "c.tif", box=WEST_BOX) == 0
    check(tmp_path / "c.tif", one_zone(world, "2021-12-05", "2022-01-14", "2022-02-03"),
          box=WEST_BOX)  # fmt: skip


def test_killed_ten_times_it_ends_in_the_same_bytes(world, tmp_path):
    """With a scene that is dropped on the way, so that windows are made again."""
    wrong = one_zone(world, "2021-12-05", "2022-01-14", "2022-02-03", flag=True)
    with catalogue(wrong) as composite:
        started = time.monotonic()
        assert composite(tmp_path / "whole" / "c.tif", box=WEST_BOX) == 0
        seconds = time.monotonic() - started
        whole = contents(tmp_path / "whole")
        random, num_killed, folder = Random(3), 0, 0
        while num_killed < KILLS:
            output = tmp_path / f"killed-{folder}" / "c.tif"
            words = command(composite.url, output, box=WEST_BOX)
            if killed(words, seconds * random.uniform(0.02, 0.4)):
                num_killed += 1
                assert not output.with_suffix(".json").exists()
            else:
                assert contents(output.parent) == whole
                folder += 1
        assert composite(output, box=WEST_BOX) == 0
        assert contents(output.parent) == whole


def killed(words, after_s):
    """Kill a fork that runs a command so long after its start; False if it ended before."""
    from bharateo.verbs.cli import main

    child = os.fork()
    if child == 0:
        os._exit(main(words))
    deadline = time.monotonic() + after_s
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0
            return False
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
