"""A frozen encoder: every patch of a chip is seen, nothing is hidden, nothing is learnt."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from bharateo.errors import RunError
from bharateo.models.heads import LandCoverHead
from bharateo.models.mae import MaskedAutoencoder
from bharateo.models.patches import Mask
from bharateo.training.run import Run

CHIPS_AT_ONCE = 64
"""Chips of one pass through the model; more do not make it faster on a CPU."""


@runtime_checkable
class PerToken(Protocol):
    """What is asked of a chip: some numbers for each of its tokens, row-major."""

    def __call__(
        self, image: Real[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
    ) -> Float[Tensor, "batch token dim"]:
        """Numbers of every token; ``image`` in physical units, anything where not ``valid``."""
        ...


def all_visible(num_chips: int, num_tokens: int) -> Mask:
    """The mask that hides nothing."""
    return Mask(torch.arange(num_tokens).expand(num_chips, num_tokens), num_tokens)


class FrozenEncoder:
    """A model's vectors and, with the run's heads, its classes, of chips without a mask."""

    def __init__(self, model: MaskedAutoencoder, heads: nn.ModuleDict | None = None) -> None:
        self.model = model.eval()
        self.heads = heads
        self.chip_px, self.patch_px = model.config.chip_px, model.config.patch_px
        self.grid, self.num_tokens = model.grid, model.num_tokens
        self.num_bands, self.width = model.num_bands, model.config.width

    @classmethod
    def of_run(cls, run: Run) -> FrozenEncoder:
        """The encoder of a finished run, with its heads."""
        return cls(run.model, run.heads)

    @torch.no_grad()
    def features(
        self, image: Real[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
    ) -> Float[Tensor, "batch token dim"]:
        """The encoder's vector of every patch, after its last normalisation; in the precision of
        the model's weights.
        """
        parts = [
            self.model.encode(chips, known, all_visible(len(chips), self.num_tokens))
            for chips, known in zip(
                image.split(CHIPS_AT_ONCE), valid.split(CHIPS_AT_ONCE), strict=True
            )
        ]
        return torch.cat(parts)

    def class_probabilities(
        self, image: Real[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
    ) -> Float[Tensor, "batch token cls"]:
        """What the run's own land-cover head says of every patch.

        Raises:
            RunError: the run was trained without a land-cover head.
        """
        return self.features_and_logits(image, valid)[1].softmax(2)

    @torch.no_grad()
    def features_and_logits(
        self, image: Real[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch token cls"]]:
        """``features``, and what the softmax of ``class_probabilities`` is taken of, in one pass.

        Raises:
            RunError: the run was trained without a land-cover head.
        """
        head, features = self.land_cover_head, self.features(image, valid)
        logits = []
        for encoded in features.split(CHIPS_AT_ONCE):
            mask = all_visible(len(encoded), self.num_tokens)
            logits.append(head.predict(self.model.decode(encoded, mask)))
        return features, torch.cat(logits)

    @property
    def land_cover_head(self) -> LandCoverHead:
        """The run's land-cover head.

        Raises:
            RunError: there is none.
        """
        for head in (self.heads or {}).values():
            if isinstance(head, LandCoverHead):
                return head
        raise RunError(
            "heads.landcover is not among the run's heads, so it has no classes of its own: "
            "fit a probe on its features, or pretrain with that head"
        )
