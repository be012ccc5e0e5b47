"""Memory does not grow with the place: measured on generated scenes, each in its own process."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.long
def test_four_times_the_ground_takes_the_same_memory(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import composite_memory as benchmark

    peaks_mb = [benchmark.measured(tmp_path / str(side), side, ["B04"])[1] for side in (2048, 4096)]
    # All pixels of the larger one, with their observations, would be 126 MB more.
    assert peaks_mb[1] < peaks_mb[0] + 60
