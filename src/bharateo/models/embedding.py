"""How the pixels of a patch become the vector that a transformer takes: the embedding of patches.

Every embedding is shown patches alone, each by itself, in model units with their invalid pixels
filled: what it makes of one cannot depend on a hidden patch, nor on what an invalid pixel held.

A linear map of raw pixels cannot say how rough a patch is, since its outputs change their sign
with the pixels. ``EnergyEmbedding`` and ``StemEmbedding`` can, by convolutions within the patch.

Patches hold all bands, or those of one of the sets that the embedding was made for. The large maps
of pixels are shared: a set has its bands' columns of them, and in place of the others a learned
vector. Energies are fitted to each set by itself: a whitened filter is a difference between bands,
and has no meaning where some of them are made up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn
from torch.nn import functional as F

from bharateo.config import ModelConfig
from bharateo.errors import ConfigError
from bharateo.models.kernels import eager_on_cpu, known_all

FILTER_PX = 3
THRESHOLD = 0.5
"""Where a filter's response begins to count, in deviations of the response."""

STRIDE = 2
"""A response is taken at every second row and column; their mean over a patch hardly differs."""

GAIN = 10.0
"""The logarithm is taken of 1 + so many energies: small ones, as of water, stay apart."""

_SAMPLES = 20_000
"""Squares of the train split that whitening is measured on."""

_NO_WHITENING_BELOW = 1e-3
"""Variance, as a share of the largest, below which a direction is noise and is not blown up."""

_STEM_CHANNELS = 64
"""Numbers at a place that a stem's linear map takes."""

_PATCHES_IN_CACHE = 64
"""Patches that eager work on a CPU takes at a time, so that responses stay in its cache."""


BandSets = Mapping[str, Sequence[int]]
"""Set of bands -> the places of its bands among all."""


class PatchEmbedding(nn.Module):
    """Makes a vector of every patch, by that patch alone."""

    def fit(
        self,
        patches: Float32[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
        seed: int,
    ) -> None:
        """Measure once, of training patches in model units, what is not trained."""

    def forward(
        self,
        patches: Float[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
        band_set: str | None = None,
    ) -> Float[Tensor, "batch chosen dim"]:
        """Vectors of patches in model units, in the weights' precision; ``pixels`` are valid.

        Patches hold the bands of ``band_set`` alone, all bands where that is None.
        """
        raise NotImplementedError


class LinearEmbedding(PatchEmbedding, nn.Linear):
    """A linear map of a patch's pixels.

    ``absent`` are the vectors that stand for the bands a set lacks. One for all of them: sets are
    shown whole, so no more than the sum over a set's absent bands could be learned.
    """

    def __init__(self, config: ModelConfig, num_bands: int, band_sets: BandSets) -> None:
        super().__init__(linear_inputs("linear", num_bands, config.patch_px), config.width)
        self.num_bands, self.band_sets = num_bands, band_sets
        self.absent = absent_vectors(band_sets, config.width)

    def forward(  # type: ignore[override]
        self,
        patches: Float[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
        band_set: str | None = None,
    ) -> Float[Tensor, "batch chosen dim"]:
        """See ``PatchEmbedding``."""
        return F.linear(patches.to(self.weight.dtype), *self.linear_map(band_set))

    def linear_map(
        self, band_set: str | None
    ) -> tuple[Float[Tensor, "dim value"], Float[Tensor, " dim"]]:
        """Weight and bias, of patches of all bands or of a set's alone."""
        if band_set is None:
            return self.weight, self.bias
        by_band = self.weight.unflatten(1, (self.num_bands, -1))
        weight = by_band[:, list(self.band_sets[band_set])].flatten(1)
        return weight, self.bias + self.absent[_number(self, band_set)]


class KeptInFloat32(nn.Module):
    """A module whose buffers stay in float32 when its model goes to half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeptInFloat32:
        """As for every module, which is how it is moved and cast, but never cast."""
        whole = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, value in whole.items():
            applied = getattr(self, name)
            if applied.dtype != value.dtype:
                setattr(self, name, value.to(applied.device))
        return self


class Energies(KeptInFloat32):
    """How much of every pattern a patch holds: ``num_filters`` fixed filters, both signs apart.

    A filter's response at a pixel counts from ``THRESHOLD`` on, and is averaged over the patch's
    valid pixels; log(1 + 10 x) of that is standardised as it varies over training patches. All is
    ``fit`` once, before the first step, and travels in the weights. Before, it is zero.

    It computes in float32 whatever the weights are in: a whitened filter is a small difference of
    large numbers.

    Sources: Coates and Ng 2012, "Learning feature representations with k-means", section 2
    (whitened patches as filters, soft threshold); Rolf et al. 2021 (MOSAIKS).
    """

    filters: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, num_bands: int, patch_px: int, num_filters: int = 64) -> None:
        super().__init__()
        if patch_px < FILTER_PX:
            raise ConfigError(
                f"model.embedding 'energies' needs patches of {FILTER_PX} px or more, "
                f"model.patch_px is {patch_px}: raise it, or choose 'linear'"
            )
        self.patch_px = patch_px
        filters = torch.zeros(num_filters, num_bands, FILTER_PX, FILTER_PX)
        self.register_buffer("filters", filters)
        self.register_buffer("bias", torch.zeros(num_filters))
        self.register_buffer("mean", torch.zeros(2 * num_filters))
        self.register_buffer("scale", torch.ones(2 * num_filters))

    @property
    def size(self) -> int:
        """Numbers of a patch."""
        return len(self.mean)

    def fit(
        self,
        patches: Float32[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
        seed: int,
    ) -> None:
        """Cut the filters from training patches, and measure how their energies vary."""
        squares, known = self._squares(patches, pixels)
        filters, bias = whitened_filters(squares, known, len(self.bias), _SAMPLES, seed)
        self.filters.copy_(filters)
        self.bias.copy_(bias)
        every = self._logarithms(patches, pixels)[pixels.any(2)]
        if len(every):
            self.mean.copy_(every.mean(0))
            self.scale.copy_(every.std(0, correction=0).clamp(min=1e-3))

    def forward(
        self,
        patches: Float32[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
    ) -> Float32[Tensor, "batch chosen energy"]:
        """Standardised logarithms of the energies; as of an average patch where none is valid."""
        standard = (self._logarithms(patches, pixels) - self.mean) / self.scale
        return standard.masked_fill(~pixels.any(2, keepdim=True), 0.0)

    def _logarithms(self, patches: Tensor, pixels: Tensor) -> Tensor:
        squares, known = self._squares(patches, pixels)
        device = patches.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                found = self._energies(squares, known)
        else:  # a graph that is exported has no such context in it
            found = self._energies(squares, known)
        return torch.log1p(GAIN * found).unflatten(0, patches.shape[:2])

    def _squares(self, patches: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patches and their validity as images: (patch, band, row, col) and (patch, row, col)."""
        side = (self.patch_px, self.patch_px)
        squares = patches.float().flatten(0, 1).unflatten(1, (self.filters.shape[1], *side))
        return squares, pixels.flatten(0, 1).unflatten(1, side)

    def _energies(self, squares: Tensor, known: Tensor) -> Tensor:
        """Mean responses of both signs beyond the threshold, (patch, energy)."""
        if not eager_on_cpu(squares):
            return self._pooled(squares, known)
        parts = (each.split(_PATCHES_IN_CACHE) for each in (squares, known))
        return torch.cat([self._pooled(*part) for part in zip(*parts, strict=True)])

    def _pooled(self, squares: Tensor, known: Tensor) -> Tensor:
        edge = FILTER_PX // 2
        padded = F.pad(squares, [edge] * 4, "replicate")
        response = F.conv2d(padded, self.filters, self.bias, STRIDE).flatten(2)
        seen = known[:, None, ::STRIDE, ::STRIDE].flatten(2)
        both = F.relu(response - THRESHOLD), F.relu(-response - THRESHOLD)
        if known_all(seen):
            return torch.cat([each.mean(2) for each in both], 1)
        share = seen.float() / seen.sum(2, keepdim=True).clamp(min=1)
        return torch.cat([(each * share).sum(2) for each in both], 1)


class EnergyEmbedding(LinearEmbedding):
    """The linear embedding, plus one of the patch's ``Energies``: LayerNorm, Linear. ``of_sets``
    are those of each set of bands.
    """

    def __init__(self, config: ModelConfig, num_bands: int, band_sets: BandSets) -> None:
        super().__init__(config, num_bands, band_sets)
        size = config.patch_px, config.num_filters
        self.energies = Energies(num_bands, *size)
        self.norm = nn.LayerNorm(self.energies.size)
        self.linear = nn.Linear(self.energies.size, config.width)
        self.of_sets = nn.ModuleList(
            nn.Sequential(
                Energies(len(places), *size),
                nn.LayerNorm(self.energies.size),
                nn.Linear(self.energies.size, config.width),
            )
            for places in band_sets.values()
        )

    def fit(
        self,
        patches: Float32[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
        seed: int,
    ) -> None:
        """Fit the energies of all bands, and those of every set to its own bands, to training
        patches of all bands.
        """
        self.energies.fit(patches, pixels, seed)
        by_band = patches.unflatten(2, (self.num_bands, -1))
        for of_set, places in zip(self.of_sets, self.band_sets.values(), strict=True):
            of_set[0].fit(by_band[:, :, list(places)].flatten(2), pixels, seed)  # type: ignore[index]

    def forward(  # type: ignore[override]
        self,
        patches: Float[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
        band_set: str | None = None,
    ) -> Float[Tensor, "batch chosen dim"]:
        """See ``PatchEmbedding``."""
        measure, norm, linear = self.of_set(band_set)
        energies = measure(patches, pixels).to(linear.weight.dtype)
        vectors: Tensor = linear(norm(energies))
        return super().forward(patches, pixels, band_set) + vectors

    def of_set(self, band_set: str | None) -> tuple[Energies, nn.LayerNorm, nn.Linear]:
        """What measures the energies of all bands, or of a set's, and what takes them."""
        if band_set is None:
            return self.energies, self.norm, self.linear
        measure, norm, linear = cast(nn.Sequential, self.of_sets[_number(self, band_set)])
        return cast(Energies, measure), cast(nn.LayerNorm, norm), cast(nn.Linear, linear)


class StemEmbedding(PatchEmbedding):
    """Two learned convolutions of ``FILTER_PX`` px with GELU, each at every second pixel, then a
    linear map. They see zeros around the patch.
    """

    def __init__(self, config: ModelConfig, num_bands: int, band_sets: BandSets) -> None:
        super().__init__()
        self.patch_px, self.band_sets = config.patch_px, band_sets
        self.stem = nn.Sequential(
            nn.Conv2d(num_bands, 32, FILTER_PX, STRIDE, FILTER_PX // 2),
            nn.GELU(),
            nn.Conv2d(32, _STEM_CHANNELS, FILTER_PX, STRIDE, FILTER_PX // 2),
            nn.GELU(),
            nn.Flatten(),
        )
        self.linear = nn.Linear(linear_inputs("stem", num_bands, config.patch_px), config.width)
        self.absent = absent_vectors(band_sets, config.width)

    def forward(
        self,
        patches: Float[Tensor, "batch chosen value"],
        pixels: Bool[Tensor, "batch chosen pixel"],
        band_set: str | None = None,
    ) -> Float[Tensor, "batch chosen dim"]:
        """See ``PatchEmbedding``."""
        squares = patches.to(self.linear.weight.dtype).flatten(0, 1)
        squares = squares.unflatten(1, (-1, self.patch_px, self.patch_px))
        if band_set is None:
            vectors: Tensor = self.linear(self.stem(squares))
        else:
            first = cast(nn.Conv2d, self.stem[0])
            weight = first.weight[:, list(self.band_sets[band_set])]
            found = F.conv2d(squares, weight, first.bias, first.stride, first.padding)
            vectors = self.linear(self.stem[1:](found)) + self.absent[_number(self, band_set)]
        return vectors.unflatten(0, patches.shape[:2])


def absent_vectors(band_sets: BandSets, width: int) -> nn.ParameterList:
    """What stands for the bands each set lacks; at first as if they were at their mean."""
    return nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in band_sets)


def _number(embedding: LinearEmbedding | StemEmbedding, band_set: str) -> int:
    """Which of an embedding's sets one is."""
    return list(embedding.band_sets).index(band_set)


EMBEDDINGS: Mapping[str, Callable[[ModelConfig, int, BandSets], PatchEmbedding]] = {
    "linear": LinearEmbedding,
    "energies": EnergyEmbedding,
    "stem": StemEmbedding,
}
"""What ``model.embedding`` may be: made for a model, its number of bands, and its sets of them."""


def linear_inputs(embedding: str, num_bands: int, patch_px: int) -> int:
    """Numbers of a patch that an embedding's large linear map takes: its pixels, or a stem's."""
    if embedding != "stem":
        return num_bands * patch_px**2
    side = -(-patch_px // STRIDE**2)
    return _STEM_CHANNELS * side**2


def whitened_filters(
    pixels: Float[Tensor, "image band row col"],
    valid: Bool[Tensor, "image row col"],
    num_filters: int,
    num_samples: int,
    seed: int,
) -> tuple[Float[Tensor, "filter band 3 3"], Float[Tensor, " filter"]]:
    """Filters and biases: squares of ``FILTER_PX`` px cut from images in model units, whitened, of
    unit deviation of the response.

    Whitening is measured on ``num_samples`` wholly valid squares. Filters are Gaussian, without a
    bias, where there are less than two for each. Source: Coates and Ng 2012, section 2.
    """
    generator = torch.Generator().manual_seed(seed)
    num_bands = pixels.shape[1]
    shape = (num_bands, FILTER_PX, FILTER_PX)
    squares = pixels.unfold(2, FILTER_PX, 1).unfold(3, FILTER_PX, 1)
    whole = valid.unfold(1, FILTER_PX, 1).unfold(2, FILTER_PX, 1).flatten(3).all(3)
    places = whole.nonzero()
    chosen = torch.randperm(len(places), generator=generator)[:num_samples]
    if len(chosen) < 2 * num_filters:
        filters = torch.randn(num_filters, *shape, generator=generator)
        return filters / filters[0].numel() ** 0.5, torch.zeros(num_filters)
    image, row, col = places[chosen].T
    samples = squares[image, :, row, col].flatten(1).double()
    mean = samples.mean(0)
    variance, directions = torch.linalg.eigh(torch.cov(samples.T))
    # Pixels that are all alike have no direction at all, and filters that see nothing.
    least = max(float(variance.max()) * _NO_WHITENING_BELOW, torch.finfo(variance.dtype).tiny)
    scale = variance.clamp(min=least).rsqrt()
    whitening = directions * scale @ directions.T
    filters = (samples[:num_filters] - mean) @ whitening
    filters = filters / filters.norm(dim=1, keepdim=True).clamp(min=1e-6) @ whitening
    return filters.float().unflatten(1, shape), (-filters @ mean).float()
