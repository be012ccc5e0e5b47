"""Points set by eye on a real raster become a map, better than a forest's on the bands alone."""

import json

import numpy as np
import pytest
import rasterio
from sklearn.ensemble import RandomForestClassifier

from aberystwyth_points import FIRST, RASTER, SECOND, write_points
from bharateo.verbs.cli import main


def at(layers, points):
    """The values of layers (band, row, col) under points, and the points' classes."""
    rows, cols = np.array([pixel for some in points.values() for pixel in some]).T
    names = np.repeat([*points], [len(some) for some in points.values()])
    return layers[:, rows, cols].T, names


@pytest.mark.slow
@pytest.mark.skipif(not RASTER.exists(), reason=f"no real pixels at {RASTER}")
def test_points_set_by_eye_become_a_better_map_than_a_forests(tmp_path):
    points = write_points(FIRST, tmp_path / "points.geojson")
    words = ["teach", str(RASTER), "--points", str(points), "--output", str(tmp_path / "own")]
    assert main(words) == 0
    record = json.loads((tmp_path / "own" / "probe.json").read_text())
    assert record["missed"] == []
    names = {each["id"]: each["name"] for each in record["map"]["classes"]}
    with rasterio.open(tmp_path / "own" / "map.tif") as file:
        mapped, truth = at(file.read(), SECOND)
    said = np.array([names[number] for number in mapped[:, 0].tolist()])
    with rasterio.open(RASTER) as file:
        bands = file.read()
    forest = RandomForestClassifier(100, random_state=0).fit(*at(bands, FIRST))
    others = forest.predict(at(bands, SECOND)[0])
    assert (said == truth).mean() >= (others == truth).mean()
    assert (said[truth == "water"] == "water").mean() > 0.8
