"""What a step loads, and what it is made into: stored numbers to batches, on their device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped, UInt8
from torch import Tensor

from bharateo.landcover import IGNORE, NUM_CLASSES
from bharateo.models.heads import Batch
from bharateo.models.patches import Mask, mask_from_noise
from bharateo.sensor import Sensor
from bharateo.training.batches import physical_units, symmetric
from bharateo.training.draws import Draws


class Drawn(NamedTuple):
    """``Draws`` as tensors, with the loaded chip that each presentation shows."""

    shows: Int64[Tensor, " shown"]
    chip: Int64[Tensor, " shown"]
    symmetry: Int64[Tensor, " shown"]
    col: Int64[Tensor, " shown"]
    noise: Float64[Tensor, "shown token"]


def sent(array: Shaped[np.ndarray, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """An array on a device, by one copy that nobody waits for: from pinned memory, which PyTorch
    keeps until it is done and uses again.
    """
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class RawBatch:
    """What a rank loads for a step, as stored, on the device; and what is to be shown of it.

    ``valid`` are whole rows of the stored squares, packed. ``shows`` are the loaded chips that the
    presentations show, ascending: with ``masks_per_chip`` several show the same.
    """

    image: Shaped[Tensor, "loaded band row col"]
    landcover: UInt8[Tensor, "loaded row col"]
    valid: UInt8[Tensor, "loaded row byte"]
    draws: Draws
    shows: Int64[np.ndarray, " shown"]

    def __len__(self) -> int:
        return len(self.shows)

    @cached_property
    def drawn(self) -> Drawn:
        """What the presentations show, beside the layers on their device."""
        draws = self.draws
        whole = np.stack([self.shows, draws.chip, draws.symmetry, draws.col], 1)
        both = sent(np.concatenate([whole.astype(np.float64), draws.noise], 1), self.image.device)
        shows, chip, symmetry, col = both[:, :4].long().unbind(1)
        return Drawn(shows, chip, symmetry, col, both[:, 4:])

    def parts(self, size: int | None) -> list[RawBatch]:
        """Parts of at most so many presentations, in order, one at least; None: the whole."""
        size = size or max(len(self), 1)
        return [self.part(start, start + size) for start in range(0, max(len(self), 1), size)]

    def part(self, start: int, stop: int) -> RawBatch:
        """Presentations ``start`` to ``stop`` with the chips they show; nothing is copied."""
        shows = self.shows[start:stop]
        loaded = slice(int(shows[0]), int(shows[-1]) + 1) if len(shows) else slice(0)
        return RawBatch(
            self.image[loaded],
            self.landcover[loaded],
            self.valid[loaded],
            self.draws[start:stop],
            shows - loaded.start if len(shows) else shows,
        )


def prepare(raw: RawBatch, sensor: Sensor, patch_px: int, num_masked: int) -> tuple[Batch, Mask]:
    """The batch and the masks of what a raw batch shows, on its device."""
    if raw.image.device.type == "cpu":
        turned, chip = _turned_one_by_one, torch.from_numpy(raw.draws.chip)
        noise = torch.from_numpy(raw.draws.noise)
    else:
        turned, chip, noise = _turned_at_once, raw.drawn.chip, raw.drawn.noise
    return Batch(*turned(raw, sensor, patch_px), chip), mask_from_noise(noise, num_masked)


_Turned = tuple[
    Float[Tensor, "shown band row col"],
    Bool[Tensor, "shown row col"],
    Int64[Tensor, "shown token cls"],
]
"""Physical values, validity and class counts of chips as they are shown."""


def _turned_one_by_one(raw: RawBatch, sensor: Sensor, patch_px: int) -> _Turned:
    """For a CPU: a chip stays in its cache while it is unpacked, turned, converted and counted."""
    num, px = len(raw), raw.image.shape[-1]
    stored, labels, packed = (each.numpy() for each in (raw.image, raw.landcover, raw.valid))
    image = np.empty((num, *stored.shape[1:]), np.float32)
    valid = np.empty((num, px, px), np.bool_)
    per_side, stride = px // patch_px, NUM_CLASSES + 1
    patch = np.arange(px) // patch_px
    cell = (patch[:, None] * per_side + patch) * stride
    counts = np.empty((num, per_side**2, stride), np.int64)
    ways, cols = raw.draws.symmetry.tolist(), raw.draws.col.tolist()
    for i, (place, way, col) in enumerate(zip(raw.shows.tolist(), ways, cols, strict=True)):
        image[i] = symmetric(stored[place], way)
        image[i] *= sensor.scale  # as ``physical_units``, a chip at a time
        if sensor.offset:
            image[i] += sensor.offset
        valid[i] = symmetric(np.unpackbits(packed[place], axis=-1)[:, col : col + px], way)
        ids = np.minimum(symmetric(labels[place], way), NUM_CLASSES, order="C")
        if not valid[i].all():
            ids[~valid[i]] = NUM_CLASSES  # no image shows it
        counts[i].flat = np.bincount((cell + ids).reshape(-1), minlength=counts[i].size)
    return (
        torch.from_numpy(image),
        torch.from_numpy(valid),
        torch.from_numpy(counts[..., :NUM_CLASSES]),
    )


def _turned_at_once(raw: RawBatch, sensor: Sensor, patch_px: int) -> _Turned:
    """For a GPU: each layer in one gather. Patches are counted first, since they turn as well."""
    device, px = raw.image.device, raw.image.shape[-1]
    shows, way, col = raw.drawn.shows, raw.drawn.symmetry, raw.drawn.col
    pixels = _turned_places(px, device)[way]
    cols = way.new_zeros(len(raw.valid)).scatter_(0, shows, col)
    valid = _unpacked(raw.valid, cols, px)
    counts = _class_counts(raw.landcover.masked_fill(~valid, IGNORE), patch_px)
    patches = _turned_places(px // patch_px, device)[way]
    image = _gathered(raw.image.flatten(2), shows, pixels).unflatten(2, (px, px))
    return (
        physical_units(image, sensor),
        _gathered(valid.flatten(1)[:, None], shows, pixels).view(-1, px, px),
        _gathered(counts, shows, patches).transpose(1, 2).contiguous(),
    )


def _gathered(
    layer: Shaped[Tensor, "loaded plane place"],
    shows: Int64[Tensor, " shown"],
    places: Int64[Tensor, "shown place"],
) -> Shaped[Tensor, "shown plane place"]:
    planes = torch.arange(layer.shape[1], device=layer.device)
    return signed(layer)[shows[:, None, None], planes[:, None], places[:, None]].view(layer.dtype)


@lru_cache(4)
def _turned_places(side: int, device: torch.device) -> Int64[Tensor, "8 place"]:
    """Which place of a square comes to lie in each, by each of the eight symmetries."""
    places = np.arange(side**2).reshape(side, side)
    turned = np.stack([symmetric(places, way).reshape(-1) for way in range(8)])
    return torch.from_numpy(turned).to(device)


def _class_counts(
    class_ids: UInt8[Tensor, "loaded row col"], patch_px: int
) -> Int64[Tensor, "loaded cls token"]:
    """``landcover.patch_class_counts`` without waiting for the device."""
    num, height, width = class_ids.shape
    grid = (height // patch_px, patch_px, width // patch_px, patch_px)
    patches = class_ids.view(num, *grid).transpose(2, 3).flatten(3).flatten(1, 2)
    ids = patches.clamp(max=NUM_CLASSES).long()
    counts = ids.new_zeros(*ids.shape[:2], NUM_CLASSES + 1)
    counts.scatter_add_(2, ids, ids.new_ones(()).expand_as(ids))
    return counts[..., :NUM_CLASSES].transpose(1, 2)


def _unpacked(
    packed: UInt8[Tensor, "loaded row byte"], cols: Int64[Tensor, " loaded"], chip_px: int
) -> Bool[Tensor, "loaded row col"]:
    """Validity of the windows that begin at ``cols``."""
    place = cols[:, None, None] + torch.arange(chip_px, device=cols.device)
    bytes_ = packed.gather(2, (place >> 3).expand(-1, packed.shape[1], -1))
    return (bytes_ >> (7 - (place & 7)).to(torch.uint8) & 1).bool()


def signed(stored: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """uint16, which few operations know, seen as int16; others as they are."""
    return stored.view(torch.int16) if stored.dtype == torch.uint16 else stored
