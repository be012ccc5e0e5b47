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
        self.weights = {name: weights[name].weight for name in heads}

    def counts(self, batch: Batch, mask: Mask) -> Tensor:
        """The heads' numbers of targets in a batch, float64 (head,)."""
        heads = self.heads.by_name().values()
        return torch.stack([head.count(batch, mask, self.model) for head in heads]).double()

    def forward(self, batch: Batch, mask: Mask, counts: Tensor) -> tuple[Tensor, Sums]:
        """This part's share of the loss of a batch with ``counts`` targets, and metric sums.

        The shares of all parts, on any rank, add up to the loss of the whole.
        """
        tokens = self.model(batch.image, batch.valid, mask)
        loss = torch.zeros((), device=counts.device)
        sums: Sums = {}
        heads = self.heads.by_name().items()
        for (name, head), count in zip(heads, counts.clamp(min=1).float(), strict=True):
            metrics = head(tokens, batch, self.model)
            loss = loss + self.weights[name] * metrics[head.loss_metric][0] / count
            sums |= {key: (total.detach(), n) for key, (total, n) in metrics.items()}
        return loss, sums


def weighted_loss(means: Mapping[str, float], weights: Mapping[str, HeadConfig]) -> float:
    """The loss that the heads' mean losses make."""
    return sum(head.weight * means[HEADS[name].loss_metric] for name, head in weights.items())
