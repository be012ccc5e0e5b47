"""What is shown: evaluation's fixed windows, the draws of every step, and batches made of both.

What a step shows is a pure function of seed, epoch and position: ``epoch_order``, ``share`` and
``draw`` say it, ``loader.Loader`` brings it as stored numbers (``RawBatch``), and ``prepare`` turns
those into what models take. What evaluation shows is fixed: ``fixed_batches``.

A presentation is one chip shown once; position p of an epoch is its p-th. Every position owns its
own stretch of a counter-based generator, so a rank draws its share alone, and neither the batch
size nor the number of ranks changes what position p shows. With ``masks_per_chip`` k, positions
k * i to k * i + k - 1 show the i-th chip that the epoch loads.

Axes: square (of the dataset), shown (presentations), loaded (chips read, each once), band row col,
byte (of packed validity), token cls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped, UInt8
from torch import Tensor

from bharateo.chips.store import Dataset
from bharateo.config import ModelConfig
from bharateo.errors import ConfigError
from bharateo.landcover import IGNORE, NUM_CLASSES, patch_class_counts
from bharateo.models.heads import Batch
from bharateo.models.patches import Mask, mask_from_noise, num_masked
from bharateo.sensor import Sensor

# Windows of stored squares; evaluation's windows and masks, which are fixed.


@dataclass(frozen=True)
class Window:
    """A chip cut from a stored square: the square's row in the dataset, the upper left pixel in
    it, and one of the eight symmetries (0: as it is).
    """

    chip: int
    row: int
    col: int
    symmetry: int = 0


def fixed_windows(chips: Sequence[int], size_px: int, chip_px: int) -> list[Window]:
    """Evaluation's windows: as many as fit side by side in a square (rounded), evenly spread."""
    per_side = max(1, round(size_px / chip_px))
    spare = size_px - chip_px
    starts = np.linspace(0, spare, per_side).round() if per_side > 1 else np.array([spare // 2])
    return [
        Window(int(chip), int(row), int(col)) for chip in chips for row in starts for col in starts
    ]


def window_ids(dataset: Dataset, windows: Sequence[Window]) -> list[str]:
    """Ids that name windows by place: ``region/row/col`` of the upper left pixel."""
    region, row, col = (dataset.column(name) for name in ("region", "row", "col"))
    return [
        f"{region[w.chip]}/{int(row[w.chip]) + w.row}/{int(col[w.chip]) + w.col}" for w in windows
    ]


def symmetric(array: Shaped[np.ndarray, "*lead row col"], way: int) -> np.ndarray:
    """One of the eight flips and quarter turns of a square (the dihedral group D4), as a view."""
    if way & 1:
        array = array[..., ::-1]
    if way & 2:
        array = array[..., ::-1, :]
    return array.swapaxes(-1, -2) if way & 4 else array


def physical_units(stored: Shaped[Tensor, "*shape"], sensor: Sensor) -> Float[Tensor, "*shape"]:
    """Stored values x scale + offset, in the sensor's unit."""
    physical = stored.float().mul_(sensor.scale)
    return physical.add_(sensor.offset) if sensor.offset else physical


def stack(
    layer: Callable[[int], np.ndarray], windows: Sequence[Window], chip_px: int
) -> Shaped[np.ndarray, " window *shape"]:
    """A layer of a dataset (``dataset.image`` and the like) as stored, in one window or more."""
    first = layer(windows[0].chip)
    stacked = np.empty((len(windows), *first.shape[:-2], chip_px, chip_px), first.dtype)
    for out, window in zip(stacked, windows, strict=True):
        rows = slice(window.row, window.row + chip_px)
        cols = slice(window.col, window.col + chip_px)
        out[:] = symmetric(layer(window.chip)[..., rows, cols], window.symmetry)
    return stacked


def cut(dataset: Dataset, windows: Sequence[Window], chip_px: int, patch_px: int) -> Batch:
    """The batch of these windows, in physical units."""
    image = stack(dataset.image, windows, chip_px)
    valid = stack(dataset.valid, windows, chip_px)
    landcover = stack(dataset.landcover, windows, chip_px)
    landcover[~valid] = IGNORE  # no image shows it
    return Batch(
        physical_units(torch.from_numpy(image), dataset.sensor),
        torch.from_numpy(valid),
        torch.from_numpy(patch_class_counts(landcover, patch_px)),
        torch.tensor([window.chip for window in windows]),
    )


def training_chips(dataset: Dataset, model: ModelConfig, num_chips: int, seed: int) -> Batch:
    """At most so many chips of the train split, drawn from as many of its squares as there are."""
    rng = np.random.default_rng(seed)
    squares = rng.permutation(dataset.indices("train"))[:num_chips]
    windows = fixed_windows(squares.tolist(), dataset.size_px, model.chip_px)
    some = rng.permutation(len(windows))[:num_chips]
    return cut(dataset, [windows[i] for i in some], model.chip_px, model.patch_px)


def evaluation_mask(keys: Sequence[str], num_tokens: int, masked: int) -> Mask:
    """Masks that depend on the windows' ids alone: the same in every run, on every machine."""
    seeds = [hashlib.sha256(key.encode()).digest()[:8] for key in keys]
    noise = [
        np.random.default_rng(int.from_bytes(seed, "little")).random(num_tokens) for seed in seeds
    ]
    return mask_from_noise(torch.from_numpy(np.stack(noise)), masked)


def fixed_batch(
    dataset: Dataset, windows: Sequence[Window], model: ModelConfig
) -> tuple[Batch, Mask]:
    """Fixed windows with the masks that belong to their places."""
    num_tokens = (model.chip_px // model.patch_px) ** 2
    masked = num_masked(num_tokens, model.mask_ratio)
    mask = evaluation_mask(window_ids(dataset, windows), num_tokens, masked)
    return cut(dataset, windows, model.chip_px, model.patch_px), mask


def fixed_batches(
    dataset: Dataset, split: str, model: ModelConfig, batch_size: int
) -> Iterator[tuple[list[Window], Batch, Mask]]:
    """A split's fixed windows with their fixed masks, batch by batch."""
    windows = fixed_windows(dataset.indices(split).tolist(), dataset.size_px, model.chip_px)
    for start in range(0, len(windows), batch_size):
        some = windows[start : start + batch_size]
        yield some, *fixed_batch(dataset, some, model)


# What every presentation of an epoch shows.

_RUN_CHIPS = 64
"""Most neighbours that stay together when runs are shuffled."""

_WORDS_PER_COUNT = 4
"""64-bit words, a number each, that Philox makes of one count."""


@dataclass(frozen=True)
class Draws:
    """What presentations show: stored squares, the upper left pixels of the windows in them, the
    symmetry of each (0 to 7, see ``symmetric``), the noise that makes its mask, and the numbers of
    ``relit``, if any.
    """

    chip: Int64[np.ndarray, " shown"]
    row: Int64[np.ndarray, " shown"]
    col: Int64[np.ndarray, " shown"]
    symmetry: Int64[np.ndarray, " shown"]
    noise: Float64[np.ndarray, "shown token"]
    light: Float64[np.ndarray, "shown number"]

    def __len__(self) -> int:
        return len(self.chip)

    def __getitem__(self, some: slice) -> Draws:
        return Draws(
            self.chip[some],
            self.row[some],
            self.col[some],
            self.symmetry[some],
            self.noise[some],
            self.light[some],
        )


def epoch_order(
    chips: Int64[np.ndarray, " square"],
    num_chips: int,
    seed: int,
    epoch: int,
    shuffle_window: int | None = None,
    lanes: int = 1,
) -> Int64[np.ndarray, " chip"]:
    """Which stored square each of the chips is that an epoch loads: all equally often.

    All are shuffled; with ``shuffle_window``, runs of neighbours are, and then the chips inside
    consecutive windows of that many. With ``lanes``, lane k is ``chips[k::lanes]``; it has an
    order of its own, and every ``lanes``-th place of the epoch from the k-th on.

    Raises:
        ConfigError: there are more lanes than squares.
    """
    if lanes > len(chips):
        raise ConfigError(
            f"training.lanes {lanes} is more than the {len(chips)} squares of the train split: "
            f"set it to {len(chips)} at most"
        )
    order = np.empty(num_chips, np.int64)
    for lane in range(lanes):
        rng = np.random.default_rng([seed, epoch, lane])  # a last 0 changes nothing
        squares, own = chips[lane::lanes], order[lane::lanes]
        rounds = range(-(-len(own) // len(squares)))
        if shuffle_window is None:
            shuffles = [rng.permutation(squares) for _ in rounds]
        else:
            run = max(min(_RUN_CHIPS, shuffle_window // 8), 1)
            shuffles = [_runs_shuffled(squares, run, rng) for _ in rounds]
        shuffled = np.concatenate([squares[:0], *shuffles])[: len(own)]
        if shuffle_window is not None:
            for start in range(0, len(own), shuffle_window):
                rng.shuffle(shuffled[start : start + shuffle_window])
        own[:] = shuffled
    return order


def _runs_shuffled(
    chips: Int64[np.ndarray, " square"], run: int, rng: np.random.Generator
) -> Int64[np.ndarray, " square"]:
    """Chips in an order that keeps ``run`` neighbours together."""
    starts = rng.permutation(np.arange(0, len(chips), run))
    places = (starts[:, None] + np.arange(run)).reshape(-1)
    return chips[places[places < len(chips)]]


def share(
    start: int, stop: int, rank: int, num_ranks: int, lanes: int = 1, masks_per_chip: int = 1
) -> Int64[np.ndarray, " shown"]:
    """The positions that a rank takes of the batch [start, stop) of all ranks, ascending.

    Without lanes an even part of the batch in one piece, in whole chips; else those of its lanes,
    which are every ``num_ranks``-th. May be empty where a batch is small.

    Raises:
        ConfigError: the lanes cannot be shared evenly by the ranks.
    """
    if lanes > 1 and lanes % num_ranks:
        raise ConfigError(
            f"training.lanes {lanes} cannot be shared by {num_ranks} ranks: set it to a multiple "
            f"of {num_ranks}, or to 1"
        )
    positions = np.arange(start, stop)
    chip = positions // masks_per_chip
    first, last = start // masks_per_chip, -(-stop // masks_per_chip)
    owner = chip % num_ranks if lanes > 1 else (chip - first) * num_ranks // (last - first)
    return positions[owner == rank]


def draw(
    positions: Int64[np.ndarray, " shown"],
    chips: Int64[np.ndarray, " shown"],
    spare_px: int,
    num_tokens: int,
    augment: bool,
    seed: int,
    epoch: int,
    masks_per_chip: int = 1,
    num_light: int = 0,
) -> Draws:
    """What the positions of an epoch show, which are ascending; ``chips`` are their squares.

    ``spare_px`` is by how much a square is larger than a chip. Windows are uniform over all
    places, the same for all presentations of a loaded chip; symmetry (0 unless ``augment``), noise
    and ``num_light`` numbers in [-1, 1) of the light are every presentation's own.
    """
    firsts = positions - positions % masks_per_chip
    begin, end = (int(firsts[0]), int(positions[-1]) + 1) if len(positions) else (0, 0)

    def numbers(num: int, *key: int) -> Float64[np.ndarray, "place number"]:
        """Row p - begin holds position p's numbers in [0, 1), wherever the range begins."""
        counts = -(-num // _WORDS_PER_COUNT)
        philox = np.random.Philox(np.random.SeedSequence(key)).advance(begin * counts)
        return np.random.Generator(philox).random((end - begin, counts * _WORDS_PER_COUNT))

    drawn = numbers(3 + num_tokens, seed, epoch)
    window, own = drawn[firsts - begin], drawn[positions - begin]
    row, col = (window[:, :2] * (spare_px + 1)).astype(np.int64).T
    symmetry = (own[:, 2] * (8 if augment else 1)).astype(np.int64)
    # A stream of its own, so that who wants no other light draws what they always drew.
    light = 2 * numbers(num_light, seed, epoch, 1)[positions - begin, :num_light] - 1
    return Draws(chips, row, col, symmetry, own[:, 3 : 3 + num_tokens], light)


def drawn_band_set(band_sets: Iterable[str], seed: int, step: int) -> str | None:
    """The set of bands that the encoder is shown in a step: None, all of them, half of the time,
    else one of the sets, all equally often.

    A function of the step: all ranks and all parts of its batch see the same, as each set has
    filters and vectors of its own.
    """
    names = sorted(band_sets)
    # One count of a stream of its own for every step.
    philox = np.random.Philox(np.random.SeedSequence((seed, 0, 2))).advance(step)
    place = int(np.random.Generator(philox).random() * 2 * len(names))
    return names[place] if place < len(names) else None


# What a step loads, and what it is made into.


class Drawn(NamedTuple):
    """``Draws`` as tensors, with the loaded chip that each presentation shows."""

    shows: Int64[Tensor, " shown"]
    chip: Int64[Tensor, " shown"]
    symmetry: Int64[Tensor, " shown"]
    col: Int64[Tensor, " shown"]
    noise: Float64[Tensor, "shown token"]


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
        turned, chip = turned_one_by_one, torch.from_numpy(raw.draws.chip)
        noise = torch.from_numpy(raw.draws.noise)
    else:
        turned, chip, noise = turned_at_once, raw.drawn.chip, raw.drawn.noise
    return Batch(*turned(raw, sensor, patch_px), chip), mask_from_noise(noise, num_masked)


def num_light(num_bands: int, jitter: float) -> int:
    """How many numbers ``relit`` takes for a chip."""
    return 1 + 2 * num_bands if jitter else 0


def relit(
    image: Float[Tensor, "shown band row col"],
    light: Float64[Tensor, "shown number"],
    std: Float[Tensor, " band"],
    jitter: float,
) -> Float[Tensor, "shown band row col"]:
    """Chips in physical units as if under another light, see ``training.jitter``.

    ``light`` are numbers in [-1, 1): one for the gain of all bands, then one a band for its own
    gain, then one a band for its shift, which is in the band's deviations ``std``.
    """
    common, own, shift = (light.to(image) * jitter).split([1, len(std), len(std)], 1)
    gain = 1 + common + own / 2
    shift = 3 * shift * std
    return torch.addcmul(shift[:, :, None, None], image, gain[:, :, None, None])


Turned = tuple[
    Float[Tensor, "shown band row col"],
    Bool[Tensor, "shown row col"],
    Int64[Tensor, "shown token cls"],
]
"""Physical values, validity and class counts of chips as they are shown."""


def turned_one_by_one(raw: RawBatch, sensor: Sensor, patch_px: int) -> Turned:
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


def turned_at_once(raw: RawBatch, sensor: Sensor, patch_px: int) -> Turned:
    """For a GPU: each layer in one gather. Patches are counted first, since they turn as well."""
    device, px = raw.image.device, raw.image.shape[-1]
    shows, way, col = raw.drawn.shows, raw.drawn.symmetry, raw.drawn.col
    pixels = _turned_places(px, device)[way]
    # Validity, unpacked: bits of the windows that begin at the loaded chips' columns.
    cols = way.new_zeros(len(raw.valid)).scatter_(0, shows, col)
    bit = cols[:, None, None] + torch.arange(px, device=device)
    packed = raw.valid.gather(2, (bit >> 3).expand(-1, raw.valid.shape[1], -1))
    valid = (packed >> (7 - (bit & 7)).to(torch.uint8) & 1).bool()
    # ``landcover.patch_class_counts``, without waiting for the device.
    ids = raw.landcover.masked_fill(~valid, IGNORE)
    patches = ids.unflatten(2, (-1, patch_px)).unflatten(1, (-1, patch_px)).transpose(2, 3)
    ids = patches.flatten(3).flatten(1, 2).clamp(max=NUM_CLASSES).long()
    counts = ids.new_zeros(*ids.shape[:2], NUM_CLASSES + 1)
    counts.scatter_add_(2, ids, ids.new_ones(()).expand_as(ids))
    counts = counts[..., :NUM_CLASSES].transpose(1, 2)
    image = _gathered(raw.image.flatten(2), shows, pixels).unflatten(2, (px, px))
    tokens = _turned_places(px // patch_px, device)[way]
    return (
        physical_units(image, sensor),
        _gathered(valid.flatten(1)[:, None], shows, pixels).view(-1, px, px),
        _gathered(counts, shows, tokens).transpose(1, 2).contiguous(),
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


def signed(stored: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """uint16, which few operations know, seen as int16; others as they are."""
    return stored.view(torch.int16) if stored.dtype == torch.uint16 else stored


def sent(array: Shaped[np.ndarray, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """An array on a device, by one copy that nobody waits for: from pinned memory, which PyTorch
    keeps until it is done and uses again.
    """
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
