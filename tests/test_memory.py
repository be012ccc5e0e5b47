"""The allocator is told what to do where there is one that listens."""

import subprocess
import sys

import pytest

from bharateo import memory

PEAK = """
import resource, threading, numpy as np
from bharateo.memory import keep_freed_memory, return_freed_memory
assert {way}()
for _ in range(4):
    arrays = [np.ones(2_000_000, np.uint8) for _ in range(60)]
    del arrays
print(open("/proc/self/statm").read().split()[1])
"""


def resident_pages(way):
    code = [sys.executable, "-c", PEAK.format(way=way)]
    return int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_arrays_stay_for_training_and_go_for_building():
    assert resident_pages("keep_freed_memory") > resident_pages("return_freed_memory") + 20_000


def test_the_allocator_is_left_alone_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not memory.keep_freed_memory()
    assert not memory.return_freed_memory()
