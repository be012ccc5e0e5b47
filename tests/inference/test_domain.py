"""What is out of a run's domain."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from bharateo.errors import DatasetError
from bharateo.inference.domain import (
    DOMAIN_FILE,
    Domain,
    Views,
    domain_of,
    fit_domain,
    load_domain,
    pixel_statistics,
    views_of,
)
from bharateo.inference.encoder import FrozenEncoder
from bharateo.training.run import Run
from models.tiny_models import random_batch, tiny_model, with_pixels


def silent(*_):
    pass


def clouds(windows, seed, scale=1.0, shift=0.0, view="both"):
    """Correlated vectors of 16 tokens a window, of which one view may be scaled and shifted."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(12, 12, generator=torch.Generator().manual_seed(9))
    features, pixels = torch.randn(2, windows, 16, 12, generator=generator)
    if view in ("both", "features"):
        features = features * scale + shift
    if view in ("both", "pixels"):
        pixels = pixels * scale + shift
    return Views(features @ mix, pixels @ mix, torch.ones(windows, 16, dtype=torch.bool))


@pytest.fixture(scope="module")
def domain():
    return fit_domain(clouds(200, 0), clouds(100, 1), 0.99)


def outside(domain, views):
    return float((domain.distance(views) > 1).float().mean())


def test_the_stated_share_of_new_ground_lies_inside(domain):
    assert outside(domain, clouds(500, 2)) == pytest.approx(0.01, abs=0.01)


@pytest.mark.parametrize("view", ["features", "pixels"])
def test_what_is_unlike_the_training_in_either_view_lies_outside(domain, view):
    assert outside(domain, clouds(20, 3, shift=6.0, view=view)) == 1


def test_a_window_whose_every_token_is_a_bit_too_far_lies_outside(domain):
    far = torch.tensor([1.0, torch.inf])
    alone = Domain(*(replace(part, limits=part.limits * far)
                     for part in (domain.features, domain.pixels)))  # fmt: skip
    assert outside(domain, clouds(20, 4, scale=1.35)) == 1
    assert outside(alone, clouds(20, 4, scale=1.35)) < 0.6


def test_tokens_without_a_pixel_have_no_part_in_their_window(domain):
    views = clouds(5, 5)
    views.known[:, 3] = False
    before = domain.distance(views)
    for part in views[:2]:
        part[:, 3] = 1e4
    keep = torch.arange(16) != 3
    torch.testing.assert_close(before[:, keep], domain.distance(views)[:, keep])


def test_pixel_statistics_are_those_of_every_band_of_a_patch():
    model, (batch, _) = tiny_model(num_bands=2), random_batch(tiny_model(num_bands=2))
    found, known = pixel_statistics(model, batch.image, batch.valid)
    patch = model.normalise.model_units(batch.image[1, :, 8:16, 16:24].permute(1, 2, 0))
    steps = [patch.diff(dim=dim).abs().mean((0, 1)) for dim in (0, 1)]
    expected = torch.cat(
        [patch.mean((0, 1)), patch.std((0, 1)).log(), ((steps[0] + steps[1]) / 2).log()]
    )
    torch.testing.assert_close(found[1, 4 + 2], expected, rtol=1e-4, atol=1e-4)
    assert known.all()


def test_an_invalid_pixel_changes_no_statistic():
    model = tiny_model(num_bands=2)
    batch, _ = random_batch(model, all_valid=False)
    before, known = pixel_statistics(model, batch.image, batch.valid)
    after, _ = pixel_statistics(model, with_pixels(batch, ~batch.valid, 99.0).image, batch.valid)
    torch.testing.assert_close(before, after)
    assert not known.all()


def test_a_run_keeps_its_domain_and_needs_its_dataset_no_more(map_run, tmp_path, monkeypatch):
    shutil.copytree(map_run.path, tmp_path / "far" / "away" / "run")
    (tmp_path / "far" / "away" / "run" / DOMAIN_FILE).unlink(missing_ok=True)
    run = Run.open(tmp_path / "far" / "away" / "run")
    with pytest.raises(DatasetError, match="no dataset"):
        domain_of(run, silent)  # it is not where it was
    dataset = map_run.own_dataset()
    monkeypatch.setattr(Run, "own_dataset", lambda self: dataset)
    made = domain_of(run, silent)
    monkeypatch.undo()
    kept = domain_of(Run.open(tmp_path / "far" / "away" / "run"), silent)
    for view in ("features", "pixels"):
        for name in ("mean", "whitening", "limits"):
            there, here = (getattr(getattr(each, view), name) for each in (made, kept))
            assert (there == here).all()


def test_a_kept_domain_of_other_weights_is_not_taken(map_run, tmp_path):
    domain_of(map_run, silent)
    shutil.copytree(map_run.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert load_domain(run) is not None
    content = (run.path / DOMAIN_FILE).read_bytes()
    (run.path / DOMAIN_FILE).write_bytes(content[: len(content) // 2])
    assert load_domain(run) is None
    (run.path / DOMAIN_FILE).write_bytes(content)
    with (run.path / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert load_domain(run) is None


def test_test_ground_lies_inside_and_its_pixels_in_no_order_outside(map_run):
    domain, model = domain_of(map_run, silent), map_run.model
    views = views_of(map_run, map_run.own_dataset(), "test", silent)
    assert (domain.distance(views)[views.known] > 1).float().mean() < 0.1
    noise = torch.from_numpy(np.random.default_rng(0).normal(0.25, 0.15, (9, 2, 32, 32))).float()
    every = torch.ones(9, 32, 32, dtype=torch.bool)
    features = FrozenEncoder.of_run(map_run).features(noise, every)
    odd = Views(features, *pixel_statistics(model, noise, every))
    assert (domain.distance(odd) > 1).float().mean() > 0.9
