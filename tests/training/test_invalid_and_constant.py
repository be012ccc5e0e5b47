"""What no image shows is no target, and a band that never varies does no harm."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bharateo.errors import ConfigError
from bharateo.landcover import IGNORE, patch_class_counts
from bharateo.models.heads import build_heads
from bharateo.training import data
from bharateo.training.data import cut, fixed_windows
from bharateo.training.loop import Trainer, pretrain
from bharateo.training.run import Run
from small_datasets import Pixels, many_bands, small_config, small_dataset


def seen_counts(dataset, window, chip_px=32, patch_px=8):
    """Labelled pixels of a window's patches that an image shows."""
    part = slice(window.row, window.row + chip_px), slice(window.col, window.col + chip_px)
    labels = np.where(
        dataset.valid(window.chip)[part], dataset.landcover(window.chip)[part], IGNORE
    )
    return patch_class_counts(labels[None], patch_px)[0]


def test_labels_under_invalid_pixels_are_no_targets_of_evaluation(reflectance_dataset):
    chips = reflectance_dataset.indices("val").tolist()
    windows = fixed_windows(chips, reflectance_dataset.size_px, 32)
    batch = cut(reflectance_dataset, windows, 32, 8)
    expected = np.stack([seen_counts(reflectance_dataset, window) for window in windows])
    assert torch.equal(batch.class_counts, torch.from_numpy(expected))
    labelled = np.stack([reflectance_dataset.landcover(w.chip) for w in windows]) < IGNORE
    valid = np.stack([reflectance_dataset.valid(w.chip) for w in windows])
    assert (labelled & ~valid).any()  # or nothing has been tried


@pytest.mark.parametrize("way", ["turned_one_by_one", "turned_at_once"])
def test_labels_under_invalid_pixels_are_no_targets_of_training(reflectance_dataset, tmp_path, way):
    """Nor with any symmetry, on the CPU's way and on the GPU's."""
    trainer = Trainer(reflectance_dataset, small_config(augment="d4"), tmp_path)
    hidden = 0
    for step in range(3):
        raw = trainer.loader.load(step)
        _, valid, counts = getattr(data, way)(raw, reflectance_dataset.sensor, 8)
        for place, chip in enumerate(raw.draws.chip.tolist()):
            row, col = (int(each[place]) for each in (raw.draws.row, raw.draws.col))
            labels = reflectance_dataset.landcover(chip)[row : row + 32, col : col + 32]
            there = data.symmetric(labels, int(raw.draws.symmetry[place]))
            known = valid[place].numpy()
            hidden += int(((there < IGNORE) & ~known).sum())
            expected = patch_class_counts(np.where(known, there, IGNORE)[None], 8)[0]
            assert torch.equal(counts[place], torch.from_numpy(expected))
    assert hidden


def test_a_patch_without_a_valid_pixel_enters_no_class_metric(reflectance_dataset):
    chips = reflectance_dataset.indices("train").tolist()
    batch = cut(reflectance_dataset, fixed_windows(chips, 48, 32), 32, 8)
    empty = ~batch.valid.unflatten(1, (4, 8)).unflatten(3, (4, 8)).any(4).any(2).flatten(1)
    assert not batch.class_counts.sum(2)[empty].any()


class Constant(Pixels):
    """Pixels whose last band is the same everywhere."""

    def read(self, geobox):
        raster = super().read(geobox)
        raster.values[-1] = 4321
        return raster


@pytest.fixture
def constant(tmp_path, monkeypatch):
    monkeypatch.setattr("small_datasets.Pixels", Constant)
    return small_dataset(tmp_path / "dataset", many_bands(3))


def test_a_band_that_is_constant_gives_finite_features_and_a_run(constant, tmp_path):
    assert constant.statistics.std[-1] == 0
    run = pretrain(constant, small_config(), tmp_path / "run")
    assert run.contract.statistics.std[-1] == 0  # as it is
    assert run.model.normalise.std[-1] == 1
    batch = cut(constant, fixed_windows(constant.indices("val").tolist(), 48, 32), 32, 8)
    tokens = torch.arange(16).expand(len(batch.image), -1)
    features = run.model.encode(batch.image, batch.valid, data.Mask(tokens, 16))
    assert features.isfinite().all()
    rows = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert all(np.isfinite(value) for row in rows for value in json.loads(row).values())
    assert torch.equal(Run.open(tmp_path / "run").model.normalise.std, run.model.normalise.std)


def test_a_constant_band_in_model_units_is_0_and_is_given_back_as_it_was(constant):
    config = small_config()
    model = Trainer(constant, config, constant.path / "run").objective.model
    assert build_heads(config.heads, model)
    mean = torch.tensor(constant.statistics.mean, dtype=torch.float32)
    assert model.normalise.model_units(mean).abs().max() < 1e-6


@pytest.mark.parametrize("warmup", [2.5, 30.0])
def test_a_warm_up_longer_than_the_run_is_refused_with_both_keys(palette_dataset, tmp_path, warmup):
    named = rf"training\.warmup_epochs {warmup:g} is more than training\.epochs 2: "
    with pytest.raises(ConfigError, match=named):
        pretrain(palette_dataset, small_config(warmup_epochs=warmup), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_schedule_without_a_warm_up_does_not_mind_its_length(palette_dataset, tmp_path):
    config = small_config(warmup_epochs=9.0, epochs=1)
    training = replace(config.training, schedule="cosine_epoch")
    pretrain(palette_dataset, replace(config, training=training), tmp_path / "run")
