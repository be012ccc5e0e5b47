"""What a training step spends its time on outside of matrix products: a reference in PyTorch each,
and beside it the same as fast as a CPU can, some chips at a time, so that they stay in its cache.

The reference is what runs on a GPU and in compiled graphs, which fuse it; it says what is meant.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from bharateo.models.patches import patchify, take_tokens

CHIPS_IN_CACHE = 4
"""Chips that eager work on a CPU takes at a time, so that they stay in its cache between passes."""


def eager_on_cpu(tensor: Tensor) -> bool:
    """Whether work on a tensor runs at once on a CPU, not on a GPU or in a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def known_all(condition: Bool[Tensor, "*shape"]) -> bool:
    """Whether all is true, where asking costs nothing: on a CPU, outside a compiled graph.

    For shortcuts that change no result; elsewhere the answer is False.
    """
    return eager_on_cpu(condition) and bool(condition.all())


def take_patches(
    image: Shaped[Tensor, "batch band height width"],
    patch_px: int,
    index: Int64[Tensor, "batch chosen"],
) -> Shaped[Tensor, "batch chosen value"]:
    """The patches ``index`` of every chip: ``take_tokens(patchify(image, patch_px), index)``."""
    if not eager_on_cpu(image):
        return take_tokens(patchify(image, patch_px), index)
    num_values = image.shape[1] * patch_px**2
    taken = image.new_empty(*index.shape, num_values)
    parts = (each.split(CHIPS_IN_CACHE) for each in (image, index, taken))
    for chips, some, out in zip(*parts, strict=True):
        patches = patchify(chips, patch_px)
        first = torch.arange(len(chips))[:, None] * patches.shape[1]
        rows = patches.flatten(0, 1)
        torch.index_select(rows, 0, (first + some).flatten(), out=out.flatten(0, 1))
    return taken


def pixel_errors(
    predicted: Float[Tensor, "batch masked value"],
    target: Float[Tensor, "batch masked value"],
    valid: Bool[Tensor, "batch masked pixel"],
    beta: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " band"]]:
    """Sums over valid scalars: SmoothL1, which has a gradient, and the absolute error by band.

    SmoothL1 of an error d is ``d^2 / (2 beta)`` where ``|d| < beta``, else ``|d| - beta / 2``.
    """
    if eager_on_cpu(predicted):
        return _PixelErrors.apply(predicted, target, valid, beta)
    missing, by_band = ~valid[:, :, None], (-1, valid.shape[2])
    each = F.smooth_l1_loss(predicted, target, reduction="none", beta=beta).unflatten(2, by_band)
    absolute = (predicted - target).detach().abs().unflatten(2, by_band)
    return (
        each.masked_fill(missing, 0.0).sum(),
        absolute.masked_fill(missing, 0.0).sum((0, 1, 3)),
    )


class _PixelErrors(torch.autograd.Function):
    """``pixel_errors`` on a CPU. With s = clamp(d / beta, -1, 1), the slope at an error d,
    SmoothL1 is s d - beta s^2 / 2.
    """

    @staticmethod
    def forward(
        ctx: Any, predicted: Tensor, target: Tensor, valid: Tensor, beta: float
    ) -> tuple[Tensor, Tensor]:
        slope, num_bands = torch.empty_like(predicted), predicted.shape[2] // valid.shape[2]
        total, absolute = torch.zeros(()), torch.zeros(num_bands)
        parts = (each.split(CHIPS_IN_CACHE) for each in (predicted, target, valid, slope))
        for guess, truth, known, out in zip(*parts, strict=True):
            error = (guess - truth).unflatten(2, (num_bands, -1))
            if not known_all(known):
                error.masked_fill_(~known[:, :, None], 0.0)
            torch.div(error, beta, out=out.unflatten(2, (num_bands, -1))).clamp_(-1, 1)
            flat = out.flatten()
            total += (flat * error.flatten()).sum() - beta / 2 * (flat * flat).sum()
            absolute += error.abs_().sum((0, 1, 3))
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(absolute)
        return total, absolute

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope.mul_(grads[0]), None, None, None  # a second pass would be refused
