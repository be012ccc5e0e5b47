from dataclasses import replace

import pytest
import torch
from tiny_models import HEADS, pixels_of, random_batch, tiny_heads, tiny_model, with_pixels
from torch import nn
from torch.nn import functional as F

from bharateo.config import HeadConfig, ModelConfig
from bharateo.models.heads import build_heads
from bharateo.models.mae import MODELS, build_model, num_parameters
from bharateo.models.objective import Objective
from bharateo.models.patches import patchify, take_tokens

SEED_SIZES = ModelConfig("seed", width=128, depth=3, num_heads=4)
SEED_HEADS = {
    "pixels": HeadConfig(1.0, {"beta": 0.1}),
    "landcover": HeadConfig(0.2, {"target": "mode"}),
}
RUBBISH = (float("nan"), float("inf"), 1e30, -7.0)

both_models = pytest.mark.parametrize("name", MODELS)


def loss_of(model, heads, batch, mask, configs=HEADS):
    objective = Objective(model, heads, configs)
    return objective(batch, mask, objective.counts(batch, mask))


# The model of the first experiment.


def test_the_seed_model_has_the_published_number_of_parameters():
    model = build_model(SEED_SIZES, [0.0] * 3, [1.0] * 3)
    total = num_parameters(model) + num_parameters(build_heads(SEED_HEADS, model))
    assert round(total / 1e6, 2) == 0.80  # "0.80 M", N. Batra, 2026-05-05


class Textbook(nn.Module):
    """The first experiment as its notebook has it, from PyTorch's own parts, tokens in order."""

    def __init__(self, tokens, values, width, depth, num_heads):
        super().__init__()
        self.embed = nn.Linear(values, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.pixels = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, values))
        self.classes = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 8))

    def forward(self, patches, hidden, labels):
        x = torch.where(hidden[..., None], self.mask_token, self.embed(patches))
        tokens = self.encoder(x + self.positions)
        rebuilt = F.smooth_l1_loss(self.pixels(tokens)[hidden], patches[hidden], beta=0.1)
        return rebuilt + 0.2 * F.cross_entropy(self.classes(tokens).transpose(1, 2), labels)


def textbook_names(name):
    """What a parameter of the seed model and its heads is called in the textbook."""
    name = name.removeprefix("model.")
    name = name.replace("heads.pixels.norm.", "pixels.0.").replace(
        "heads.pixels.linear.", "pixels.1."
    )
    name = name.replace("heads.landcover.norm.", "classes.0.")
    name = name.replace("heads.landcover.linear.", "classes.1.")
    for ours, theirs in {
        "encoder.": "encoder.layers.",
        "attention.qkv.": "self_attn.in_proj_",
        "attention.out.": "self_attn.out_proj.",
        "mlp.0.": "linear1.",
        "mlp.2.": "linear2.",
    }.items():
        name = name.replace(ours, theirs)
    return name


def test_the_seed_model_is_the_textbook_transformer_in_loss_and_gradients():
    model = tiny_model("seed", depth=2)
    module = Objective(model, tiny_heads(model, SEED_HEADS), SEED_HEADS)
    textbook = Textbook(16, 3 * 64, 16, 2, 2)
    ours = dict(module.named_parameters())
    textbook.load_state_dict({textbook_names(name): value for name, value in ours.items()})
    batch, mask = random_batch(model)
    loss, _ = module(batch, mask, module.counts(batch, mask))
    labels = batch.class_counts.argmax(2)
    model_units = model.normalise.model_units(batch.image.movedim(1, -1)).movedim(-1, 1)
    expected = textbook(patchify(model_units, 8), mask.hidden, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    theirs = dict(textbook.named_parameters())
    for name, parameter in ours.items():
        torch.testing.assert_close(
            parameter.grad, theirs[textbook_names(name)].grad, rtol=1e-4, atol=1e-6
        )


def test_the_seed_model_starts_as_pytorchs_encoder_does():
    """Bounds and spreads of every weight of a layer; and all layers alike, for it clones one."""
    torch.manual_seed(0)
    ours = build_model(SEED_SIZES, [0.0] * 3, [1.0] * 3)
    width = SEED_SIZES.width
    theirs = Textbook(64, 768, width, SEED_SIZES.depth, SEED_SIZES.num_heads)
    theirs = dict(theirs.named_parameters())
    for name, parameter in ours.encoder.named_parameters(prefix="model.encoder"):
        expected = theirs[textbook_names(name)]
        assert parameter.abs().max().item() == pytest.approx(expected.abs().max().item(), rel=0.1)
        spreads = [each.std().item() for each in (parameter, expected)]
        assert spreads[0] == pytest.approx(spreads[1], rel=0.2)
    for block in ours.encoder[1:]:
        for value, first in zip(block.parameters(), ours.encoder[0].parameters(), strict=True):
            assert torch.equal(value, first)
            assert value.data_ptr() != first.data_ptr()


# Our own model.


def v0_the_long_way(model, image, mask):
    """Embed every patch, keep the visible ones, and put everything in place token by token."""
    config = model.config
    units = (image - model.normalise.mean[:, None, None]) / model.normalise.std[:, None, None]
    embedded = F.linear(patchify(units, config.patch_px), model.embed.weight, model.embed.bias)
    embedded = embedded + model.positions
    chips = []
    for chip in range(len(image)):
        visible = mask.visible[chip].tolist()
        encoded = model.norm(model.encoder(embedded[chip : chip + 1, visible]))
        seen = model.to_decoder(encoded)[0]
        grid = [
            (seen[visible.index(token)] if token in visible else model.mask_token)
            + model.decoder_positions[token]
            for token in range(model.num_tokens)
        ]
        chips.append(model.decoder(torch.stack(grid)[None])[0])
    return torch.stack(chips)


@pytest.mark.parametrize("mask_ratio", [0.25, 0.75])
def test_v0_is_the_plain_masked_autoencoder(mask_ratio):
    model = tiny_model(mask_ratio=mask_ratio)
    batch, mask = random_batch(model)
    tokens = model(batch.image, batch.valid, mask)
    expected = v0_the_long_way(model, batch.image, mask)
    torch.testing.assert_close(mask.restore(tokens.values), expected, rtol=1e-5, atol=1e-5)
    hidden = take_tokens(expected, mask.masked)
    torch.testing.assert_close(tokens.masked, hidden, rtol=1e-5, atol=1e-5)


def test_the_encoder_of_v0_sees_the_visible_tokens_alone():
    model = tiny_model()
    batch, mask = random_batch(model)
    assert model.encode(batch.image, batch.valid, mask).shape == (3, mask.num_visible, 16)


def test_missing_pixels_tell_v0_that_they_are_missing():
    model = tiny_model(num_bands=1)
    batch, mask = random_batch(model, all_valid=False)
    every = torch.arange(model.num_tokens).expand(3, -1)
    filled, _ = model.patches(batch.image, batch.valid, every)
    square = filled.view(3, 4, 4, 8, 8).transpose(2, 3).reshape(3, 1, 32, 32)
    image = square * model.normalise.std + model.normalise.mean
    as_is = model(batch.image, batch.valid, mask).values
    as_if_measured = model(image, torch.ones_like(batch.valid), mask).values
    assert (as_is - as_if_measured).abs().max() > 1e-3
    nn.init.zeros_(model.missing)
    as_is = model(batch.image, batch.valid, mask).values
    as_if_measured = model(image, torch.ones_like(batch.valid), mask).values
    torch.testing.assert_close(as_is, as_if_measured, rtol=1e-4, atol=1e-5)


def test_v0_learns_what_missing_means():
    model = tiny_model()
    batch, mask = random_batch(model, all_valid=False)
    loss_of(model, tiny_heads(model), batch, mask)[0].backward()
    assert model.missing.grad.abs().max() > 0


# What both promise.


@both_models
@pytest.mark.parametrize("rubbish", RUBBISH)
def test_masked_pixels_change_no_token(name, rubbish):
    model = tiny_model(name)
    batch, mask = random_batch(model, all_valid=False)
    hidden = pixels_of(mask.hidden, 8)
    other = with_pixels(batch, hidden, rubbish)
    validity = torch.where(hidden, ~batch.valid, batch.valid)
    expected = model(batch.image, batch.valid, mask).values
    assert torch.equal(model(other.image, batch.valid, mask).values, expected)
    assert torch.equal(model(other.image, validity, mask).values, expected)


@both_models
def test_visible_pixels_do_change_the_tokens(name):
    model = tiny_model(name)
    batch, mask = random_batch(model)
    other = with_pixels(batch, pixels_of(~mask.hidden, 8), 0.3)
    expected = model(batch.image, batch.valid, mask).values
    assert not torch.allclose(model(other.image, batch.valid, mask).values, expected)


@both_models
@pytest.mark.parametrize("rubbish", RUBBISH)
def test_invalid_pixels_change_no_token_loss_metric_or_gradient(name, rubbish):
    model = tiny_model(name)
    heads = tiny_heads(model)
    batch, mask = random_batch(model, all_valid=False)
    results = []
    for each in (batch, with_pixels(batch, ~batch.valid, rubbish)):
        model.zero_grad()
        loss, sums = loss_of(model, heads, each, mask)
        loss.backward()
        tokens = model(each.image, each.valid, mask).values
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append(
            [tokens, loss, *(part for pair in sums.values() for part in pair), *gradients]
        )
    for expected, got in zip(*results, strict=True):
        assert expected.isfinite().all()
        assert torch.equal(expected, got)


@both_models
def test_a_chip_without_any_valid_pixel_gives_finite_numbers(name):
    model = tiny_model(name)
    batch, mask = random_batch(model)
    batch = replace(
        with_pixels(batch, batch.valid, float("nan")),
        valid=torch.zeros_like(batch.valid),
        class_counts=torch.zeros_like(batch.class_counts),
    )
    loss, sums = loss_of(model, tiny_heads(model), batch, mask)
    loss.backward()
    assert loss.item() == 0
    assert all(count == 0 for _, count in sums.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_patch_takes_its_valid_mean_where_pixels_are_missing():
    model = tiny_model(num_bands=2)
    values = torch.full((1, 1, 128), float("nan"))
    values[0, 0, [0, 1]] = torch.tensor([1.0, 3.0])
    values[0, 0, [64, 65]] = torch.tensor([5.0, 7.0])
    valid = torch.zeros(1, 1, 64, dtype=torch.bool)
    valid[..., :2] = True
    got = model.normalise(values, valid).view(2, 64)
    mean, std = model.normalise.mean, model.normalise.std
    torch.testing.assert_close(got[0, :3], (torch.tensor([1.0, 3, 2]) - mean[0]) / std[0])
    torch.testing.assert_close(got[1, 1:], (torch.tensor([7.0, *[6] * 62]) - mean[1]) / std[1])


@both_models
def test_statistics_travel_in_the_weights(name):
    model, other = tiny_model(name, num_bands=2), build_model(
        replace(tiny_model(name).config), [0.0, 0.0], [1.0, 1.0]
    )  # fmt: skip
    state = model.state_dict()
    assert torch.equal(state["normalise.mean"], torch.tensor([0.0, 0.1]))
    assert torch.equal(state["normalise.std"], torch.tensor([0.5, 0.6]))
    other.load_state_dict(state)
    batch, mask = random_batch(model)
    assert torch.equal(
        other(batch.image, batch.valid, mask).values, model(batch.image, batch.valid, mask).values
    )


def test_physical_units_undo_model_units():
    normalise = tiny_model(num_bands=3).normalise
    image = torch.rand(2, 3, 4, 5)
    units = normalise.model_units(image.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(normalise.physical_units(units), image)


@both_models
def test_standardising_beforehand_is_the_same_as_the_model_doing_it(name):
    model = tiny_model(name)
    batch, mask = random_batch(model)
    units = model.normalise.model_units(batch.image.movedim(1, -1)).movedim(-1, 1)
    expected = model(batch.image, batch.valid, mask).values
    nn.init.zeros_(model.normalise.mean)
    nn.init.ones_(model.normalise.std)
    torch.testing.assert_close(model(units, batch.valid, mask).values, expected)


@both_models
@pytest.mark.parametrize("num_bands", [1, 3, 10, 13])
@pytest.mark.parametrize(("chip_px", "patch_px"), [(32, 16), (32, 4), (24, 6), (21, 7)])
def test_any_number_of_bands_and_any_patch_size_work(name, num_bands, chip_px, patch_px):
    model = tiny_model(name, num_bands, chip_px=chip_px, patch_px=patch_px)
    batch, mask = random_batch(model)
    tokens = model(batch.image, batch.valid, mask)
    assert tokens.values.shape == (3, (chip_px // patch_px) ** 2, model.decoded_width)
    loss, _ = loss_of(model, tiny_heads(model), batch, mask)
    loss.backward()
    assert loss.isfinite()


@both_models
def test_gradients_reach_every_parameter(name):
    model = tiny_model(name)
    heads = tiny_heads(model)
    batch, mask = random_batch(model, all_valid=False)
    loss_of(model, heads, batch, mask)[0].backward()
    for module in (model, heads):
        for parameter_name, parameter in module.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().max() > 0, parameter_name


@both_models
def test_chips_of_a_batch_do_not_mix(name):
    model = tiny_model(name)
    batch, mask = random_batch(model, all_valid=False)
    together = model(batch.image, batch.valid, mask).values
    for chip in range(3):
        only = slice(chip, chip + 1)
        alone = model(batch.image[only], batch.valid[only], replace(mask, order=mask.order[only]))
        torch.testing.assert_close(alone.values, together[only], rtol=1e-4, atol=1e-5)
