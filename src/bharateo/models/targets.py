"""Frozen targets: numbers of a patch that are asked instead of its pixels, and how fit they are.

Each is computed from a patch alone, in model units with its invalid pixels filled, by nothing that
training moves: a target that moves can collapse. What is drawn or measured is so once, of training
chips before the first step, and travels in the weights.

Sources: He et al. 2022, "Masked autoencoders are scalable vision learners" (normalised pixels);
Wei et al. 2022, "Masked feature prediction" (histograms of gradients); Rolf et al. 2021 (energies
of whitened squares, see ``embedding.Energies``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.nn import functional as F

from bharateo.models.embedding import Energies, KeptInFloat32

PROJECTED = 128
"""Numbers of a projection; fewer where a patch has fewer values."""

ORIENTATIONS = 9
PARTS = 2
"""Histograms of gradients are taken in so many parts of a patch's side."""

FLATTEST = 1e-3
"""A deviation, in model units, below which nothing is blown up to 1."""


class FrozenTarget(KeptInFloat32):
    """``size`` numbers of every patch, standardised as they vary over training patches."""

    mean: Tensor
    scale: Tensor

    def __init__(self, num_bands: int, patch_px: int, size: int) -> None:
        super().__init__()
        self.num_bands, self.patch_px, self.size = num_bands, patch_px, size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def prepare(self, patches: Float32[Tensor, "patch value"], seed: int) -> None:
        """Choose what ``numbers`` needs besides, by training patches."""

    def numbers(self, patches: Float32[Tensor, "patch value"]) -> Float32[Tensor, "patch number"]:
        """The numbers as they come."""
        raise NotImplementedError

    def fit(
        self,
        patches: Float32[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
        seed: int,
    ) -> None:
        """Draw what is drawn, and measure how the numbers vary."""
        some = patches[pixels.any(2)]
        if len(some):
            self.prepare(some, seed)
            every = self.numbers(some)
            self.mean.copy_(every.mean(0))
            self.scale.copy_(every.std(0, correction=0).clamp(min=FLATTEST))

    def forward(
        self,
        patches: Float32[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
    ) -> Float32[Tensor, "batch chosen number"]:
        """The numbers of patches; those of one without a valid pixel mean nothing."""
        found = (self.numbers(patches.float().flatten(0, 1)) - self.mean) / self.scale
        return found.unflatten(0, patches.shape[:2])


class NormalisedPixels(FrozenTarget):
    """The patch's pixels less each band's mean over the patch, by one deviation of the patch: its
    pattern, whatever the light.
    """

    def __init__(self, num_bands: int, patch_px: int) -> None:
        super().__init__(num_bands, patch_px, num_bands * patch_px**2)

    def numbers(self, patches: Float32[Tensor, "patch value"]) -> Float32[Tensor, "patch number"]:
        """Deviation 1 in every patch that is not flat."""
        by_band = patches.unflatten(1, (self.num_bands, -1))
        pattern = (by_band - by_band.mean(2, keepdim=True)).flatten(1)
        return pattern / pattern.std(1, keepdim=True, correction=0).clamp(min=FLATTEST)


class Gradients(FrozenTarget):
    """Histograms of oriented gradients of the bands' mean in ``PARTS`` x ``PARTS`` parts, of unit
    length together, and what every two bands' means differ by, in deviations.
    """

    def __init__(self, num_bands: int, patch_px: int) -> None:
        self.pairs = torch.tensor([*itertools.combinations(range(num_bands), 2)]).reshape(-1, 2)
        size = PARTS**2 * ORIENTATIONS + len(self.pairs)
        super().__init__(num_bands, patch_px, size)

    def numbers(self, patches: Float32[Tensor, "patch value"]) -> Float32[Tensor, "patch number"]:
        """Each gradient is shared by the two directions it lies between."""
        squares = patches.unflatten(1, (self.num_bands, self.patch_px, self.patch_px))
        grey = F.pad(squares.mean(1, keepdim=True), [1] * 4, "replicate")[:, 0]
        down = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
        right = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
        direction = torch.atan2(down, right).remainder(math.pi) * (ORIENTATIONS / math.pi)
        every = torch.arange(ORIENTATIONS, device=patches.device)[:, None, None]
        apart = (direction[:, None] - every).abs()
        share = (1 - torch.minimum(apart, ORIENTATIONS - apart)).clamp(min=0)
        strength = (down.square() + right.square()).sqrt()[:, None]
        found = F.adaptive_avg_pool2d(share * strength, PARTS).flatten(1)
        found = found / found.norm(dim=1, keepdim=True).clamp(min=FLATTEST)
        first, second = squares.mean((2, 3))[:, self.pairs.to(patches.device)].unbind(2)
        return torch.cat([found, first - second], 1)


class Projection(FrozenTarget):
    """The patch's pixels in ``PROJECTED`` random directions."""

    directions: Tensor

    def __init__(self, num_bands: int, patch_px: int) -> None:
        num_values = num_bands * patch_px**2
        super().__init__(num_bands, patch_px, min(PROJECTED, num_values))
        self.register_buffer("directions", torch.zeros(num_values, self.size))

    def prepare(self, patches: Float32[Tensor, "patch value"], seed: int) -> None:
        """Gaussian directions of about unit length."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.directions.shape, generator=generator)
        self.directions.copy_(drawn / len(drawn) ** 0.5)

    def numbers(self, patches: Float32[Tensor, "patch value"]) -> Float32[Tensor, "patch number"]:
        """Products with the directions."""
        return patches @ self.directions


class WhitenedProjection(Projection):
    """The pixels in the ``PROJECTED`` directions in which training patches vary most, each of
    deviation 1, turned at random.
    """

    def prepare(self, patches: Float32[Tensor, "patch value"], seed: int) -> None:
        """Principal components by their deviations, times a random rotation."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rank = min(self.size, len(patches))
            _, deviation, components = torch.pca_lowrank(patches.double(), rank)
            turned = torch.linalg.qr(torch.randn(rank, self.size, dtype=torch.float64).T)[0].T
        scale = deviation / max(len(patches) - 1, 1) ** 0.5
        self.directions.copy_((components / scale.clamp(min=FLATTEST)) @ turned)


TARGETS: Mapping[str, Callable[[int, int], FrozenTarget | Energies]] = {
    "energies": Energies,
    "normalised": NormalisedPixels,
    "gradients": Gradients,
    "projection": Projection,
    "whitened": WhitenedProjection,
}
"""What ``heads.features.options.target`` may be: made for bands and the side of a patch."""


# How fit a target is


MOST_ALIKE = 0.9
"""Mean cosine of two patches' targets from which on there is nothing to tell apart."""

LEAST_DEVIATION = 0.5
LEAST_RANK = 1.5
MOST_PREDICTABLE = 0.99


@dataclass(frozen=True)
class Conditioning:
    """What a target of some patches is like, before anything has learned it.

    ``deviation`` is the root of the mean variance of its numbers, about 1 where these are
    standardised and more than rounding; ``effective_rank`` the exponential of the entropy of the
    singular values of the centred targets (Roy and Vetterli 2007, "The effective rank");
    ``mean_cosine`` that between two patches' targets; ``from_mean`` the share of its variance that
    a linear map of the means of the patch's bands explains.
    """

    num_values: int
    deviation: float
    effective_rank: float
    mean_cosine: float
    from_mean: float

    @classmethod
    def of(
        cls, targets: Float[Tensor, "patch value"], means: Float[Tensor, "patch band"]
    ) -> Conditioning:
        """Of two patches or more, in double precision."""
        targets, means = targets.double(), means.double()
        centred = targets - targets.mean(0)
        small = min(centred @ centred.T, centred.T @ centred, key=len)
        singular = torch.linalg.eigvalsh(small).clamp(min=0).sqrt()
        share = singular / singular.sum().clamp(min=1e-300)
        rank = math.exp(float(torch.special.entr(share).sum()))
        unit = F.normalize(targets, dim=1)
        num = len(targets)
        cosine = (float(unit.sum(0).square().sum()) - num) / (num * (num - 1))
        known = torch.cat([means, torch.ones_like(means[:, :1])], 1)
        left = targets - known @ (torch.linalg.pinv(known) @ targets)
        varies = float(centred.square().sum())
        explained = 1 - float(left.square().sum()) / varies if varies > 1e-12 * num else 1.0
        deviation = (varies / targets.numel()) ** 0.5
        return cls(targets.shape[1], deviation, rank, cosine, explained)

    def dead(self) -> str:
        """Why nothing can be learned from a target that was standardised, or nothing beyond the
        mean; empty if it is alive.
        """
        if self.deviation < LEAST_DEVIATION:
            return f"it hardly varies: deviation {self.deviation:.2g}, standardised ones have 1"
        if self.mean_cosine > MOST_ALIKE:
            return f"all patches' targets are nearly one: mean cosine {self.mean_cosine:.3f}"
        if self.effective_rank < min(LEAST_RANK, self.num_values):
            return f"it varies in one direction alone: effective rank {self.effective_rank:.2f}"
        if self.from_mean > MOST_PREDICTABLE:
            return f"the patch's mean says {self.from_mean:.1%} of it"
        return ""

    def __str__(self) -> str:
        return (
            f"{self.num_values} numbers a patch, effective rank {self.effective_rank:.1f}, mean "
            f"cosine {self.mean_cosine:.2f}, {self.from_mean:.0%} of the variance known from the "
            "patch's mean"
        )
