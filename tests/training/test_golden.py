"""The first twenty losses of two presets, kept as text: whatever changes them is in the changelog.

Rewrite the files with ``python tests/training/test_golden.py`` once the change is meant.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from bharateo.config import PlanConfig, load_config, preset_path
from bharateo.training.loop import Trainer
from small_datasets import many_bands, small_dataset

GOLDEN = Path(__file__).parent / "golden"
NUM_STEPS = 20
ROUNDING = 2e-4
"""Between processors and numbers of threads, in fp32."""


def golden_config(name):
    """The preset in fp32, in batches small enough for a test; ``nano`` is v0 on ten bands."""
    overrides = ["training.precision=fp32", "training.epochs=4", "training.batch_size=8"]
    if name == "nano":
        overrides += ["model.size=nano", "training.chips_per_epoch=80"]
        overrides += ["heads.pixels.options.target=pixels"]
    return load_config(preset_path("seed" if name == "seed" else "v0"), overrides)


def losses(name, folder):
    """The losses of the preset's first steps on made-up ground."""
    config = golden_config(name)
    size_px = 128 if name == "seed" else 160
    plan = PlanConfig(size_px=size_px, min_valid_fraction=0.2, split=None)
    sensor = {} if name == "seed" else {"sensor": many_bands(10)}
    dataset = small_dataset(folder / "dataset", plan=plan, size_px=640, **sensor)
    trainer = Trainer(dataset, replace(config), folder / "run")
    found = []
    for step, raw in trainer.loader.steps(0, NUM_STEPS):
        found.append(trainer.finish(trainer.step(step, raw)).loss)
    return found


@pytest.mark.parametrize("name", ["seed", "nano"])
def test_the_first_losses_are_those_on_record(name, tmp_path):
    expected = [float(line) for line in (GOLDEN / f"{name}.txt").read_text().split()]
    assert len(expected) == NUM_STEPS
    assert losses(name, tmp_path) == pytest.approx(expected, rel=ROUNDING)


def test_the_first_experiment_runs_in_full_precision_on_every_machine():
    assert load_config(preset_path("seed")).training.precision == "fp32"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in sys.argv[1:] or ["seed", "nano"]:
        with tempfile.TemporaryDirectory() as folder:
            lines = [f"{loss:.7f}\n" for loss in losses(each, Path(folder))]
        (GOLDEN / f"{each}.txt").write_text("".join(lines))
