"""Benchmarks that others run: on any machine, and on chips that do not come with the project."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bharateo.chips.store import Dataset
from bharateo.config import load_config
from bharateo.evaluation import ablation
from bharateo.verbs.cli import main
from small_datasets import many_bands, small_config, small_dataset

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WITHOUT_RASTERS = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rasterio", "odc", "pyproj", "geopandas", "shapely", "affine",
                                  "pystac", "pystac_client", "planetary_computer", "mgrs"}:
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
sys.argv = ["gpu.py", "--sizes", "nano", "--steps", "1", "--batch", "4", "--chips", "8"]
runpy.run_path("gpu.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.long
def test_training_is_timed_where_no_raster_package_is():
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}:{os.environ['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RASTERS],
        cwd=BENCHMARKS, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, row = done.stdout.splitlines()
    assert row.startswith("| nano | 4 | ")


@pytest.fixture
def in_benchmarks(monkeypatch):
    """Benchmarks can be imported."""
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.slow
def test_the_ladder_of_bands_has_a_row_for_every_set(in_benchmarks, tmp_path, monkeypatch):
    import band_ladder

    monkeypatch.setattr(ablation, "HUMBLE", ("band_statistics",))
    dataset = small_dataset(tmp_path / "d", many_bands(3), regions=("west",))
    config = small_config(epochs=1)
    sets = {"one": ("B02",), "two": ("B03", "B01")}
    config = replace(config, model=replace(config.model, band_sets=sets))
    told: list[str] = []
    table = band_ladder.ladder(config, dataset, tmp_path / "out", 2, told.append)
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows == 2 * ["| bands", "| all bands (3)", "| two (2)", "| one (1)"]
    assert "seeds: 2" in table
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert band_ladder.ladder(config, dataset, tmp_path / "out", 2, told.append) == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == before


def test_hls_chips_become_a_dataset_whose_splits_share_no_group(in_benchmarks, tmp_path):
    import hls

    rng, num, side = np.random.default_rng(0), 12, 128
    group = np.repeat([3, 7, 8, 20, 21, 30], 2)
    image = rng.integers(1, 4000, (num, 7, side, side), np.int16)
    image[0, :, 0, 0] = -5  # noise over water
    fmask = np.full((num, side, side), 64, np.uint8)
    fmask[1, :4] = 0b1000010
    codes = rng.choice(np.array([10, 30, 40, 50, 80], np.uint8), (num, side, side))
    names = np.array(["coastal", "blue", "green", "red", "nir", "swir1", "swir2"])
    np.savez(tmp_path / "c.npz", x=image, bands=names, fmask=fmask, worldcover=codes, group=group)
    assert hls.write_folder(tmp_path / "c.npz", tmp_path / "hls") == num
    config = load_config(tmp_path / "hls" / "hls.yaml")
    assert {*config.model.band_sets} == {"rgb", "rgbn", "liss"}
    words = ["build", str(tmp_path / "hls" / "hls.yaml"), "--output", str(tmp_path / "d")]
    assert main(words) == 0
    dataset = Dataset.open(tmp_path / "d")
    assert dataset.num_chips == num
    assert dataset.sensor.band_names == tuple(hls.BANDS.values())
    split_of_block = dict(zip(dataset.column("block"), dataset.column("split"), strict=True))
    assert len(split_of_block) == 6
    # Every chip is there whole: pixels without those hidden by the mask, labels by WorldCover.
    found = {dataset.image(chip)[:, 50:, 50:].tobytes() for chip in range(num)}
    assert found == {image[chip, 1:, 50:, 50:].astype(np.uint16).tobytes() for chip in range(num)}
    missing = sorted(int((~dataset.valid(chip)).sum()) for chip in range(num))
    assert missing == [0] * (num - 1) + [4 * side]
