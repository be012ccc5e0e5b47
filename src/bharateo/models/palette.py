"""Pixels in the colours of the classes: which of the few colours each has, asked as a class is.

A head that says a colour's numbers has to say one that lies between two where it hesitates. One
that says how likely each colour is learns of every pixel by cross-entropy, and can draw what has
the least error to expect.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from bharateo.errors import ConfigError
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.models.embedding import KeptInFloat32
from bharateo.models.kernels import CHIPS_IN_CACHE, eager_on_cpu, known_all

_SAME_COLOUR = 1 / 255
_ONLY_FOR = "heads.pixels.options.target palette is for chips in the colours of the classes"
_REMEDY = "give --set heads.pixels.options.target=pixels"


class Palette(KeptInFloat32):
    """The colours of ``BHARATEO_CLASSES`` in model units, and pictures drawn in them.

    How likely they are is said by logits (batch, chosen, colour x pixel), those of a colour side
    by side.
    """

    colours: Tensor
    """(colour, band)."""

    def __init__(self, model_units: Callable[[Tensor], Tensor], num_bands: int) -> None:
        """``model_units`` takes physical values, (colour, band).

        Raises:
            ConfigError: there are other than three bands.
        """
        super().__init__()
        if num_bands != 3:
            raise ConfigError(f"{_ONLY_FOR}, and there are {num_bands} bands: {_REMEDY}")
        colours = model_units(torch.tensor([each.colour for each in BHARATEO_CLASSES]) / 255)
        self.num_colours = len(colours)
        self.register_buffer("colours", colours, persistent=False)

    def check(
        self,
        patches: Float32[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
    ) -> None:
        """Refuse patches in model units with valid ``pixels`` in none of the colours.

        Raises:
            ConfigError: some are.
        """
        drawn = self.colours[self.nearest(patches)].transpose(2, 3)
        off = (patches.unflatten(2, (3, -1)) - drawn).abs().amax(2)
        if (off[pixels] > _SAME_COLOUR).any():
            raise ConfigError(f"{_ONLY_FOR}, and some pixels have others: {_REMEDY}")

    def nearest(
        self, patches: Float[Tensor, "batch chosen value"]
    ) -> Int64[Tensor, "batch chosen pixel"]:
        """Which colour is nearest to every pixel."""
        squares = self.colours.square().sum(1)[:, None]
        distance = squares - 2 * (self.colours @ patches.unflatten(2, (3, -1)))
        return distance.min(2).indices  # several times as fast as argmin

    def median(
        self, logits: Float[Tensor, "batch chosen colour_pixel"]
    ) -> Float32[Tensor, "batch chosen value"]:
        """In each band the median of the colours as likely as they are: what has the least
        absolute error to expect.
        """
        likely = logits.float().unflatten(2, (self.num_colours, -1)).softmax(2)
        bands = []
        for values, order in zip(*(each.T for each in self.colours.sort(0)), strict=True):
            darker = (likely[:, :, order].cumsum(2) < 0.5).sum(2)
            bands.append(values[darker.clamp(max=self.num_colours - 1)])
        return torch.cat(bands, 2)

    def errors(
        self,
        logits: Float32[Tensor, "batch chosen colour_pixel"],
        patches: Float32[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
    ) -> tuple[Float32[Tensor, ""], Float32[Tensor, "batch chosen value"]]:
        """The sum over valid ``pixels`` of the cross-entropy with their own colours, which has a
        gradient; and the ``median``.
        """
        if eager_on_cpu(logits):
            return _Errors.apply(logits, patches, pixels, self)
        own = self.nearest(patches)[:, :, None]
        likely = logits.unflatten(2, (self.num_colours, -1)).log_softmax(2)
        each = -likely.gather(2, own)[:, :, 0]
        return each.masked_fill(~pixels, 0.0).sum(), self.median(logits.detach())


class _Errors(torch.autograd.Function):
    """``Palette.errors`` on a CPU: some chips at a time, so that they stay in its cache."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, patches: Tensor, pixels: Tensor, palette: Palette
    ) -> tuple[Tensor, Tensor]:
        slope, drawn, total = torch.empty_like(logits), torch.empty_like(patches), torch.zeros(())
        colours = palette.colours.T.tolist()
        parts = (each.split(CHIPS_IN_CACHE) for each in (logits, patches, pixels, slope, drawn))
        for said, truth, known, odds, picture in zip(*parts, strict=True):
            own = palette.nearest(truth)[:, :, None]
            said, odds = (each.unflatten(2, (palette.num_colours, -1)) for each in (said, odds))
            torch.sub(said, said.amax(2, keepdim=True), out=odds)
            each = -odds.gather(2, own)[:, :, 0]
            odds.exp_()
            whole = odds.sum(2)
            each += whole.log()
            for band, out in zip(colours, picture.split(whole.shape[2], 2), strict=True):
                _median(odds, whole / 2, band, out)
            odds.div_(whole[:, :, None])
            odds.scatter_add_(2, own, odds.new_full((), -1.0).expand(own.shape))
            if not known_all(known):
                each.masked_fill_(~known, 0.0)
                odds.masked_fill_(~known[:, :, None], 0.0)
            total += each.sum()
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(drawn)
        return total, drawn

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope.mul_(grads[0]), None, None, None  # a second pass would be refused


def _median(odds: Tensor, half: Tensor, colours: Sequence[float], out: Tensor) -> None:
    """One band of ``Palette.median``; ``half`` is half the sum of the colours' ``odds``."""
    order = sorted(range(len(colours)), key=colours.__getitem__)
    below, passed = torch.zeros_like(half), torch.empty_like(half)
    out.fill_(colours[order[0]])
    for darker, brighter in itertools.pairwise(order):
        below += odds[:, :, darker]
        torch.lt(below, half, out=passed)  # as numbers: several times as fast as adding booleans
        out.add_(passed, alpha=colours[brighter] - colours[darker])
