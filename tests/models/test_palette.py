"""Pixels in the colours of the classes: what is asked of them, and what is drawn of the answer."""

import pytest
import torch
from tiny_models import random_batch, tiny_heads, tiny_model
from torch.nn import functional as F

from bharateo.config import HeadConfig
from bharateo.errors import ConfigError
from bharateo.models.palette import Palette

PX = 8


def random_palette(shape=(4, 5), seed=3):
    """A palette, some pixels' places in it, patches in its colours, and logits of them."""
    palette, generator = Palette(lambda physical: 2 * physical - 1, 3), torch.Generator()
    generator.manual_seed(seed)
    own = torch.randint(0, 8, (*shape, PX**2), generator=generator)
    patches = palette.colours[own].transpose(2, 3).flatten(2)
    return palette, own, patches, 2 * torch.randn(*shape, 8 * PX**2, generator=generator)


def test_a_palette_knows_its_colours_and_their_cross_entropy():
    palette, own, patches, logits = random_palette()
    assert torch.equal(palette.nearest(patches), own)
    pixels = torch.rand(own.shape) < 0.7
    for known in (pixels, torch.ones_like(pixels)):
        given = [logits.clone().requires_grad_() for _ in range(2)]
        by_colour = given[0].unflatten(2, (8, -1)).flatten(0, 1)
        each = F.cross_entropy(by_colour, own.flatten(0, 1), reduction="none").view_as(own)
        total, drawn = palette.errors(given[1], patches, known)
        torch.testing.assert_close(total, each[known].sum(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(drawn, palette.median(logits))
        each[known].sum().backward()
        (3 * total).backward()
        torch.testing.assert_close(given[1].grad, 3 * given[0].grad, rtol=1e-4, atol=1e-5)


def test_a_palette_computes_the_same_in_a_compiled_graph_and_on_a_gpu(monkeypatch):
    palette, _, patches, logits = random_palette()
    pixels = torch.rand(4, 5, PX**2) < 0.7
    fast = palette.errors(logits, patches, pixels)
    monkeypatch.setattr("bharateo.models.palette.eager_on_cpu", lambda tensor: False)
    for one, same in zip(fast, palette.errors(logits, patches, pixels), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-5)


def test_what_a_palette_draws_has_the_least_absolute_error_to_expect():
    palette, _, _, logits = random_palette()
    likely = logits.unflatten(2, (8, -1)).softmax(2)
    drawn = palette.median(logits).unflatten(2, (3, -1))
    for band in range(3):
        colours = palette.colours[:, band]
        error = (drawn[:, :, band, :, None] - colours).abs()  # patch, ..., pixel, colour
        expected = (error * likely.transpose(2, 3)).sum(3)
        every = (colours[:, None] - colours).abs()  # drawn, colour
        least = (every @ likely).min(2).values
        torch.testing.assert_close(expected, least)


def test_a_palette_refuses_other_pixels_but_where_they_are_not_valid():
    palette, _, patches, _ = random_palette()
    pixels = torch.ones(4, 5, PX**2, dtype=torch.bool)
    patches[1, 2, 7] += 0.05
    with pytest.raises(ConfigError, match="some pixels have others: give --set heads"):
        palette.check(patches, pixels)
    pixels[1, 2, 7] = False
    palette.check(patches, pixels)
    with pytest.raises(ConfigError, match="there are 4 bands: give --set heads"):
        Palette(lambda physical: physical, 4)


def test_a_palette_is_asked_of_masked_valid_pixels_and_scored_as_what_it_draws():
    model = tiny_model()
    head = tiny_heads(model, {"pixels": HeadConfig(1.0, {"target": "palette"})})["pixels"]
    batch, mask = random_batch(model, all_valid=False)
    tokens = model(batch.image, batch.valid, mask)
    sums = head(tokens, batch, model)
    assert [*head.losses({"target": "palette"})] == ["palette_ce"]
    masked = slice(mask.num_visible, None)
    logits, valid = head.predict(tokens.masked), tokens.pixels[:, masked]
    total, _ = head.palette.errors(logits, tokens.patches[:, masked], valid)
    torch.testing.assert_close(sums["palette_ce"][0], total, rtol=1e-4, atol=1e-4)
    assert sums["palette_ce"][1] == valid.sum() == head.counts(batch, mask, model)[0]
    drawn, target = mask.restore(head.answer(tokens)), head.target(batch, model)
    for name, (total, count) in head.measure(drawn, target, mask.hidden, model).items():
        torch.testing.assert_close(sums[name][0], total.sum(), rtol=1e-4, atol=1e-4)
        assert sums[name][1] == count.sum()
        assert not sums[name][0].requires_grad
