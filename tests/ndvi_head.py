"""A pretext task of one's own: how green every pixel of the hidden patches is."""

import torch
from torch import nn

from bharateo.models.heads import HEADS, Head, Layer
from bharateo.models.patches import patchify
from bharateo.results import Metric


class NdviHead(Head):
    """The NDVI of every pixel, (near infrared - red) / (near infrared + red), by its absolute error
    over masked patches.
    """

    loss_metric = "ndvi_mae"  # which of its metrics is minimised
    metrics = (
        Metric(
            name="ndvi_mae",
            title="NDVI, masked",
            better="lower",
            meaning="mean absolute error of the NDVI over valid pixels of masked patches",
            phrase="masked NDVI",
            against="ratio",
        ),
    )

    def __init__(self, model, red: int = 2, nir: int = 3):  # heads.ndvi.options, held to this type
        super().__init__()
        self.red, self.nir, self.patch_px = red, nir, model.config.patch_px
        self.norm = nn.LayerNorm(model.decoded_width)
        self.linear = nn.Linear(model.decoded_width, self.patch_px**2)

    def layers(self):
        """What `bharateo map` can show: here one value a pixel."""
        return (Layer("NDVI", self.patch_px**2, range=(-1.0, 1.0)),)

    def target(self, batch, model):
        """What is to be predicted of every token, NaN where nothing is known."""
        red, nir = batch.image[:, self.red], batch.image[:, self.nir]
        ndvi = ((nir - red) / (nir + red).clamp(min=1e-3)).clamp(-1, 1)
        return patchify(ndvi.masked_fill(~batch.valid, torch.nan)[:, None], self.patch_px)

    def predict(self, decoded):
        """What the head says of decoded tokens."""
        return self.linear(self.norm(decoded)).tanh()

    def measure(self, predicted, target, hidden, model):
        """Metric -> (sum, count) of every chip."""
        known = target.isfinite() & hidden[:, :, None]
        error = predicted - torch.where(known, target, predicted)  # 0, without gradient, elsewhere
        return {"ndvi_mae": (error.abs().sum((1, 2)), known.sum((1, 2)))}


HEADS["ndvi"] = NdviHead
