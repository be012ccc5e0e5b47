"""A map at 10 m of a few points, beside a random forest of fifteen lines on the bands alone.

Both are fitted to one set of points and scored twice: by location (the same folds), and on a second
set, set in another look. Needs the crop that ``tests/aberystwyth_points.py`` names.

    python benchmarks/points_map.py [--run RUN] [--allow FIELD ...]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from sklearn.ensemble import RandomForestClassifier

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from aberystwyth_points import FIRST, RASTER, SECOND, Points, write_points
from bharateo.evaluation.choice import folds
from bharateo.evaluation.cross_validation import spatial_groups

APART_PX = 128
FOREST_TREES = 500


def arrays(points: Points, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (row, col) and the numbers of their classes."""
    pixels = [(*pixel, classes.index(name)) for name, some in points.items() for pixel in some]
    return np.array(pixels)[:, :2], np.array(pixels)[:, 2]


def balanced(true: np.ndarray, hit: np.ndarray) -> float:
    """Recall averaged over the classes."""
    return float(np.mean([hit[true == cls].mean() for cls in np.unique(true)]))


def forest(classes: list[str]) -> tuple[float, float, float]:
    """Balanced accuracy of the forest by location, on the second set, and on its own points."""
    with rasterio.open(RASTER) as file:
        bands = file.read().astype(np.float32)
    (own, labels), (other, truth) = arrays(FIRST, classes), arrays(SECOND, classes)
    features, there = bands[:, *own.T].T, bands[:, *other.T].T
    groups, _ = spatial_groups(own + 0.5, APART_PX)
    right, asked = np.zeros(len(labels)), np.zeros(len(labels))
    for trial in folds(labels, groups):
        fitted = RandomForestClassifier(FOREST_TREES, random_state=0)
        fitted.fit(features[trial.fitted], labels[trial.fitted])
        right[trial.scored] += fitted.predict(features[trial.scored]) == labels[trial.scored]
        asked[trial.scored] += 1
    whole = RandomForestClassifier(FOREST_TREES, random_state=0).fit(features, labels)
    whole.predict(bands.reshape(len(bands), -1).T)  # the map, which takes its time too
    return (
        balanced(labels, right / asked),
        balanced(truth, whole.predict(there) == truth),
        balanced(labels, whole.predict(features) == labels),
    )


def taught(classes: list[str], words: list[str], folder: Path) -> tuple[float, float, float, str]:
    """The same of ``bharateo teach``: the chosen one's score, and what its map says."""
    points = write_points(FIRST, folder / "points.geojson")
    output = folder / "map"
    command = [sys.executable, "-m", "bharateo", "teach", *words]
    subprocess.run(
        [*command, "--points", str(points), "--output", str(output)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    record = json.loads((output / "probe.json").read_text())
    ids = {each["name"]: each["id"] for each in record["map"]["classes"]}
    with rasterio.open(output / "map.tif") as file:
        mapped = file.read(1)
    found = []
    for points_of in (SECOND, FIRST):
        pixels, truth = arrays(points_of, classes)
        wanted = np.array([ids[name] for name in classes])[truth]
        found.append(balanced(truth, mapped[tuple(pixels.T)] == wanted))
    chosen = record["score"]["chosen"]
    name = f"{chosen['classifier']} of {' + '.join(chosen['features'])}"
    return chosen["balanced_accuracy"], found[0], found[1], name


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run")
    parser.add_argument("--allow", nargs="*", default=[])
    options = parser.parse_args()
    classes = sorted(FIRST)
    print("| | by location | second set | own points | wall s | processor s |")
    print("|---|---|---|---|---|---|")
    words = [str(RASTER), "--scale", "0.001"]
    rows = {"`teach RASTER`": words}
    if options.run:
        allowed = [word for field in options.allow for word in ("--allow", field)]
        rows["`teach RUN RASTER`"] = [options.run, *words, *allowed]
    started, used = time.monotonic(), time.process_time()
    scores = forest(classes)
    told = [f"random forest ({FOREST_TREES}) of the bands", *(f"{each:.3f}" for each in scores)]
    told += [f"{time.monotonic() - started:.1f}", f"{time.process_time() - used:.1f}"]
    print(f"| {' | '.join(told)} |", flush=True)
    for title, row in rows.items():
        with tempfile.TemporaryDirectory() as folder:
            before, started = _processor_s(), time.monotonic()
            *scores, name = taught(classes, row, Path(folder))
        told = [f"{title}: {name}", *(f"{each:.3f}" for each in scores)]
        told += [f"{time.monotonic() - started:.1f}", f"{_processor_s() - before:.1f}"]
        print(f"| {' | '.join(told)} |", flush=True)


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
