"""Frozen targets: what they say of a patch, and what is said of them before they are learned."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import random_batch, tiny_heads, tiny_model, with_pixels
from torch.nn import functional as F

from bharateo.config import HeadConfig
from bharateo.evaluation.baselines import Seen, bilinear
from bharateo.models.objective import Objective
from bharateo.models.targets import TARGETS, Conditioning, Gradients, NormalisedPixels

BANDS, PX = 3, 8
every_target = pytest.mark.parametrize("name", TARGETS)


def patches_of(seed, num=40, scale=1.0):
    """(4, num / 4) patches of smooth noise in model units, all valid."""
    noise = torch.randn(num, BANDS, PX + 2, PX + 2, generator=torch.Generator().manual_seed(seed))
    patches = scale * F.avg_pool2d(noise, 3, 1).flatten(1) + noise.mean((1, 2, 3))[:, None]
    return patches.unflatten(0, (4, -1)), torch.ones(4, num // 4, PX**2, dtype=torch.bool)


def fitted(name, seed=0, num=400):
    target = TARGETS[name](BANDS, PX)
    target.fit(*patches_of(1, num), seed)
    return target


@every_target
def test_it_is_standardised_over_the_patches_it_was_fitted_to(name):
    found = fitted(name)(*patches_of(1, 400)).flatten(0, 1)
    assert found.shape[1] == fitted(name).size
    torch.testing.assert_close(found.mean(0), torch.zeros(found.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        found.std(0, correction=0), torch.ones(found.shape[1]), atol=1e-3, rtol=0
    )


@every_target
def test_a_patch_has_its_target_by_itself_and_the_same_again(name):
    target, (patches, pixels) = fitted(name), patches_of(2)
    together = target(patches, pixels)
    alone = target(patches[1:2, 3:4], pixels[1:2, 3:4])
    torch.testing.assert_close(alone[0, 0], together[1, 3], rtol=1e-4, atol=1e-4)
    assert torch.equal(fitted(name)(patches, pixels), together)


@every_target
def test_patches_without_a_valid_pixel_are_not_fitted_to(name):
    (patches, pixels), target = patches_of(1, 400), TARGETS[name](BANDS, PX)
    pixels[0], patches[0] = False, 1e3
    target.fit(patches, pixels, 0)
    other = TARGETS[name](BANDS, PX)
    other.fit(patches[1:], pixels[1:], 0)
    for one, same in zip(target.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-3, atol=1e-4)


def test_normalised_pixels_are_a_pattern_whatever_the_light():
    patches, _ = patches_of(3)
    pattern = NormalisedPixels(BANDS, PX).numbers(patches[0])
    by_band = patches[0].unflatten(1, (BANDS, -1))
    lit = (2.5 * by_band + torch.tensor([3.0, -1.0, 0.5])[:, None]).flatten(1)
    torch.testing.assert_close(
        NormalisedPixels(BANDS, PX).numbers(lit), pattern, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("degrees", [0, 20, 45, 90, 130])
def test_gradients_name_the_direction_of_a_ramp(degrees):
    row, col = torch.meshgrid(torch.arange(PX), torch.arange(PX), indexing="ij")
    angle = math.radians(degrees)
    ramp = col * math.cos(angle) + row * math.sin(angle)
    found = Gradients(BANDS, PX).numbers(ramp.expand(BANDS, -1, -1).reshape(1, -1).float())
    histogram = found[0, : 4 * 9].unflatten(0, (9, 4)).sum(1)
    share = histogram / histogram.sum()
    # Edges repeat their pixels, which bends directions there: most is in the two bins beside it.
    first = int(degrees / 20) % 9
    assert share[first] + share[(first + 1) % 9] > 0.6
    assert torch.equal(found[0, 36:], torch.zeros(3))  # all bands are alike


def test_a_whitened_projection_has_no_correlated_numbers_and_a_plain_one_has():
    def correlation(name):
        found = fitted(name)(*patches_of(1, 400)).flatten(0, 1).numpy()
        apart = np.corrcoef(found.T) - np.eye(found.shape[1])
        return np.abs(apart).max()

    assert correlation("whitened") < 0.2 < 0.5 < correlation("projection")


# Conditioning.


def test_noise_is_well_conditioned():
    noise = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    found = Conditioning.of(noise, torch.randn(1000, 3))
    assert 19 < found.effective_rank <= 20
    assert abs(found.mean_cosine) < 0.01
    assert found.from_mean < 0.05
    assert found.dead() == ""


def test_the_effective_rank_is_that_of_the_definition():
    targets = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    singular = np.linalg.svd((targets - targets.mean(0)).numpy(), compute_uv=False)
    share = singular / singular.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    found = Conditioning.of(targets, torch.zeros(50, 1))
    assert found.effective_rank == pytest.approx(expected, rel=1e-6)
    wide = Conditioning.of(torch.randn(20, 50), torch.zeros(20, 1))
    assert wide.effective_rank <= 19.0 + 1e-6


def test_what_has_one_common_part_is_dead():
    targets = 5 + torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    assert "mean cosine 0.9" in Conditioning.of(targets, torch.zeros(200, 1)).dead()


def test_what_varies_in_one_direction_is_dead():
    strength = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    assert "effective rank 1.00" in Conditioning.of(strength * torch.ones(30), strength**2).dead()


def test_what_the_mean_says_is_dead():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(200, 3, generator=generator)
    targets = means @ torch.randn(3, 30, generator=generator)
    assert "the patch's mean says 100.0% of it" in Conditioning.of(targets, means).dead()


def test_one_number_a_patch_is_not_dead_for_being_one():
    values = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    assert Conditioning.of(values, torch.zeros(200, 1)).dead() == ""


# The heads.


def objective_of(name, **options):
    model = tiny_model()
    config = {name: HeadConfig(1.0, options)}
    return Objective(model, tiny_heads(model, config), config)


@every_target
def test_an_objective_says_what_its_targets_are_like(name):
    objective = objective_of("features", target=name)
    batch, _ = random_batch(objective.model, chips=16)
    objective.fit(batch, 0)
    found = objective.conditioning(batch)["features"]
    assert found.num_values == objective.heads["features"].features.size
    assert f"{found.num_values} numbers a patch, effective rank" in str(found)


@every_target
def test_the_feature_loss_is_smooth_l1_over_masked_patches_with_a_valid_pixel(name):
    objective = objective_of("features", target=name)
    model, head = objective.model, objective.heads["features"]
    batch, mask = random_batch(model, all_valid=False)
    objective.fit(batch, 0)
    valid = batch.valid.clone()
    valid[0, :8, :8] = False
    batch = replace(batch, valid=valid)
    tokens = model(batch.image, batch.valid, mask)
    sums = head(tokens, batch, model)
    target, predicted = head.target(batch, model), mask.restore(head.predict(tokens.values))
    assert target[0, 0].isnan().all()
    known = mask.hidden & target.isfinite().all(2)
    expected = F.smooth_l1_loss(predicted[known], target[known], reduction="sum")
    torch.testing.assert_close(sums["feature_smooth_l1"][0], expected, rtol=1e-4, atol=1e-4)
    squared = (predicted[known] - target[known]).square().sum()
    torch.testing.assert_close(sums["feature_mse"][0], squared, rtol=1e-4, atol=1e-4)
    assert sums["feature_mse"][1] == known.sum() * head.features.size


def test_a_correction_starts_where_the_smooth_fill_ends():
    objective = objective_of("pixels", target="correction")
    model, head = objective.model, objective.heads["pixels"]
    head.begin()
    batch, mask = random_batch(model, all_valid=False)
    tokens = model(batch.image, batch.valid, mask)
    seen = Seen.of(batch, mask, model.normalise.mean, 0)
    filled = head.target(bilinear(seen), model)
    torch.testing.assert_close(mask.restore(head.answer(tokens)), filled, rtol=1e-3, atol=1e-4)
    before = head(tokens, batch, model)["masked_mae"]
    target = head.target(batch, model)
    measured = head.measure(filled, target, mask.hidden, model)["masked_mae"]
    for one, same in zip(before, measured, strict=True):
        torch.testing.assert_close(one, same.sum(), rtol=1e-4, atol=1e-4, check_dtype=False)


def test_what_is_hidden_changes_no_correction():
    objective = objective_of("pixels", target="correction")
    model, head = objective.model, objective.heads["pixels"]
    batch, mask = random_batch(model, all_valid=False)
    hidden = mask.hidden.unflatten(1, (4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    answers = [
        head.answer(model(each.image, each.valid, mask))
        for each in (batch, with_pixels(batch, hidden, 7.0))
    ]
    assert torch.equal(*answers)
