"""Draw the README's picture from a run: truth, what the model saw, what it made of it, a copy.

    python docs/draw_picture.py runs/demo/run

Rows are test chips of different regions (train chips where nothing is held out), each in every
composite of the sensor; the masks are the fixed ones of the evaluation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from bharateo.evaluation.reconstruction import Example, reconstruct
from bharateo.report.render import as_shown, composite_rgb, upscale
from bharateo.sensor import Sensor
from bharateo.training.run import Run

PICTURE = Path(__file__).parent / "reconstruction.png"
GAP_PX = 6


def row(example: Example, sensor: Sensor, composite: str) -> np.ndarray:
    """Target, masked input, reconstruction and nearest-visible copy side by side."""
    target = composite_rgb(example.image, sensor, example.valid, composite)
    seen = target.copy()
    patch_px = len(target) // len(example.hidden)
    seen[np.kron(example.hidden, np.ones((patch_px, patch_px), bool))] = 225
    made = [
        composite_rgb(each, sensor, composite=composite)
        for each in (example.reconstruction, example.nearest)
    ]
    gap = np.full((len(target), GAP_PX, 3), 255, np.uint8)
    return np.hstack([target, gap, seen, gap, made[0], gap, made[1]])


def main(run_folder: Path) -> None:
    """Write ``docs/reconstruction.png``."""
    run = Run.open(run_folder)
    dataset = run.own_dataset()
    split = "test" if len(dataset.indices("test")) else "train"
    sensor = as_shown(dataset)
    rows = [
        row(example, sensor, composite)
        for example in reconstruct(run, dataset, split, 3)
        for composite in sensor.composites
    ]
    gap = np.full((GAP_PX, rows[0].shape[1], 3), 255, np.uint8)
    picture = np.vstack([part for each in rows for part in (each, gap)][:-1])
    Image.fromarray(upscale(picture, 2)).save(PICTURE, optimize=True)
    print(PICTURE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
