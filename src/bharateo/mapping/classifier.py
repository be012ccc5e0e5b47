"""What tells the classes of a map apart: a run's land-cover head, or a probe on its features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bharateo.embedding.encoder import FrozenEncoder
from bharateo.errors import ContractError
from bharateo.evaluation.probes import LinearProbe, load_probe
from bharateo.landcover import BHARATEO_CLASSES, LandCoverClass
from bharateo.mapping.style import own_classes
from bharateo.training.checkpoint import Run

Look = Callable[
    [Tensor, Tensor],
    tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch token cls"]],
]
"""(image, valid) -> the encoder's features, and the logits of the classes, of every token."""


@dataclass(frozen=True)
class Classifier:
    """``look`` asks for both features and logits; ``about`` says what it is, as plain JSON.

    Logits, not probabilities, are averaged over windows: those of a probe are linear in its
    features, so the map says of a place what the probe says of its blended vector.
    """

    classes: tuple[LandCoverClass, ...]
    look: Look
    about: Mapping[str, Any]


def head_classifier(run: Run) -> Classifier:
    """The run's land-cover head.

    Raises:
        RunError: the run has none.
    """
    encoder = FrozenEncoder.of_run(run)
    _ = encoder.land_cover_head
    scheme = run.contract.class_scheme.name
    about = {"classifier": "land-cover head", "trained on": scheme}
    return Classifier(BHARATEO_CLASSES, encoder.features_and_logits, about)


def probe_classifier(run: Run, path: Path) -> Classifier:
    """A probe in a file, which must have been fitted on this run's features.

    Raises:
        DatasetError: the file holds no probe.
        ContractError: it belongs to other weights, or is of another width.
    """
    probe, about = load_probe(path)
    own = run.weights_sha256
    given = about.get("weights_sha256", own)
    if given != own or len(probe.mean) != run.model.config.width:
        raise ContractError(
            f"probe: {path} was fitted on the features of another run than {run.path} (width "
            f"{len(probe.mean)}, weights {str(given)[:12]}...): give the run it was fitted on, or "
            "fit a probe on this one"
        )
    names = about.get("class_names") or [BHARATEO_CLASSES[cls].name for cls in probe.classes]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    kept = {"classifier": f"linear probe {path.name}", "sha256": sha256}
    return Classifier(own_classes(names), linear_look(FrozenEncoder.of_run(run), probe), kept)


def linear_look(encoder: FrozenEncoder, probe: LinearProbe) -> Look:
    """Features, and the probe's logits of them."""
    arrays = (probe.mean, probe.std, probe.weight, probe.bias)
    mean, std, weight, bias = (torch.from_numpy(array).float() for array in arrays)

    def look(image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        features = encoder.features(image, valid)
        return features, (features.float() - mean) / std @ weight + bias

    return look
