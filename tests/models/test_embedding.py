from dataclasses import replace

import numpy as np
import pytest
import torch
from test_mae import RUBBISH, loss_of
from tiny_models import (
    TINY,
    pixels_of,
    random_batch,
    randomised,
    tiny_heads,
    tiny_model,
    with_pixels,
)

from bharateo.config import HeadConfig
from bharateo.errors import ConfigError
from bharateo.inference.encoder import FrozenEncoder
from bharateo.models.embedding import EMBEDDINGS, Energies
from bharateo.models.mae import MODELS, build_model

every_embedding = pytest.mark.parametrize("embedding", EMBEDDINGS)
others = pytest.mark.parametrize("embedding", [each for each in EMBEDDINGS if each != "linear"])
both_models = pytest.mark.parametrize("name", MODELS)


# What all promise.


@both_models
@others
@pytest.mark.parametrize("rubbish", RUBBISH)
def test_hidden_pixels_change_no_token(name, embedding, rubbish):
    model = tiny_model(name, embedding=embedding)
    batch, mask = random_batch(model, all_valid=False)
    hidden = pixels_of(mask.hidden, 8)
    other = with_pixels(batch, hidden, rubbish)
    validity = torch.where(hidden, ~batch.valid, batch.valid)
    expected = model(batch.image, batch.valid, mask)
    for valid in (batch.valid, validity):
        found = model(other.image, valid, mask)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.encoded, expected.encoded)


@every_embedding
def test_a_patch_is_embedded_by_itself(embedding):
    model = tiny_model(embedding=embedding)
    batch, _ = random_batch(model, all_valid=False)
    every = torch.arange(model.num_tokens).expand(3, -1)
    patches, pixels = model.patches(batch.image, batch.valid, every)
    together = model.embed(patches, pixels)
    for token in range(model.num_tokens):
        alone = model.embed(patches[1:2, token : token + 1], pixels[1:2, token : token + 1])
        torch.testing.assert_close(alone[0, 0], together[1, token], rtol=1e-4, atol=1e-5)


@both_models
@others
@pytest.mark.parametrize("rubbish", RUBBISH)
def test_invalid_pixels_change_no_token_loss_or_gradient(name, embedding, rubbish):
    model = tiny_model(name, embedding=embedding)
    heads = tiny_heads(model)
    batch, mask = random_batch(model, all_valid=False)
    results = []
    for each in (batch, with_pixels(batch, ~batch.valid, rubbish)):
        model.zero_grad()
        loss, _ = loss_of(model, heads, each, mask)
        loss.backward()
        tokens = model(each.image, each.valid, mask).values
        results.append([tokens, loss, *(parameter.grad for parameter in model.parameters())])
    for expected, got in zip(*results, strict=True):
        assert expected.isfinite().all()
        assert torch.equal(expected, got)


@both_models
@others
def test_gradients_reach_every_parameter(name, embedding):
    model = tiny_model(name, embedding=embedding)
    batch, mask = random_batch(model, all_valid=False)
    loss_of(model, tiny_heads(model), batch, mask)[0].backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, parameter_name


@others
@pytest.mark.parametrize("num_bands", [1, 10])
@pytest.mark.parametrize(("chip_px", "patch_px"), [(32, 16), (32, 4), (21, 7)])
def test_any_number_of_bands_and_any_patch_size_work(embedding, num_bands, chip_px, patch_px):
    model = tiny_model(num_bands=num_bands, chip_px=chip_px, patch_px=patch_px, embedding=embedding)
    batch, mask = random_batch(model)
    loss, _ = loss_of(model, tiny_heads(model), batch, mask)
    loss.backward()
    assert loss.isfinite()


@every_embedding
def test_no_chips_have_no_vectors(embedding):
    model = tiny_model(embedding=embedding)
    batch, mask = random_batch(model)
    none = replace(mask, order=mask.order[:0])
    assert model(batch.image[:0], batch.valid[:0], none).values.shape == (0, 16, 12)


@every_embedding
def test_a_chip_without_any_valid_pixel_has_finite_features(embedding):
    model = tiny_model(embedding=embedding)
    batch, _ = random_batch(model)
    nothing = torch.zeros_like(batch.valid)
    found = FrozenEncoder(model).features(torch.full_like(batch.image, torch.nan), nothing)
    assert found.isfinite().all()


@others
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_vectors_are_about_the_same(embedding, dtype):
    torch.manual_seed(0)
    model = build_model(replace(TINY, embedding=embedding), [5000.0, 3000.0], [2500.0, 1200.0])
    image = torch.randint(1, 9000, (4, 2, 32, 32)).float()
    valid = torch.ones(4, 32, 32, dtype=torch.bool)
    model.embed.fit(*model.every_patch(image, valid), 0)
    whole = FrozenEncoder(model).features(image, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = FrozenEncoder(model).features(image, valid)
    low = FrozenEncoder(model.to(dtype)).features(image, valid)
    assert low.dtype == dtype
    for found in (low, mixed):
        torch.testing.assert_close(found.float(), whole, rtol=0.05, atol=0.05)


def test_the_linear_embeddings_weights_have_the_names_they_always_had():
    names = {name for name in tiny_model().state_dict() if name.startswith("embed.")}
    assert names == {"embed.weight", "embed.bias"}
    assert names < {*tiny_model(embedding="energies").state_dict()}


# Energies.


def test_a_model_has_as_many_filters_as_it_is_asked_for_at_its_input_and_as_its_target():
    model = tiny_model(embedding="energies", num_filters=5)
    assert model.embed.energies.filters.shape == (5, 3, 3, 3)
    assert model.embed.linear.in_features == model.embed.energies.size == 2 * 5
    head = tiny_heads(model, {"features": HeadConfig(1.0, {"target": "energies"})})["features"]
    assert head.linear.out_features == 2 * 5


def energies_of(squares, known, filters, bias):
    """As the definition has it, pixel by pixel: (patch, energy)."""
    found = []
    for square, valid in zip(squares, known, strict=True):
        padded = np.pad(square, ((0, 0), (1, 1), (1, 1)), "edge")
        responses = [
            (filters * padded[:, row : row + 3, col : col + 3]).sum((1, 2, 3)) + bias
            for row in range(0, square.shape[1], 2)
            for col in range(0, square.shape[2], 2)
            if valid[row, col]
        ]
        both = [np.maximum(sign * np.array(responses) - 0.5, 0).mean(0) for sign in (1, -1)]
        found.append(np.log(1 + 10 * np.concatenate(both)))
    return np.stack(found)


@pytest.mark.parametrize("all_valid", [True, False])
@pytest.mark.parametrize("patch_px", [7, 8])
def test_energies_are_responses_beyond_a_threshold_averaged_over_valid_pixels(all_valid, patch_px):
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(3, 40, 2 * patch_px**2)).astype(np.float32)
    pixels = torch.from_numpy(rng.random((3, 40, patch_px**2)) < 0.8) | all_valid
    energies = Energies(2, patch_px, num_filters=5)
    energies.fit(torch.from_numpy(patches), pixels, 0)
    found = energies(torch.from_numpy(patches), pixels)
    assert found.shape == (3, 40, 2 * 5)
    expected = energies_of(
        patches.reshape(-1, 2, patch_px, patch_px),
        pixels.numpy().reshape(-1, patch_px, patch_px),
        energies.filters.numpy(),
        energies.bias.numpy(),
    )
    expected = (expected - expected.mean(0)) / expected.std(0)
    np.testing.assert_allclose(found.flatten(0, 1), expected, atol=2e-3)


def test_textures_of_one_mean_lie_apart_though_no_linear_map_tells_them():
    """Noise, its mirror image in value, and the same blurred: by the mean over many patches."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(1, 400, 1, 16, 16, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(rough.flatten(0, 1), 3, 1, 1)[None] * 3
    patches = torch.cat([rough, smooth]).flatten(2)
    energies = Energies(1, 16)
    energies.fit(patches, torch.ones(2, 400, 256, dtype=torch.bool), 0)
    found = energies(patches, torch.ones(2, 400, 256, dtype=torch.bool)).mean(1)
    assert (found[0] - found[1]).abs().max() > 1


def test_filters_follow_the_seed_and_leave_the_global_generator_alone():
    patches, pixels = torch.rand(4, 16, 128), torch.ones(4, 16, 64, dtype=torch.bool)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        energies = Energies(2, 8)
        energies.fit(patches, pixels, seed)
        found.append((energies.filters, torch.rand(1)))
    (first, after), (second, _), (other, _) = found
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_fitted_to_nothing_energies_are_finite():
    patches, pixels = torch.rand(4, 16, 128), torch.zeros(4, 16, 64, dtype=torch.bool)
    energies = Energies(2, 8)
    energies.fit(patches, pixels, 0)
    assert energies(patches, ~pixels).isfinite().all()
    flat = torch.full_like(patches, 0.3)
    energies.fit(flat, ~pixels, 0)
    assert energies(patches, ~pixels).isfinite().all()


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_filters_stay_in_float32_wherever_a_model_goes(cast):
    model = tiny_model(embedding="energies")
    before = {name: value.clone() for name, value in model.embed.energies.named_buffers()}
    getattr(model, cast)()
    for name, value in before.items():
        assert torch.equal(getattr(model.embed.energies, name), value)


def test_filters_travel_in_the_weights_and_are_not_trained():
    model = tiny_model(embedding="energies")
    other = randomised(build_model(model.config, [0.0] * 3, [1.0] * 3))
    other.load_state_dict(model.state_dict())
    batch, mask = random_batch(model)
    assert torch.equal(
        other(batch.image, batch.valid, mask).values, model(batch.image, batch.valid, mask).values
    )
    assert not any("energies" in name for name, _ in model.named_parameters())


def test_patches_that_no_filter_fits_into_are_refused():
    with pytest.raises(ConfigError, match=r"patches of 3 px or more, model.patch_px is 2"):
        build_model(replace(TINY, patch_px=2, embedding="energies"), [0.0], [1.0])
