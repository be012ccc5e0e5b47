"""A class for every pixel: convolutions at five scales, which the vectors of patches may join.

Axes: batch band row col | token (row-major over the patch grid) | cls. Images are in model units
with their invalid pixels filled, as an encoder is shown them.
"""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn
from torch.nn import functional as F

from bharateo.models.mae import MaskedAutoencoder
from bharateo.models.patches import all_visible, unpatchify

CHANNELS = (16, 32, 48, 64, 96)
"""Of an image's own size, a half of it, a quarter, an eighth and a sixteenth."""


class DenseNet(nn.Module):
    """Logits of every pixel's class. With a ``token_width`` it takes an encoder's vectors as well,
    where its image is smallest; without, it is a small U-Net.

    Source: Ronneberger et al. 2015, "U-Net", with sums for concatenations.
    """

    def __init__(self, num_bands: int, num_classes: int, token_width: int | None = None) -> None:
        super().__init__()
        # Beside the bands stands where they are valid.
        sizes = list(zip((num_bands + 1, *CHANNELS), CHANNELS, strict=False))
        self.down = nn.ModuleList(_convolution(*size) for size in sizes)
        self.along = nn.ModuleList(_convolution(size, size) for size in CHANNELS[1:])
        self.narrow = nn.ModuleList(
            nn.Conv2d(below, above, 1) for above, below in itertools.pairwise(CHANNELS)
        )
        self.up = nn.ModuleList(_convolution(size, size) for size in CHANNELS[:-1])
        self.classes = nn.Conv2d(CHANNELS[0], num_classes, 1)
        self.tokens = None
        if token_width is not None:
            self.tokens = nn.Sequential(
                nn.LayerNorm(token_width), nn.Linear(token_width, CHANNELS[-1])
            )

    def forward(
        self,
        image: Float[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        tokens: Float[Tensor, "batch token dim"] | None = None,
    ) -> Float[Tensor, "batch cls row col"]:
        """Logits; ``tokens`` are of a square grid of patches."""
        x = torch.cat([image, valid[:, None].to(image.dtype)], 1)
        x = self.down[0](x.contiguous(memory_format=torch.channels_last))
        kept = [x]
        for down, along in zip(self.down[1:], self.along, strict=True):
            x = down(F.max_pool2d(x, 2, ceil_mode=True))
            if self.tokens is not None and along is self.along[-1]:
                assert tokens is not None
                side = math.isqrt(tokens.shape[1])
                joined = self.tokens(tokens.float()).transpose(1, 2).unflatten(2, (side, side))
                x = x + F.interpolate(joined, x.shape[2:], mode="bilinear", align_corners=False)
            x = along(x)
            kept.append(x)
        kept.pop()
        for up, narrow in zip(reversed(self.up), reversed(self.narrow), strict=True):
            above = kept.pop()
            below = F.interpolate(narrow(x), above.shape[2:], mode="bilinear", align_corners=False)
            x = up(above + below)
        logits: Tensor = self.classes(x)
        return logits


def _convolution(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(num_out),
        nn.ReLU(inplace=True),
    )


class DenseModel(nn.Module):
    """``DenseNet`` on what a model's normalisation and, ``with_tokens``, its encoder make of chips.

    Its weights are those that are trained: the net's, and the model's where it is ``tuned``.
    """

    def __init__(
        self, model: MaskedAutoencoder, num_classes: int, with_tokens: bool, tuned: bool = False
    ) -> None:
        super().__init__()
        self.with_tokens, self.tuned = with_tokens, tuned
        width = model.config.width if with_tokens else None
        self.net = DenseNet(model.num_bands, num_classes, width)
        self.shared = [model]  # in a list it is no part of this module
        if tuned:
            self.encoder = model

    def forward(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        tokens: Float[Tensor, "batch token dim"] | None = None,
    ) -> Float[Tensor, "batch cls row col"]:
        """Logits of every pixel of chips in physical units; ``tokens``, where they are known."""
        (model,) = self.shared
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            patches, _ = model.every_patch(image, valid)
            shown = unpatchify(patches, model.config.patch_px, model.grid)
            if self.with_tokens and tokens is None:
                mask = all_visible(len(image), model.num_tokens, image.device)
                tokens = model.encode(image, valid, mask)
        logits: Tensor = self.net(shown, valid, tokens if self.with_tokens else None)
        return logits
