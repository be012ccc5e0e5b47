"""Tiny models with weights that are not their start values, and batches of random chips."""

from dataclasses import replace

import torch

from bharateo.config import HeadConfig, ModelConfig
from bharateo.models.heads import Batch, build_heads
from bharateo.models.mae import build_model
from bharateo.models.patches import mask_from_noise

TINY = ModelConfig(
    "v0", 32, 8, width=16, depth=2, num_heads=2,
    decoder_width=12, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip
HEADS = {
    "pixels": HeadConfig(1.0, {"beta": 0.1}),
    "landcover": HeadConfig(0.2, {"target": "fraction"}),
}


def tiny_model(name="v0", num_bands=3, seed=0, **sizes):
    """A model that standardises, every weight random; what is fitted of it, to noise."""
    torch.manual_seed(seed)
    mean = [0.1 * band for band in range(num_bands)]
    names = [f"B{number:02d}" for number in range(1, num_bands + 1)]
    model = build_model(replace(TINY, name=name, **sizes), mean, [0.5 + m for m in mean], names)
    px, generator = model.config.chip_px, torch.Generator().manual_seed(seed)
    noise = torch.rand(8, num_bands, px, px, generator=generator)
    model.embed.fit(*model.every_patch(noise, torch.ones(8, px, px, dtype=torch.bool)), seed)
    return randomised(model)


def tiny_heads(model, heads=None):
    return randomised(build_heads(heads or HEADS, model))


def randomised(module):
    """The module with noise on its weights: biases and the like are otherwise 0 at the start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return module


def random_batch(model, chips=3, seed=1, all_valid=True, all_labelled=True):
    """A batch and a mask that fit a model."""
    generator = torch.Generator().manual_seed(seed)
    chip_px = model.config.chip_px
    image = torch.rand(chips, model.num_bands, chip_px, chip_px, generator=generator)
    valid = torch.rand(chips, chip_px, chip_px, generator=generator) < 0.7
    valid[0, :8, :16] = False  # whole patches without any pixel
    per_patch = model.config.patch_px**2
    shares = torch.rand(chips, model.num_tokens, 8, generator=generator) ** 3
    counts = (shares / shares.sum(2, keepdim=True) * per_patch).long()
    counts[..., 2] += 1  # at least one labelled pixel
    if not all_labelled:
        counts[torch.rand(chips, model.num_tokens, generator=generator) < 0.3] = 0
    noise = torch.rand(chips, model.num_tokens, generator=generator)
    mask = mask_from_noise(noise, int(model.num_tokens * model.config.mask_ratio))
    batch = Batch(image, valid | all_valid, counts, torch.arange(chips))
    return batch, mask


def with_pixels(batch, chosen, value):
    """The batch with every band's chosen pixels (batch, row, col) set to a value."""
    image = torch.where(chosen[:, None], torch.tensor(value), batch.image)
    return replace(batch, image=image)


def pixels_of(tokens, patch_px):
    """Which pixels belong to the chosen tokens (batch, token) of square chips."""
    grid = round(tokens.shape[1] ** 0.5)
    square = tokens.view(-1, grid, grid)
    return square.repeat_interleave(patch_px, 1).repeat_interleave(patch_px, 2)
