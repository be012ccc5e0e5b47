"""Features of a dataset's patches and chips: a run's, and those it has to beat.

Every extractor takes the same: an image in physical units and its validity in, some numbers for
each patch out, computed on the run's device and given back where the chips lie. What an invalid
pixel holds changes no number, and nothing is learnt here but the filters of
``random_convolutions``, which are cut from training pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from bharateo.chips.store import Dataset
from bharateo.inference.encoder import CHIPS_AT_ONCE, FrozenEncoder, PerToken, Readout, device_of
from bharateo.landcover import IGNORE, patch_mode
from bharateo.models.embedding import FILTER_PX, GAIN, STRIDE, THRESHOLD, whitened_filters
from bharateo.models.kernels import CHIPS_IN_CACHE
from bharateo.models.mae import MaskedAutoencoder, Normalise, build_model
from bharateo.models.patches import patchify, unpatchify
from bharateo.training.data import cut, fixed_windows
from bharateo.training.run import Run

CPU = torch.device("cpu")
LEVELS = ("patch", "chip")
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
NUM_FILTERS = 256
MOST_CHIPS = 2048
"""Chips of a split that are looked at; of more, that many are drawn."""

_FILTER_CHIPS = 64
_PIXELS_PER_CHIP = 200


@dataclass(frozen=True)
class Extractor:
    """Numbers for every patch of a chip, by name."""

    name: str
    features: PerToken


@dataclass(frozen=True)
class Features:
    """Labelled examples with their features: patches, or whole chips.

    ``chip`` is the example's row in the dataset, ``block`` the block of ground it lies in.
    """

    values: Float32[np.ndarray, "example dim"]
    labels: Int64[np.ndarray, " example"]
    block: Shaped[np.ndarray, " example"]
    chip: Int64[np.ndarray, " example"]

    def take(self, index: Shaped[np.ndarray, " some"]) -> Features:
        """Some of the examples."""
        return Features(self.values[index], self.labels[index], self.block[index], self.chip[index])


# Extractors


def encoder(run: Run, readout: Readout = "token") -> Extractor:
    """The run's own vectors."""
    return Extractor("encoder", FrozenEncoder.of_run(run).read_out(readout))


def random_encoder(
    model: MaskedAutoencoder,
    seed: int,
    device: torch.device = CPU,
    band_set: str | None = None,
    readout: Readout = "token",
) -> Extractor:
    """The same encoder with the weights training would start from, and the same statistics; as
    ``FrozenEncoder`` has it, of chips with the bands of a set alone.
    """
    mean, std = model.normalise.mean.tolist(), model.normalise.std.tolist()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build_model(model.config, mean, std, model.band_names)
    fresh.load_state_dict(dict(model.named_buffers()), strict=False)  # filters that are fixed
    encoder = FrozenEncoder(fresh, device=device, band_set=band_set)
    return Extractor("random_encoder", encoder.read_out(readout))


def _on(device: torch.device, compute: PerToken) -> PerToken:
    """The same on a device, with what comes in and goes out lying elsewhere."""
    return lambda image, valid: compute(image.to(device), valid.to(device)).to(image.device)


def band_statistics(patch_px: int, device: torch.device = CPU) -> Extractor:
    """Mean, deviation and quantiles of every band over a patch's valid pixels."""
    compute = partial(statistics_of_patches, patch_px=patch_px)
    return Extractor("band_statistics", _on(device, compute))


def with_context(own: Extractor, patch_px: int) -> Extractor:
    """The same numbers of the patch, and their means over the 3 x 3 patches around it and over
    the whole chip, patches without a valid pixel left out.

    An encoder sees the whole chip: what it is compared with may see as much.
    """

    def features(image: Tensor, valid: Tensor) -> Tensor:
        found = own.features(image, valid)
        side = image.shape[-1] // patch_px
        some = patchify(valid[:, None], patch_px).any(2)
        known = some.to(found.dtype).unflatten(1, (side, side))[:, None]
        by_place = found.transpose(1, 2).unflatten(2, (side, side))
        share = F.avg_pool2d(known, 3, 1, 1)
        around = F.avg_pool2d(by_place * known, 3, 1, 1) / share.clamp(min=1e-6)
        chip = chip_means(found, some)[:, None].expand_as(found)
        return torch.cat([found, around.flatten(2).transpose(1, 2), chip], 2)

    return Extractor(f"{own.name}_context", features)


def statistics_of_patches(
    image: Float[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"], patch_px: int
) -> Float[Tensor, "batch token statistic"]:
    """Mean, deviation and ``QUANTILES`` (interpolated) of every band; 0 without a valid pixel."""
    pixels = patchify(image, patch_px).unflatten(2, (image.shape[1], -1))
    known = patchify(valid[:, None], patch_px)[:, :, None]
    num = known.sum(3, keepdim=True)
    filled = pixels.masked_fill(~known, 0.0)
    mean = filled.sum(3, keepdim=True) / num.clamp(min=1)
    deviation = ((filled - mean).square() * known).sum(3, keepdim=True) / num.clamp(min=1)
    ordered = pixels.masked_fill(~known, torch.inf).sort(3).values
    place = torch.tensor(QUANTILES, device=image.device) * (num - 1).clamp(min=0)
    below = place.long().expand(*pixels.shape[:3], -1)
    above = place.ceil().long().expand_as(below)
    low, high = ordered.gather(3, below), ordered.gather(3, above)
    quantiles = torch.where(num > 0, low + (high - low) * (place - below), 0.0)
    return torch.cat([mean, deviation.sqrt(), quantiles], 3).flatten(2)


def random_convolutions(
    image: Float[Tensor, "batch band row col"],
    valid: Bool[Tensor, "batch row col"],
    normalise: Normalise,
    patch_px: int,
    seed: int,
    device: torch.device = CPU,
) -> Extractor:
    """Responses to ``NUM_FILTERS`` squares cut from training chips, whitened, both signs, pooled.

    Filters are Gaussian where the chips have too few wholly valid squares. Source: Rolf et al.
    2021, "A generalizable and accessible approach to machine learning with global satellite
    imagery" (MOSAIKS), Methods; whitening after Coates and Ng 2012, section 2.
    """
    pixels, num_samples = _filled(image, valid, normalise, patch_px), _PIXELS_PER_CHIP * len(image)
    filters, bias = (
        each.to(device) for each in whitened_filters(pixels, valid, NUM_FILTERS, num_samples, seed)
    )
    there = copy.deepcopy(normalise).to(device)
    stride = STRIDE if patch_px % STRIDE == 0 else 1
    cells = patch_px // stride

    def pooled(image: Tensor, valid: Tensor) -> Tensor:
        pixels = _filled(image, valid, there, patch_px)
        pixels = F.pad(pixels, [FILTER_PX // 2] * 4, "replicate")
        response = F.conv2d(pixels, filters, bias, stride)
        known = valid[:, None, ::stride, ::stride].float()
        share = F.avg_pool2d(known, cells).clamp(min=1e-6)
        both = [
            F.avg_pool2d(F.relu(sign * response - THRESHOLD) * known, cells) / share
            for sign in (1, -1)
        ]
        return torch.cat(both, 1).flatten(2).transpose(1, 2)

    def features(image: Tensor, valid: Tensor) -> Tensor:
        parts = zip(image.split(CHIPS_IN_CACHE), valid.split(CHIPS_IN_CACHE), strict=True)
        return torch.cat([pooled(*part) for part in parts])

    return Extractor("random_convolutions", _on(device, torch.no_grad()(features)))


def log_energies(convolutions: Extractor) -> Extractor:
    """log(1 + 10 x) of pooled responses x, each at least 0: what is faint is told apart as well
    as what is strong.
    """

    def features(image: Tensor, valid: Tensor) -> Tensor:
        return (GAIN * convolutions.features(image, valid)).log1p()

    return Extractor("log_energies", features)


def _filled(image: Tensor, valid: Tensor, normalise: Normalise, patch_px: int) -> Tensor:
    """The image in model units, an invalid pixel the mean of its patch's valid ones."""
    patches = normalise(patchify(image, patch_px), patchify(valid[:, None], patch_px))
    return unpatchify(patches, patch_px, image.shape[-1] // patch_px)


Maker = Callable[[Run, Dataset, int, Readout], Extractor]
"""Makes an extractor for a run, a dataset (its train split), a seed, and an encoder's readout."""


def _humble(name: str) -> Maker:
    """How features are made that nothing is trained for."""

    def make(run: Run, dataset: Dataset, seed: int, readout: Readout) -> Extractor:
        patch_px = run.contract.patch_px
        if name.startswith("band_statistics"):
            own = band_statistics(patch_px, device_of(run))
        else:
            own = convolutions_of(run, dataset, seed)
        if name.startswith("log_energies"):
            own = log_energies(own)
        return with_context(own, patch_px) if name.endswith("_context") else own

    return make


_PATCH_ALONE = {
    "band_statistics": f"of every band in the patch: mean, deviation, quantiles {QUANTILES}",
    "random_convolutions": f"{NUM_FILTERS} whitened squares of {FILTER_PX} px of training chips as "
    "filters, positive and negative responses averaged over the patch",
    "log_energies": f"log(1 + {GAIN:g} x) of every x of the random convolutions",
}
_CONTEXT = ", and the means of these over the 3 x 3 patches around it and over the chip"
HUMBLE: Mapping[str, str] = {
    name + suffix: meaning + more
    for name, meaning in _PATCH_ALONE.items()
    for suffix, more in (("", ""), ("_context", _CONTEXT))
}
"""Features that nothing is trained for, and what they are; the best of them is the bar."""

MEANINGS: Mapping[str, str] = {
    "encoder": "the run's encoder, every patch visible",
    "random_encoder": "the same encoder with random weights",
    **HUMBLE,
}

MAKERS: Mapping[str, Maker] = {
    "encoder": lambda run, dataset, seed, readout: encoder(run, readout),
    "random_encoder": lambda run, dataset, seed, readout: random_encoder(
        run.model, seed, device_of(run), run.band_set, readout
    ),
    **{name: _humble(name) for name in HUMBLE},
}
"""Every extractor by name."""


def convolutions_of(run: Run, dataset: Dataset, seed: int) -> Extractor:
    """``random_convolutions`` with filters from some chips of the dataset's train split."""
    config = run.model.config
    windows = fixed_windows(dataset.indices("train").tolist(), dataset.size_px, config.chip_px)
    some = np.random.default_rng(seed).permutation(len(windows))[:_FILTER_CHIPS]
    batch = cut(dataset, [windows[i] for i in some], config.chip_px, config.patch_px)
    return random_convolutions(
        batch.image, batch.valid, run.normalise, config.patch_px, seed, device_of(run)
    )


# Examples of a dataset


def probed_px(run: Run, dataset: Dataset) -> int:
    """Side of what probes look at: a chip, or a whole stored square that is no more than one.

    Such a square is larger where a model was trained on chips cut from it at any phase. Of learned
    places there are none beyond a chip.
    """
    model, side = run.model.config, dataset.size_px
    alone = len(fixed_windows([0], side, model.chip_px)) == 1
    whole = alone and side % model.patch_px == 0 and model.name != "seed"
    return side if whole else model.chip_px


def extract(
    dataset: Dataset,
    split: str,
    extractor: Extractor,
    chip_px: int,
    patch_px: int,
    seed: int = 0,
    most_chips: int = MOST_CHIPS,
    on_chips: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Features]:
    """The labelled examples of a split at every level of ``LEVELS``, on evaluation's windows.

    A patch's label is its most frequent class, a chip's that of all its pixels; a chip's features
    are the mean over its patches. Examples without a label or without a valid pixel are left out.
    ``on_chips`` is told (chips done, chips in all).
    """
    windows = fixed_windows(dataset.indices(split).tolist(), dataset.size_px, chip_px)
    if len(windows) > most_chips:
        drawn = np.random.default_rng(seed).permutation(len(windows))[:most_chips]
        windows = [windows[i] for i in np.sort(drawn)]
    block = dataset.column("block")
    parts: dict[str, list[Features]] = {level: [] for level in LEVELS}
    for start in range(0, len(windows), CHIPS_AT_ONCE):
        batch = cut(dataset, windows[start : start + CHIPS_AT_ONCE], chip_px, patch_px)
        values = extractor.features(batch.image, batch.valid)
        some = patchify(batch.valid[:, None], patch_px).any(2)
        counts = batch.class_counts.numpy()
        chips = batch.chip.numpy()
        tokens = np.repeat(chips, counts.shape[1])
        for level, found, labels, known, chip in (
            ("patch", values.flatten(0, 1), patch_mode(counts).reshape(-1), some.flatten(), tokens),
            ("chip", chip_means(values, some), patch_mode(counts.sum(1)), some.any(1), chips),
        ):
            keep = (labels != IGNORE) & known.numpy()
            every = Features(found.numpy(), labels.astype(np.int64), block[chip], chip)
            parts[level].append(every.take(keep))
        on_chips(start + len(chips), len(windows))
    return {level: _joined(some) for level, some in parts.items()}


def chip_means(
    values: Float[Tensor, "batch token dim"], some: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch dim"]:
    """The mean over a chip's tokens that have a valid pixel (``some``); 0 where none has."""
    return (values * some[..., None]).sum(1) / some.sum(1, keepdim=True).clamp(min=1)


def _joined(parts: list[Features]) -> Features:
    """Examples one after the other; of no parts none, without features."""
    if not parts:
        none = np.zeros(0, np.int64)
        return Features(np.zeros((0, 0), np.float32), none, none.astype(object), none)
    return Features(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("values", "labels", "block", "chip")
        )
    )
