"""What a run says of patches: vectors and classes seen, and how well it rebuilds them hidden.

A patch's errors are means over the masks of ``covering_masks`` that hide it, in physical units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from bharateo.evaluation.baselines import nearest_visible
from bharateo.evaluation.evaluate import predict, seen_by_baselines
from bharateo.inference.encoder import FrozenEncoder, PerToken
from bharateo.landcover import NUM_CLASSES
from bharateo.models.heads import Batch, LandCoverHead, PixelHead
from bharateo.models.patches import Mask, num_masked
from bharateo.training.checkpoint import Run

NUM_MASKS = 4
"""At the usual ratio of 75 % a patch is hidden by three of them."""


@dataclass(frozen=True)
class Answers:
    """Of every patch: the vector, probabilities of the classes (None without a land-cover head),
    and the mean absolute errors, once hidden, of the model and of a copy of the nearest visible
    patch (None without a pixel head).
    """

    vectors: Float32[np.ndarray, "patch dim"]
    probabilities: Float32[np.ndarray, "patch cls"] | None
    error: Float32[np.ndarray, " patch"] | None
    copy_error: Float32[np.ndarray, " patch"] | None


@dataclass(frozen=True)
class Asked:
    """What is asked of chips: ``seen`` with every patch visible, ``hidden`` under masks."""

    seen: PerToken
    hidden: PerToken
    width: int
    has_classes: bool
    has_pixels: bool
    chip_px: int
    patch_px: int

    @property
    def tokens_per_chip(self) -> int:
        """Tokens along a chip's side."""
        return self.chip_px // self.patch_px

    def answers(self, values: Float32[np.ndarray, "patch number"]) -> Answers:
        """The numbers of ``seen`` and ``hidden``, one after the other, by what they are."""
        vectors, logits, errors = np.split(values, [self.width, values.shape[1] - 2], 1)
        odds = np.exp(logits - logits.max(1, keepdims=True)) if self.has_classes else None
        return Answers(
            vectors,
            None if odds is None else odds / odds.sum(1, keepdims=True),
            errors[:, 0] if self.has_pixels else None,
            errors[:, 1] if self.has_pixels else None,
        )


def asked_of(run: Run) -> Asked:
    """What is asked for a page of this run."""
    kinds = {type(head) for head in run.heads.values()}
    encoder = FrozenEncoder.of_run(run)
    has_classes = LandCoverHead in kinds

    def seen(image: Tensor, valid: Tensor) -> Tensor:
        if not has_classes:
            return encoder.features(image, valid)
        return torch.cat(encoder.features_and_logits(image, valid), 2)

    def hidden(image: Tensor, valid: Tensor) -> Tensor:
        return masked_errors(run, image, valid)

    return Asked(
        seen, hidden, encoder.width, has_classes, PixelHead in kinds, encoder.chip_px,
        encoder.patch_px,
    )  # fmt: skip


def covering_masks(num_tokens: int, mask_ratio: float) -> list[Mask]:
    """Fixed masks of one chip that together hide every token."""
    masked = num_masked(num_tokens, mask_ratio)
    drawn = torch.from_numpy(np.random.default_rng(0).permutation(num_tokens))
    num = max(NUM_MASKS, -(-num_tokens // masked))
    masks = []
    for start in range(0, num * num_tokens, num_tokens):
        rolled = drawn.roll(-(start // num))
        order = torch.cat([rolled[masked:].sort().values, rolled[:masked].sort().values])
        masks.append(Mask(order[None], num_tokens - masked))
    return masks


def masked_errors(
    run: Run, image: Float[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
) -> Float[Tensor, "batch token 2"]:
    """Mean absolute error of every patch, once hidden: the model's and the copy's.

    Physical units, over valid pixels; 0 for a patch that has none.
    """
    num_chips, num_tokens = len(image), run.model.num_tokens
    total = torch.zeros(num_chips, num_tokens, 2)
    times = torch.zeros(num_tokens)
    counts = torch.zeros(num_chips, num_tokens, NUM_CLASSES, dtype=torch.int64)
    batch = Batch(image, valid, counts, torch.arange(num_chips))
    for mask in covering_masks(num_tokens, run.model.config.mask_ratio):
        hidden = mask.masked[0]
        mask = Mask(mask.order.expand(num_chips, -1), mask.num_visible)
        made = (predict(run, batch, mask)[0], nearest_visible(seen_by_baselines(run, batch, mask)))
        errors = [_error(run, batch, mask, each.pixels) for each in made]
        total[:, hidden] += torch.stack(errors, 2)
        times[hidden] += 1
    return total / times[:, None]


def _error(run: Run, batch: Batch, mask: Mask, predicted: Tensor) -> Float[Tensor, "batch masked"]:
    """Of predicted patches (model units), in physical units."""
    model = run.model
    target, known = model.patches(batch.image, batch.valid, mask.masked)
    off = (predicted - target).abs().unflatten(2, (model.num_bands, -1))
    off = off * model.normalise.std[:, None] * known[:, :, None]
    return off.mean(2).sum(2) / known.sum(2).clamp(min=1)
