"""Out of the domain: ground, or numbers, unlike all that a run was trained on.

Two views of a patch, the encoder's features and plain statistics of its pixels, span an ellipsoid
each on the train split. How far a patch lies from the middle of each (Mahalanobis), and how far its
window does in the mean, is compared with validation ground: what goes beyond nearly all of it is
out of the domain. The single patch finds odd places. The window finds odd rasters, whose every
patch is a bit too far. Pixels find what an encoder maps to something familiar, such as noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bharateo.chips.store import Dataset
from bharateo.errors import DatasetError
from bharateo.files import write_atomically
from bharateo.inference.encoder import CHIPS_AT_ONCE, FrozenEncoder
from bharateo.models.mae import MaskedAutoencoder
from bharateo.training.contract import check_inside
from bharateo.training.data import cut, fixed_windows
from bharateo.training.run import Run

DOMAIN_FILE = "domain.safetensors"
"""That of all bands; a set of bands has one of its own, ``domain-SET.safetensors``."""

QUANTILE = 0.99
"""Share of validation patches that count as inside."""

MOST_CHIPS = 512
"""Windows of a split that are looked at: 32,768 patches of 16 px."""

_VIEWS = ("features", "pixels")
_TENSORS = ("mean", "whitening", "limits")
_FLAT = 1e-9
"""Variance, as a share of the largest, below which a direction has none."""

_SMALLEST = 0.01
"""Deviation and roughness, in model units, below which they do not differ."""

Tokens = Float[Tensor, "window token dim"]
Known = Bool[Tensor, "window token"]


@dataclass(frozen=True)
class Ellipsoid:
    """Where training vectors lie: (x - mean) @ whitening has unit covariance.

    ``limits`` are the distances, of a patch and in the mean of a window, that count as 1.
    """

    mean: Float[Tensor, " dim"]
    whitening: Float[Tensor, "dim dim"]
    limits: Float[Tensor, "2"]

    def distance(self, vectors: Tokens, known: Known) -> Float[Tensor, "window token"]:
        """How far every token lies; ``known`` are those with a part in their window's mean."""
        own, around = _distances(vectors.float(), known, self.mean, self.whitening)
        return torch.maximum(own / self.limits[0], (around / self.limits[1])[:, None])


class Views(NamedTuple):
    """Both views of some windows, and which of their tokens have a valid pixel."""

    features: Tokens
    pixels: Tokens
    known: Known


@dataclass(frozen=True)
class Domain:
    """The ellipsoids of both views."""

    features: Ellipsoid
    pixels: Ellipsoid

    def distance(self, views: Views) -> Float[Tensor, "window token"]:
        """How far every token lies; beyond 1 is out of the domain."""
        own = self.features.distance(views.features, views.known)
        return torch.maximum(own, self.pixels.distance(views.pixels, views.known))


def _distances(
    vectors: Tensor, known: Tensor, mean: Tensor, whitening: Tensor
) -> tuple[Float[Tensor, "window token"], Float[Tensor, " window"]]:
    own = ((vectors - mean) @ whitening).norm(dim=2)
    return own, (own * known).sum(1) / known.sum(1).clamp(min=1)


def pixel_statistics(
    model: MaskedAutoencoder,
    image: Float[Tensor, "batch band row col"],
    valid: Bool[Tensor, "batch row col"],
    band_set: str | None = None,
) -> tuple[Tokens, Known]:
    """Of every band of every patch, in model units: mean, and logarithms of the deviation and of
    the mean step from pixel to pixel; and which patches have a valid pixel. Of images that hold the
    bands of a set of the model alone, where one is named.
    """
    device = next(model.parameters()).device
    every = torch.arange(model.num_tokens, device=device).expand(len(image), -1)
    patches, pixels = model.patches(image.to(device), valid.to(device), every, band_set)
    side = model.config.patch_px
    squares = patches.unflatten(2, (image.shape[1], side, side))
    steps = [squares.diff(dim=dim).abs().mean((3, 4)) for dim in (3, 4)]
    spread = [squares.std((3, 4)), (steps[0] + steps[1]) / 2]
    logs = [each.clamp(min=_SMALLEST).log() for each in spread]
    statistics, known = torch.cat([squares.mean((3, 4)), *logs], 2), pixels.any(2)
    return statistics.to(image.device), known.to(image.device)


def fit_domain(train: Views, val: Views, quantile: float = QUANTILE) -> Domain:
    """The domain of train windows, with limits that keep ``quantile`` of the val patches inside."""
    parts = [_fit(train[view], train.known, val[view], val.known, quantile) for view in (0, 1)]
    inside = Domain(*parts).distance(val)[val.known]
    scale = _quantile(inside, quantile)
    return Domain(*(replace(part, limits=part.limits * scale) for part in parts))


def _fit(
    train: Tokens,
    known: Known,
    val: Float[Tensor, "val_window token dim"],
    val_known: Bool[Tensor, "val_window token"],
    quantile: float,
) -> Ellipsoid:
    """The covariance is shrunk, so that few vectors do for many dimensions.

    Source: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance
    matrices".
    """
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(train[known].double().numpy())
    variance, directions = np.linalg.eigh(fitted.covariance_)
    scale = 1 / np.sqrt(np.maximum(variance, variance.max() * _FLAT))
    mean = torch.from_numpy(fitted.location_).float()
    whitening = torch.from_numpy(directions * scale).float()
    own, around = _distances(val, val_known, mean, whitening)
    limits = torch.stack([_quantile(own[val_known], quantile), _quantile(around, quantile)])
    return Ellipsoid(mean, whitening, limits)


def _quantile(values: Tensor, quantile: float) -> Tensor:
    return torch.tensor(float(np.quantile(values.numpy(), quantile)))


# Of a run


def domain_of(run: Run, progress: Callable[[float, float, str], object]) -> Domain:
    """The run's domain: as kept in its folder, else of its own dataset, and kept from then on.

    Raises:
        DatasetError: none is kept, and the dataset is gone, another one, or has no train or val
            split.
        StorageError: it cannot be kept.
    """
    kept = load_domain(run)
    if kept is not None:
        return kept
    dataset = run.unchanged_dataset()
    train, val = (views_of(run, dataset, split, progress) for split in ("train", "val"))
    domain = fit_domain(train, val)
    _keep(run, domain)
    return domain


def views_of(
    run: Run,
    dataset: Dataset,
    split: str,
    progress: Callable[[float, float, str], object],
) -> Views:
    """Both views of a split's windows, of ``MOST_CHIPS`` at most.

    Raises:
        DatasetError: the split is empty.
    """
    encoder = FrozenEncoder.of_run(run)
    windows = fixed_windows(dataset.indices(split).tolist(), dataset.size_px, encoder.chip_px)
    if not windows:
        raise DatasetError(
            f"{dataset.path} has no {split} split, without which nobody can tell what is out of "
            "the run's domain: build it with one"
        )
    drawn = np.random.default_rng(0).permutation(len(windows))[:MOST_CHIPS]
    parts = []
    for start in range(0, len(drawn), CHIPS_AT_ONCE):
        some = [windows[i] for i in drawn[start : start + CHIPS_AT_ONCE]]
        batch = cut(dataset, some, encoder.chip_px, encoder.patch_px)
        features = encoder.features(batch.image, batch.valid)
        pixels = pixel_statistics(encoder.model, batch.image, batch.valid, run.band_set)
        parts.append(Views(features, *pixels))
        progress(start + len(some), len(drawn), f"{split} ground of the run's dataset")
    return Views(*(torch.cat(each) for each in zip(*parts, strict=True)))


def domain_file(run: Run) -> str:
    """The name of the file that the domain of a run is kept in, for the bands it is to take."""
    file = Path(DOMAIN_FILE)
    return file.name if run.band_set is None else f"{file.stem}-{run.band_set}{file.suffix}"


def load_domain(run: Run) -> Domain | None:
    """What is kept in the run's folder; None where nothing is, or that of other weights."""
    check_inside(run.path, domain_file(run))
    try:
        with safe_open(run.path / domain_file(run), "pt") as file:
            if file.metadata()["weights_sha256"] != run.weights_sha256:
                return None
            parts = [
                Ellipsoid(*(file.get_tensor(f"{view}.{name}") for name in _TENSORS))
                for view in _VIEWS
            ]
    except (SafetensorError, OSError, KeyError, TypeError):
        return None
    for part, dims in zip(parts, (run.model.config.width, 3 * run.sensor.num_bands), strict=True):
        shapes = [tuple(getattr(part, name).shape) for name in _TENSORS]
        if shapes != [(dims,), (dims, dims), (2,)]:
            return None
    return Domain(*parts)


def _keep(run: Run, domain: Domain) -> None:
    tensors = {
        f"{view}.{name}": getattr(getattr(domain, view), name).contiguous()
        for view in _VIEWS
        for name in _TENSORS
    }
    content = save(tensors, {"weights_sha256": run.weights_sha256, "quantile": str(QUANTILE)})
    write_atomically(run.path / domain_file(run), lambda file: file.write(content))
