"""What a model must beat: four predictors that read only the visible patches, or nothing.

Each gives what a model gives: pixels of the masked tokens in model units and a class for every
token, both in the mask's visible-first order. Unlike a model they are also *told* the classes of
the visible patches; a baseline's accuracy on visible tokens is therefore no achievement.

- ``majority``: the most frequent class, and the mean pixel, of the train split.
- ``mean_colour``: the mean colour and the most frequent class of the chip's visible patches.
- ``nearest_visible``: a copy of the nearest visible patch, its pixels and its class.
- ``bilinear``: inpainting by pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4):
  averages over ever larger squares, put back by bilinear interpolation where nothing is visible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from bharateo.landcover import IGNORE
from bharateo.models.heads import Batch, patch_mode
from bharateo.models.mae import MaskedAutoencoder
from bharateo.models.patches import (
    Mask,
    patchify,
    take_tokens,
    unpatchify,
)


@dataclass(frozen=True)
class Prediction:
    """Pixels of the masked tokens (model units) and classes of all tokens, visible first."""

    pixels: Float[Tensor, "batch masked value"]
    classes: Int64[Tensor, "batch token"]


@dataclass(frozen=True)
class Seen:
    """What a baseline may read of a batch; masked tokens are blanked out.

    ``patches`` are in model units and row-major, 0 where a pixel is invalid or hidden; ``valid``
    is False there. ``counts`` are labelled pixels a class, 0 in hidden tokens.
    """

    patches: Float[Tensor, "batch token value"]
    valid: Bool[Tensor, "batch token pixel"]
    counts: Int64[Tensor, "batch token cls"]
    mask: Mask
    num_bands: int
    patch_px: int
    grid: int
    train_mean: Float[Tensor, " band"]
    majority_class: int

    @property
    def band_means(self) -> Float[Tensor, "batch token band"]:
        """Mean of every visible patch over its valid pixels, 0 for tokens without any."""
        by_band = self.patches.unflatten(2, (self.num_bands, -1))
        return by_band.sum(3) / self.valid.sum(2, keepdim=True).clamp(min=1)


def look(
    batch: Batch,
    mask: Mask,
    model: MaskedAutoencoder,
    train_mean: Float[Tensor, " band"],
    majority_class: int,
) -> Seen:
    """A batch with its masked tokens blanked out."""
    every = torch.arange(model.num_tokens).expand_as(mask.order)
    patches, valid = model.patches(batch.image, batch.valid, every)
    hidden = mask.hidden[:, :, None]
    known = valid & ~hidden
    every_band = known[:, :, None].expand(-1, -1, model.num_bands, -1).flatten(2)
    return Seen(
        patches.masked_fill(~every_band, 0.0),
        known,
        batch.class_counts.masked_fill(hidden, 0),
        mask,
        model.num_bands,
        model.config.patch_px,
        model.grid,
        train_mean,
        majority_class,
    )


def majority(seen: Seen) -> Prediction:
    """The train split's mean pixel and most frequent class, everywhere."""
    batch, masked = seen.mask.masked.shape
    pixels = seen.train_mean.repeat_interleave(seen.patch_px**2)
    classes = torch.full_like(seen.mask.order, seen.majority_class)
    return Prediction(pixels.expand(batch, masked, -1), classes)


def mean_colour(seen: Seen) -> Prediction:
    """The mean of the chip's visible valid pixels and its most frequent visible class."""
    by_band = seen.patches.unflatten(2, (seen.num_bands, -1))
    count = seen.valid.sum((1, 2))[:, None]
    mean = by_band.sum((1, 3)) / count.clamp(min=1)
    mean = torch.where(count > 0, mean, seen.train_mean)
    pixels = mean.repeat_interleave(seen.patch_px**2, 1)[:, None]
    classes = _or_majority(patch_mode(seen.counts.sum(1, keepdim=True)), seen)
    return Prediction(
        pixels.expand(-1, seen.mask.masked.shape[1], -1), classes.expand_as(seen.mask.order)
    )


def nearest_visible(seen: Seen) -> Prediction:
    """A copy of the nearest visible token that has something to copy.

    Distance is Euclidean between patch centres, ties go to the first in row-major order. Pixels
    missing from the copied patch take its mean colour.
    """
    source = _nearest(seen, seen.valid.any(2))[:, seen.mask.num_visible :]
    copied = take_tokens(seen.patches, source).unflatten(2, (seen.num_bands, -1))
    pixels = take_tokens(seen.valid, source)[:, :, None]
    filled = torch.where(pixels, copied, take_tokens(seen.band_means, source)[..., None])
    nothing = ~seen.valid.any(2).any(1)[:, None, None, None]
    filled = torch.where(nothing, seen.train_mean[:, None], filled)
    label_source = _nearest(seen, seen.counts.sum(2) > 0)
    classes = take_tokens(patch_mode(seen.counts), label_source)
    return Prediction(filled.flatten(2), _or_majority(classes, seen))


def bilinear(seen: Seen) -> Prediction:
    """Pull-push inpainting of the pixels, and of the class shares on the patch grid."""
    weight = unpatchify(seen.valid.float(), seen.patch_px, seen.grid)
    image = unpatchify(seen.patches, seen.patch_px, seen.grid)
    filled = patchify(pull_push(image, weight, seen.train_mean), seen.patch_px)
    shares = seen.counts.transpose(1, 2).unflatten(2, (seen.grid, seen.grid)).float()
    labelled = shares.sum(1, keepdim=True)
    shares = shares / labelled.clamp(min=1)
    full = pull_push(shares, (labelled > 0).float(), torch.zeros(shares.shape[1]))
    full = full.flatten(2).transpose(1, 2)
    classes = torch.where(full.sum(2) > 0, full.argmax(2), torch.full_like(seen.mask.order, IGNORE))
    return Prediction(
        take_tokens(filled, seen.mask.masked),
        _or_majority(take_tokens(classes, seen.mask.order), seen),
    )


def pull_push(
    image: Float[Tensor, "batch band row col"],
    weight: Float[Tensor, "batch 1 row col"],
    empty: Float[Tensor, " band"],
) -> Float[Tensor, "batch band row col"]:
    """The image with pixels of weight 0 filled from ever coarser averages of the others.

    ``empty`` fills chips of which nothing is visible.
    """
    if image.shape[-1] == 1 or image.shape[-1] % 2:
        total = weight.sum((2, 3), keepdim=True)
        mean = (image * weight).sum((2, 3), keepdim=True) / total.clamp(min=1)
        coarse = torch.where(total > 0, mean, empty[:, None, None])
        return torch.where(weight > 0, image, coarse)
    half = F.avg_pool2d(weight, 2)
    means = F.avg_pool2d(image * weight, 2) / half.clamp(min=1e-12)
    pulled = pull_push(means * (half > 0), (half > 0).float(), empty)
    pushed = F.interpolate(pulled, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.where(weight > 0, image, pushed)


def _nearest(seen: Seen, usable: Bool[Tensor, "batch token"]) -> Int64[Tensor, "batch token"]:
    """For every token in visible-first order, the nearest usable token."""
    place = torch.arange(seen.grid**2)
    row, col = place // seen.grid, place % seen.grid
    distance = (row[:, None] - row).square() + (col[:, None] - col).square()
    far = 4 * seen.grid**2
    reach = distance[seen.mask.order].masked_fill(~usable[:, None, :], far)
    # argmin breaks ties in no stated order: make every distance of a row unique instead
    return (reach * seen.grid**2 + place).argmin(2)


def _or_majority(classes: Int64[Tensor, ...], seen: Seen) -> Int64[Tensor, ...]:
    return torch.where(classes == IGNORE, seen.majority_class, classes)


BASELINES: dict[str, Callable[[Seen], Prediction]] = {
    "majority": majority,
    "nearest_visible": nearest_visible,
    "mean_colour": mean_colour,
    "bilinear": bilinear,
}
