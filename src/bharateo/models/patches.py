"""Patches of an image and the masks that hide them.

Axes: batch band row col | token (row-major over the patch grid) | visible, masked (parts of
token) | value (band, row, col inside a patch, in that order).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Mask:
    """Which tokens a model sees.

    ``order`` holds every token once, the visible ones first: models work in this order, so that
    "visible" and "masked" are slices. Both parts are sorted. ``num_visible`` is the same for
    every chip.
    """

    order: Int64[Tensor, "batch token"]
    num_visible: int

    def to(self, device: torch.device) -> Mask:
        """The mask on a device; where it is pinned, nobody waits for that."""
        return Mask(self.order.to(device, non_blocking=True), self.num_visible)

    def pinned(self) -> Mask:
        """The mask in memory that a GPU reads by itself."""
        return Mask(self.order.pin_memory(), self.num_visible)

    @property
    def visible(self) -> Int64[Tensor, "batch visible"]:
        """Indices of the tokens the model sees."""
        return self.order[:, : self.num_visible]

    @property
    def masked(self) -> Int64[Tensor, "batch masked"]:
        """Indices of the tokens hidden from it."""
        return self.order[:, self.num_visible :]

    @property
    def hidden(self) -> Bool[Tensor, "batch token"]:
        """True where a token is hidden, in row-major token order."""
        hidden = torch.ones_like(self.order, dtype=torch.bool)
        return hidden.scatter_(1, self.visible, False)

    def restore(self, tokens: Shaped[Tensor, "batch token *rest"]) -> Shaped[Tensor, ...]:
        """Tokens in visible-first order put back into row-major order."""
        back = self.order.argsort(1)
        return take_tokens(tokens, back)


def all_visible(num_chips: int, num_tokens: int, device: torch.device | None = None) -> Mask:
    """The mask that hides nothing."""
    return Mask(torch.arange(num_tokens, device=device).expand(num_chips, num_tokens), num_tokens)


def num_masked(num_tokens: int, mask_ratio: float) -> int:
    """How many tokens of a chip are hidden: ``int(num_tokens * mask_ratio)``, exactly."""
    return int(num_tokens * mask_ratio)


def mask_from_noise(noise: Float[Tensor, "batch token"], masked: int) -> Mask:
    """The mask that hides the ``masked`` tokens with the largest noise of every chip."""
    num_visible = noise.shape[1] - masked
    order = noise.argsort(dim=1, stable=True)
    visible = order[:, :num_visible].sort(1).values
    hidden = order[:, num_visible:].sort(1).values
    return Mask(torch.cat([visible, hidden], 1), num_visible)


def take_tokens(
    tokens: Shaped[Tensor, "batch token *rest"], index: Int64[Tensor, "batch chosen"]
) -> Shaped[Tensor, ...]:
    """``tokens[b, index[b, i]]`` for every chip b."""
    chips = torch.arange(tokens.shape[0], device=tokens.device)[:, None]
    return tokens[chips, index]


def patch_grid(
    image: Shaped[Tensor, "batch band height width"], patch_px: int
) -> Shaped[Tensor, "batch row col band patch_row patch_col"]:
    """The image as a grid of patches; a view, nothing is copied."""
    batch, bands, height, width = image.shape
    grid = image.reshape(batch, bands, height // patch_px, patch_px, width // patch_px, patch_px)
    return grid.permute(0, 2, 4, 1, 3, 5)


def patchify(
    image: Shaped[Tensor, "batch band height width"], patch_px: int
) -> Shaped[Tensor, "batch token value"]:
    """Every patch of the image as one vector (band, row, col)."""
    return patch_grid(image, patch_px).flatten(1, 2).flatten(2)


def unpatchify(
    patches: Shaped[Tensor, "batch token value"], patch_px: int, num_cols: int
) -> Shaped[Tensor, "batch band height width"]:
    """The inverse of ``patchify``; ``num_cols`` is the width of the patch grid."""
    batch, tokens, values = patches.shape
    rows, bands = tokens // num_cols, values // patch_px**2
    grid = patches.reshape(batch, rows, num_cols, bands, patch_px, patch_px)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(
        batch, bands, rows * patch_px, num_cols * patch_px
    )


def pull_push(
    image: Float[Tensor, "batch band row col"],
    weight: Float[Tensor, "batch 1 row col"],
    empty: Float[Tensor, " band"],
) -> Float[Tensor, "batch band row col"]:
    """The image with pixels of weight 0 filled from ever coarser averages of the others.

    ``empty`` fills chips of which nothing is visible.
    """
    side = image.shape[-1]
    if side > 1 and side % 2:  # a row and a column more, of which nothing is known
        more = (0, 1, 0, 1)
        return pull_push(F.pad(image, more), F.pad(weight, more), empty)[..., :side, :side]
    if side == 1:
        return torch.where(weight > 0, image, empty[:, None, None])
    half = F.avg_pool2d(weight, 2)
    means = F.avg_pool2d(image * weight, 2) / half.clamp(min=1e-12)
    pulled = pull_push(means * (half > 0), (half > 0).float(), empty)
    pushed = F.interpolate(pulled, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.where(weight > 0, image, pushed)
