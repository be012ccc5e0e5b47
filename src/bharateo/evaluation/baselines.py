"""What a model must beat: four ways to fill in what is hidden, from the visible patches or nothing.

A baseline gives the batch back with every pixel and every patch's label made up. What it predicts
of a task is that head's own target of the filled batch, so a new head has its baselines for free.
Unlike a model they are also *told* the labels of the visible patches; a baseline's accuracy on
visible tokens is therefore no achievement.

- ``majority``: the most frequent class, and the mean pixel, of the train split.
- ``mean_colour``: the mean colour and the most frequent class of the chip's visible patches.
- ``nearest_visible``: a copy of the nearest visible patch, its pixels and its labels.
- ``bilinear``: inpainting by pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4):
  averages over ever larger squares, put back by bilinear interpolation where nothing is visible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bharateo.models.heads import Batch
from bharateo.models.patches import Mask, patchify, pull_push, take_tokens, unpatchify

_SHARE = 2**40
"""What stands for the whole of a patch where its class counts are made of shares: single-precision
shares are whole multiples of its inverse, so which is the largest stays as it was."""


@dataclass(frozen=True)
class Seen:
    """What a baseline may read of a batch; masked tokens are blanked out.

    Patches are in physical units and tokens row-major, 0 where a pixel is invalid or hidden;
    ``valid`` is False there. ``counts`` are labelled pixels a class, 0 in hidden tokens. Of the
    train split it is told the mean and the most frequent class.
    """

    patches: Float[Tensor, "batch token band pixel"]
    valid: Bool[Tensor, "batch token 1 pixel"]
    counts: Int64[Tensor, "batch token cls"]
    chip: Int64[Tensor, " batch"]
    train_mean: Float[Tensor, " band"]
    majority_class: int

    @classmethod
    def of(
        cls, batch: Batch, mask: Mask, train_mean: Float[Tensor, " band"], majority_class: int
    ) -> Seen:
        """A batch with its masked tokens blanked out."""
        patch_px = batch.image.shape[-1] // math.isqrt(mask.order.shape[1])
        hidden = mask.hidden[:, :, None]
        known = (patchify(batch.valid[:, None], patch_px) & ~hidden)[:, :, None]
        patches = patchify(batch.image, patch_px).unflatten(2, (len(train_mean), -1))
        counts = batch.class_counts.masked_fill(hidden, 0)
        return cls(
            patches.masked_fill(~known, 0.0), known, counts, batch.chip, train_mean, majority_class
        )

    @property
    def grid(self) -> int:
        """Tokens along a chip's side."""
        return math.isqrt(self.patches.shape[1])

    @property
    def patch_px(self) -> int:
        """Pixels along a patch's side."""
        return math.isqrt(self.patches.shape[3])

    def filled(
        self,
        patches: Float[Tensor, "batch token band pixel"],
        counts: Int64[Tensor, "batch token cls"],
    ) -> Batch:
        """These patches, all of them valid, and labels as a batch; where there is no label, the
        train split's most frequent class.
        """
        image = unpatchify(patches.flatten(2), self.patch_px, self.grid)
        usual = torch.zeros_like(counts[:1, :1])
        usual[..., self.majority_class] = self.patch_px**2
        counts = torch.where(counts.sum(2, keepdim=True) > 0, counts, usual)
        return Batch(image, torch.ones_like(image[:, 0], dtype=torch.bool), counts, self.chip)


def majority(seen: Seen) -> Batch:
    """The train split's mean pixel and most frequent class, everywhere."""
    patches = seen.train_mean[:, None].expand_as(seen.patches)
    return seen.filled(patches, torch.zeros_like(seen.counts))


def mean_colour(seen: Seen) -> Batch:
    """The mean of the chip's visible valid pixels and its most frequent visible class."""
    count = seen.valid.sum((1, 3))
    mean = seen.patches.sum((1, 3)) / count.clamp(min=1)
    mean = torch.where(count > 0, mean, seen.train_mean)
    counts = seen.counts.sum(1, keepdim=True)
    return seen.filled(
        mean[:, None, :, None].expand_as(seen.patches), counts.expand_as(seen.counts)
    )


def nearest_visible(seen: Seen) -> Batch:
    """A copy of the nearest visible token that has something to copy.

    Distance is Euclidean between patch centres, ties go to the first in row-major order. Pixels
    missing from the copied patch take its mean colour.
    """
    usable = seen.valid.any(3).any(2)
    source = _nearest(seen.grid, usable)
    count = seen.valid.sum(3, keepdim=True).clamp(min=1)
    gapless = torch.where(seen.valid, seen.patches, seen.patches.sum(3, keepdim=True) / count)
    nothing = ~usable.any(1)[:, None, None, None]
    patches = torch.where(nothing, seen.train_mean[:, None], take_tokens(gapless, source))
    labelled = _nearest(seen.grid, seen.counts.sum(2) > 0)
    return seen.filled(patches, take_tokens(seen.counts, labelled))


def bilinear(seen: Seen) -> Batch:
    """Pull-push inpainting of the pixels, and of the class shares on the patch grid."""
    weight = unpatchify(seen.valid.float().flatten(2), seen.patch_px, seen.grid)
    image = unpatchify(seen.patches.flatten(2), seen.patch_px, seen.grid)
    filled = patchify(pull_push(image, weight, seen.train_mean), seen.patch_px)
    shares = seen.counts.transpose(1, 2).unflatten(2, (seen.grid, seen.grid)).float()
    labelled = shares.sum(1, keepdim=True)
    shares = shares / labelled.clamp(min=1)
    full = pull_push(shares, (labelled > 0).float(), shares.new_zeros(shares.shape[1]))
    counts = (full.flatten(2).transpose(1, 2) * _SHARE).long()
    return seen.filled(filled.unflatten(2, (len(seen.train_mean), -1)), counts)


def _nearest(grid: int, usable: Bool[Tensor, "batch token"]) -> Int64[Tensor, "batch token"]:
    """For every token the nearest usable one."""
    place = torch.arange(grid**2, device=usable.device)
    row, col = place // grid, place % grid
    distance = (row[:, None] - row).square() + (col[:, None] - col).square()
    reach = distance.expand(len(usable), -1, -1).masked_fill(~usable[:, None, :], 4 * grid**2)
    # argmin breaks ties in no stated order: make every distance of a row unique instead
    return (reach * grid**2 + place).argmin(2)


BASELINES: dict[str, Callable[[Seen], Batch]] = {
    "majority": majority,
    "nearest_visible": nearest_visible,
    "mean_colour": mean_colour,
    "bilinear": bilinear,
}
