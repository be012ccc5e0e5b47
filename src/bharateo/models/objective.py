"""What is minimised: the model, its pretext heads, and the weighted sum of their losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bharateo.config import HeadConfig
from bharateo.models.heads import HEADS, Batch, Heads, Sums
from bharateo.models.mae import MaskedAutoencoder
from bharateo.models.patches import Mask
from bharateo.models.targets import Conditioning

MEASURED_PATCHES = 1000
"""About so many, spread over the chips, tell what a target is like."""


class Objective(nn.Module):
    """Model and heads as one module: what is wrapped for several ranks, compiled and stepped.

    Its state has the names of the run's weights: ``model....`` and ``heads....``.
    """

    def __init__(
        self, model: MaskedAutoencoder, heads: Heads, weights: Mapping[str, HeadConfig]
    ) -> None:
        super().__init__()
        self.model, self.heads = model, heads
        self.weights = weights_of_losses({name: weights[name] for name in heads})

    @torch.no_grad()
    def fit(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Measure what training does not move, of some training chips: name -> what is so held."""
        patches, pixels = self.model.every_patch(batch.image, batch.valid)
        self.model.embed.fit(patches, pixels, seed)
        for head in self.heads.by_name().values():
            head.fit(patches, pixels, seed)
        return dict(self.named_buffers())

    @torch.no_grad()
    def conditioning(self, batch: Batch) -> dict[str, Conditioning]:
        """Head -> what its targets of some chips are like; of those alone that name no classes.

        Patches that are not wholly valid are left out, and heads of whose target nothing is left.
        """
        patches, pixels = self.model.every_patch(batch.image, batch.valid)
        means = patches.unflatten(2, (self.model.num_bands, -1)).mean(3)
        found = {}
        for name, head in self.heads.by_name().items():
            if head.classes:
                continue
            target = head.target(batch, self.model)
            known = pixels.all(2) & target.isfinite().all(2)
            chosen = known.flatten().nonzero()[:, 0]
            chosen = chosen[:: max(1, len(chosen) // MEASURED_PATCHES)]
            if len(chosen) > 1:
                rows = (each.flatten(0, 1)[chosen] for each in (target, means))
                found[name] = Conditioning.of(*rows)
        return found

    def counts(self, batch: Batch, mask: Mask) -> Tensor:
        """The numbers of targets of the heads' losses in a batch, float64 (loss,)."""
        heads = self.heads.by_name().values()
        found = [count for head in heads for count in head.counts(batch, mask, self.model)]
        return torch.stack(found).double()

    def forward(
        self, batch: Batch, mask: Mask, counts: Tensor, band_set: str | None = None
    ) -> tuple[Tensor, Sums]:
        """This part's share of the loss of a batch with ``counts`` targets, and metric sums, where
        the encoder is shown the bands of a set alone (None: all).

        The shares of all parts, on any rank, add up to the loss of the whole.
        """
        tokens = self.model(batch.image, batch.valid, mask, band_set)
        sums: Sums = {}
        for head in self.heads.by_name().values():
            sums |= head(tokens, batch, self.model)
        loss = torch.zeros((), device=counts.device)
        for (name, weight), count in zip(
            self.weights.items(), counts.clamp(min=1).float(), strict=True
        ):
            loss = loss + weight * sums[name][0] / count
        if self.model.band_sets:
            # What other sets have of their own gets a gradient too, of 0: ranks wait for that of
            # every weight, and optimisers keep as much of each from the first step on.
            for parameter in self.model.embed.parameters():
                loss = loss + 0.0 * parameter.sum()
        return loss, {name: (total.detach(), n) for name, (total, n) in sums.items()}


def weights_of_losses(heads: Mapping[str, HeadConfig]) -> dict[str, float]:
    """Metric -> its weight in the loss, of every loss of every head."""
    return {
        metric: head.weight * weight
        for name, head in heads.items()
        for metric, weight in HEADS[name].losses(head.options).items()
    }


def weighted_loss(means: Mapping[str, float], heads: Mapping[str, HeadConfig]) -> float:
    """The loss that the heads' mean losses make."""
    return sum(weight * means[metric] for metric, weight in weights_of_losses(heads).items())
