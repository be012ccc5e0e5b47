"""Numbers for every pixel of a raster: what classes of 10 m are told apart by.

Three kinds, each of a box of pixels of any size and place, so that a labelled pixel and a whole map
are looked at by the same code:

- bands: the physical values, and the normalised differences that the sensor's bands allow;
- energies: how much of every pattern lies around the pixel, at two scales. Patterns are whitened
  squares of the raster itself (``models.embedding.whitened_filters``), learned without any label;
- tokens: a run's vectors, of patches a quarter of a patch apart, interpolated between them.

Memory does not grow with the raster, and what an invalid pixel holds changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from bharateo.inference.contract import canonical, sample_windows
from bharateo.inference.domain import Domain, Views, pixel_statistics
from bharateo.inference.encoder import FrozenEncoder, PerToken
from bharateo.inference.inputs import RasterInput
from bharateo.inference.tiles import CellGrid, Tile
from bharateo.models.embedding import FILTER_PX, GAIN, THRESHOLD, whitened_filters

INDICES = {
    "NDVI": ("B08", "B04"),  # Rouse et al. 1974
    "NDWI": ("B03", "B08"),  # McFeeters 1996
    "MNDWI": ("B03", "B11"),  # Xu 2006
    "NDBI": ("B11", "B08"),  # Zha et al. 2003
    "NDRE": ("B8A", "B05"),  # Gitelson and Merzlyak 1994
    "NBR": ("B08", "B12"),  # Lopez Garcia and Caselles 1991
}
"""Normalised differences (a - b) / (a + b), by Sentinel-2's names of their bands."""

NUM_FILTERS = 32
"""Patterns; each gives two energies, one of either sign, at every scale."""

SCALES_PX = (5, 11)
"""Sides of the squares around a pixel over which energies are averaged."""

_AT_ONCE = 4
"""Filters whose responses are taken together: they stay in the processor's cache."""

_SAMPLES = 20_000
_SEED = 0
_STEPS = 4
"""Tokens along the side of a patch: sixteen passes, however large the patch."""

_FARTHEST = 1000.0
"""Distances are kept as half floats, which end at 65,504."""

Values = Float[np.ndarray, "row col dim"]


@dataclass(frozen=True)
class PixelFeatures:
    """A kind of features: ``of`` a box of pixels inside the raster, NaN where a pixel is invalid.

    Tokens end with the distance from the training of the run (``domain``), which is no feature:
    ``num_features`` come before it.
    """

    name: str
    meaning: str
    num_features: int
    of: Callable[[Tile], Values]
    knows_domain: bool = False


def band_features(source: RasterInput) -> PixelFeatures:
    """Bands, and the indices of ``INDICES`` whose bands are among them."""
    names = source.sensor.band_names
    pairs = _index_bands(names)

    def of(box: Tile) -> Values:
        image, valid = source.read(*_corner(box), *box.shape)
        return _by_pixel(with_indices(image, names), valid)

    words = [f"{len(names)} band{'s' if len(names) > 1 else ''}", *pairs]
    return PixelFeatures("bands", ", ".join(words), len(names) + len(pairs), of)


def _index_bands(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The indices that some bands allow, with the places of each one's two bands."""
    known = [canonical(name) for name in names]
    return {
        index: (known.index(one), known.index(other))
        for index, (one, other) in INDICES.items()
        if {one, other} <= {*known}
    }


def with_indices(
    image: Float[np.ndarray, "band row col"], names: Sequence[str]
) -> Float[np.ndarray, "layer row col"]:
    """Bands, and behind them the indices that they allow; 0 where one is undefined."""
    layers = [image]
    for one, other in _index_bands(names).values():
        total = image[one] + image[other]
        difference = image[one] - image[other]
        index = np.divide(difference, total, np.zeros_like(total), where=total > 0)
        layers.append(index.clip(-1, 1)[None])
    return np.concatenate(layers)


def surroundings(
    image: Float[np.ndarray, "band row col"], valid: Bool[np.ndarray, "row col"]
) -> Float[np.ndarray, "layer row col"]:
    """Mean and deviation of every band in the squares of ``SCALES_PX`` around every pixel, as far
    as they lie inside the image; invalid pixels are left out.
    """
    there = torch.from_numpy(valid).float()[None]
    values = torch.from_numpy(image) * there
    every = slice(0, valid.shape[0]), slice(0, valid.shape[1])
    layers = []
    for side in SCALES_PX:
        num = _sums(there, every, side).clamp(min=1)
        mean = _sums(values, every, side) / num
        square = _sums(values.square(), every, side) / num
        layers += [mean, (square - mean.square()).clamp(min=0).sqrt()]
    found: np.ndarray = torch.cat(layers).numpy()
    return found


def energy_features(source: RasterInput) -> PixelFeatures | None:
    """log(1 + 10 x) of the mean responses x of whitened filters in squares of ``SCALES_PX`` around
    the pixel; invalid pixels are left out of the mean.

    The filters are cut from a bounded number of windows of the raster; None where those hold no
    valid pixel.
    """
    parts = [source.read(*window) for window in sample_windows(source.shape)]
    image = torch.from_numpy(np.stack([values for values, _ in parts]))
    valid = torch.from_numpy(np.stack([known for _, known in parts]))
    known = image.transpose(0, 1)[:, valid]
    if not known.shape[1]:
        return None
    mean, std = known.mean(1), known.std(1, correction=0)
    std = torch.where(std > 0, std, torch.ones(()))

    def in_deviations(image: Tensor, valid: Tensor) -> Tensor:
        scaled = (image - mean[:, None, None]) / std[:, None, None]
        return scaled.masked_fill(~valid[..., None, :, :], 0.0)

    filters, bias = whitened_filters(
        in_deviations(image, valid), valid, NUM_FILTERS, _SAMPLES, _SEED
    )
    reach = max(SCALES_PX) // 2 + FILTER_PX // 2

    @torch.no_grad()
    def of(box: Tile) -> Values:
        around = Tile(*(
            slice(max(each.start - reach, 0), min(each.stop + reach, size))
            for each, size in zip((box.rows, box.cols), source.shape, strict=True)
        ))  # fmt: skip
        own = tuple(
            slice(each.start - outer.start, each.stop - outer.start)
            for each, outer in ((box.rows, around.rows), (box.cols, around.cols))
        )
        values, there = source.read(*_corner(around), *around.shape)
        valid = torch.from_numpy(there)
        image = in_deviations(torch.from_numpy(values), valid)
        padded = F.pad(image[None], [FILTER_PX // 2] * 4, "replicate")
        weight = valid.float()[None]
        share = [_sums(weight, own, side).clamp(min=1) for side in SCALES_PX]
        layers = []
        for first in range(0, NUM_FILTERS, _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            response = F.conv2d(padded, filters[some], bias[some])[0]
            both = torch.cat([F.relu(response - THRESHOLD), F.relu(-response - THRESHOLD)])
            both *= weight
            for side, known in zip(SCALES_PX, share, strict=True):
                layers.append(torch.log1p(GAIN * _sums(both, own, side).div_(known)))
        return _by_pixel(torch.cat(layers).numpy(), there[own])

    meaning = (
        f"log-energies of {NUM_FILTERS} whitened filters of {FILTER_PX} px, both signs, in squares "
        f"of {' and '.join(map(str, SCALES_PX))} px"
    )
    return PixelFeatures("energies", meaning, 2 * NUM_FILTERS * len(SCALES_PX), of)


def token_features(
    encoder: FrozenEncoder,
    features: PerToken,
    source: RasterInput,
    domain: Domain | None = None,
    precision: str = "fp32",
) -> PixelFeatures:
    """The vectors that ``features`` gives, of a patch around the pixel: ``_STEPS`` squared shifted
    grids of patches, each blended over the windows that hold it, interpolated between.
    """
    patch_px = encoder.patch_px
    stride_px = max(s for s in range(1, max(patch_px // _STEPS, 1) + 1) if patch_px % s == 0)
    grid = CellGrid(source.shape, encoder.chip_px, patch_px, stride_px)

    def look(image: Tensor, valid: Tensor) -> Tensor:
        vectors = features(image, valid)
        if domain is None:
            distance = torch.full(vectors.shape[:2], torch.nan)
        else:
            pixels = pixel_statistics(encoder.model, image, valid, encoder.band_set)
            distance = domain.distance(Views(vectors, *pixels)).clamp(max=_FARTHEST)
        return torch.cat([vectors.float(), distance[..., None].float()], 2)

    predict = encoder.in_precision(look, precision)

    def of(box: Tile) -> Values:
        rows, cols = (
            _between(each, patch_px, stride_px, num)
            for each, num in zip((box.rows, box.cols), grid.shape, strict=True)
        )
        cells = grid.predict(source.read, predict, Tile(rows.cells, cols.cells))
        known = ~np.isnan(cells[..., :1])
        filled = np.where(known, cells, 0)
        weight = cols.interpolate(rows.interpolate(known.astype(np.float32), 0), 1)
        values = cols.interpolate(rows.interpolate(filled, 0), 1) / np.maximum(weight, 1e-6)
        _, valid = source.read(*_corner(box), *box.shape)
        values[~valid] = np.nan
        return values

    meaning = f"{encoder.width} numbers of the run's encoder, of patches {stride_px} px apart"
    return PixelFeatures("tokens", meaning, encoder.width, of, True)


def in_cells(values: Values, side: int) -> Float[np.ndarray, "cell_row cell_col dim"]:
    """Means over squares of ``side`` pixels from the first on, invalid ones left out; NaN where
    there is no valid one. The last squares may be cut.
    """
    if side == 1:
        return values
    rows, cols = (math.ceil(size / side) for size in values.shape[:2])
    padded = np.full((rows * side, cols * side, values.shape[2]), np.nan, np.float32)
    padded[: values.shape[0], : values.shape[1]] = values
    squares = padded.reshape(rows, side, cols, side, -1)
    num = (~np.isnan(squares[..., :1])).sum((1, 3), dtype=np.float32)
    total: np.ndarray = np.nansum(squares, (1, 3))
    return np.where(num > 0, total / np.maximum(num, 1), np.float32(np.nan))


@dataclass(frozen=True)
class _Between:
    """Where pixels lie between cells along one axis: in ``cells``, after which, how far."""

    cells: slice
    after: np.ndarray
    before: np.ndarray
    part: np.ndarray

    def interpolate(self, values: np.ndarray, axis: int) -> np.ndarray:
        shape = [1] * values.ndim
        shape[axis] = -1
        part = self.part.reshape(shape).astype(np.float32)
        first, second = (values.take(each, axis) for each in (self.after, self.before))
        mixed: np.ndarray = first * (1 - part) + second * part
        return mixed


def _between(pixels: slice, patch_px: int, stride_px: int, num_cells: int) -> _Between:
    place = (np.arange(pixels.start, pixels.stop) + 0.5 - patch_px / 2) / stride_px
    place = place.clip(0, num_cells - 1)
    after = np.floor(place).astype(np.int64)
    before = np.minimum(after + 1, num_cells - 1)
    start = int(after[0])
    cells = slice(start, int(before[-1]) + 1)
    return _Between(cells, after - start, before - start, place - after)


def _sums(layers: Tensor, own: tuple[slice, ...], side: int) -> Tensor:
    """Sums of layers over the squares around the pixels ``own``, as far as they lie inside; always
    added in the same order, so that a pixel's are the same in every box.
    """
    for dim, inside in zip((1, 2), own, strict=True):
        padded = F.pad(layers, (0, 0) * (2 - dim) + (side // 2, side // 2))
        length = inside.stop - inside.start
        layers = padded.narrow(dim, inside.start, length).clone()
        for step in range(1, side):
            layers += padded.narrow(dim, inside.start + step, length)
    return layers


def _corner(box: Tile) -> tuple[int, int]:
    return box.rows.start, box.cols.start


def _by_pixel(
    layers: Float[np.ndarray, "dim row col"], valid: Bool[np.ndarray, "row col"]
) -> Values:
    values = np.moveaxis(layers, 0, 2).astype(np.float32, order="C")
    values[~valid] = np.nan
    return values
