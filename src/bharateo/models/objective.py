"""What is minimised: the model, its pretext heads, and the weighted sum of their losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bharateo.config import HeadConfig
from bharateo.models.heads import HEADS, Batch, Heads, Sums
from bharateo.models.mae import MaskedAutoencoder
from bharateo.models.patches import Mask


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

    def counts(self, batch: Batch, mask: Mask) -> Tensor:
        """The numbers of targets of the heads' losses in a batch, float64 (loss,)."""
        heads = self.heads.by_name().values()
        found = [count for head in heads for count in head.counts(batch, mask, self.model)]
        return torch.stack(found).double()

    def forward(self, batch: Batch, mask: Mask, counts: Tensor) -> tuple[Tensor, Sums]:
        """This part's share of the loss of a batch with ``counts`` targets, and metric sums.

        The shares of all parts, on any rank, add up to the loss of the whole.
        """
        tokens = self.model(batch.image, batch.valid, mask)
        sums: Sums = {}
        for head in self.heads.by_name().values():
            sums |= head(tokens, batch, self.model)
        loss = torch.zeros((), device=counts.device)
        for (name, weight), count in zip(
            self.weights.items(), counts.clamp(min=1).float(), strict=True
        ):
            loss = loss + weight * sums[name][0] / count
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
