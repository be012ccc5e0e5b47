"""What tells the classes of a map apart: a run's land-cover head, or a probe on its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bharateo.inference.encoder import FrozenEncoder
from bharateo.landcover import BHARATEO_CLASSES, LandCoverClass
from bharateo.training.run import Run

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
