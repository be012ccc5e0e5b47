"""Pretext tasks: each head owns its target, prediction, loss and metrics.

A new task is one class here, one line in ``HEADS`` and one entry under ``heads`` in the YAML.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, create_model
from torch import Tensor, nn
from torch.nn import functional as F

from bharateo.artefacts import Record, checked, shortened
from bharateo.config import HeadConfig
from bharateo.errors import ConfigError
from bharateo.landcover import IGNORE, NUM_CLASSES
from bharateo.models.mae import MaskedAutoencoder, Tokens
from bharateo.models.patches import (
    CHIPS_IN_CACHE,
    Mask,
    eager_on_cpu,
    known_all,
    take_patches,
    take_tokens,
)

Sums = dict[str, tuple[Tensor, Tensor]]
"""Metric -> (sum, count): adds over batches and ranks without bias, whatever is missing in them."""


@dataclass(frozen=True)
class Batch:
    """One batch of chips.

    ``image`` is in physical units and may hold anything where ``valid`` is False;
    ``class_counts`` are the labelled pixels of each class in each patch (tokens row-major), of
    valid ones alone: what no image shows is no target; ``chip`` the chips' rows in the dataset.
    """

    image: Float[Tensor, "batch band row col"]
    valid: Bool[Tensor, "batch row col"]
    class_counts: Int64[Tensor, "batch token cls"]
    chip: Int64[Tensor, batch]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; where it is pinned, nobody waits for that."""
        layers = (getattr(self, field.name) for field in fields(self))
        return Batch(*(each.to(device, non_blocking=True) for each in layers))

    def pinned(self) -> Batch:
        """The batch in memory that a GPU reads by itself."""
        return Batch(*(getattr(self, field.name).pin_memory() for field in fields(self)))


class Head(nn.Module):
    """A pretext task on the decoded tokens. ``loss_metric`` names its loss among its metrics.

    What its class takes beside the model are its options; their types and bounds stand there, and
    ``build_heads`` holds a configuration to them.
    """

    loss_metric: ClassVar[str]

    def count(self, batch: Batch, mask: Mask) -> Tensor:
        """How many targets of the task a batch holds: the loss is the sum over them by this.

        Known before the model has run, so that the parts of a batch, on several ranks or one
        after the other, are divided by the count of the whole.
        """
        raise NotImplementedError

    def forward(self, tokens: Tokens, batch: Batch, model: MaskedAutoencoder) -> Sums:
        """The sums its metrics are made of; that of ``loss_metric`` carries the gradient."""
        raise NotImplementedError


class PixelHead(Head):
    """Rebuild the pixels of the masked patches: LayerNorm, Linear, SmoothL1 in model units.

    Metrics: ``rec_smooth_l1`` (model units) and ``masked_mae`` (physical units), over valid
    scalars of masked patches.
    """

    loss_metric = "rec_smooth_l1"

    def __init__(
        self, model: MaskedAutoencoder, beta: Annotated[float, Field(gt=0, le=1e6)] = 0.1
    ) -> None:
        super().__init__()
        self.beta, self.patch_px = beta, model.config.patch_px
        self.norm = nn.LayerNorm(model.decoded_width)
        self.linear = nn.Linear(model.decoded_width, model.values_per_patch)

    def predict(self, tokens: Tokens) -> Float[Tensor, "batch masked value"]:
        """Masked patches in model units."""
        predicted: Tensor = self.linear(self.norm(tokens.masked))
        return predicted

    def count(self, batch: Batch, mask: Mask) -> Tensor:
        """Valid scalars of masked patches."""
        valid = take_patches(batch.valid[:, None], self.patch_px, mask.masked)
        return valid.sum() * batch.image.shape[1]

    def forward(self, tokens: Tokens, batch: Batch, model: MaskedAutoencoder) -> Sums:
        """SmoothL1 over valid scalars of masked patches."""
        hidden = slice(tokens.mask.num_visible, None)
        target, valid = tokens.patches[:, hidden], tokens.pixels[:, hidden]
        predicted = self.predict(tokens).float()
        total, absolute = pixel_errors(predicted, target, valid, self.beta)
        mae = (absolute * model.normalise.std).sum()
        count = valid.sum() * model.num_bands
        return {"rec_smooth_l1": (total, count), "masked_mae": (mae, count)}


class LandCoverHead(Head):
    """Predict every patch's land cover: LayerNorm, Linear, cross-entropy over labelled patches.

    ``target`` "mode" is the most frequent class (ties to the lowest id), "fraction" the share of
    every class among the labelled pixels. Metrics: ``esa_ce`` over all labelled patches;
    ``esa_acc`` (of the most frequent class) over all, masked and visible ones, never mixed.
    """

    loss_metric = "esa_ce"

    def __init__(
        self, model: MaskedAutoencoder, target: Literal["mode", "fraction"] = "fraction"
    ) -> None:
        super().__init__()
        self.target = target
        self.norm = nn.LayerNorm(model.decoded_width)
        self.linear = nn.Linear(model.decoded_width, NUM_CLASSES)

    def predict(self, tokens: Tokens) -> Float[Tensor, "batch token cls"]:
        """Class logits of all tokens, in the tokens' order."""
        return self.classify(tokens.values)

    def classify(
        self, decoded: Float[Tensor, "batch token decoded"]
    ) -> Float[Tensor, "batch token cls"]:
        """Class logits of decoded tokens."""
        logits: Tensor = self.linear(self.norm(decoded))
        return logits

    def cross_entropy(
        self,
        logits: Float[Tensor, "batch token cls"],
        counts: Int64[Tensor, "batch token cls"],
    ) -> Float[Tensor, "batch token"]:
        """Cross-entropy of every token with its target, 0 where nothing is labelled."""
        if self.target == "mode":
            mode = patch_mode(counts)
            each = F.cross_entropy(
                logits.flatten(0, 1), mode.flatten(), ignore_index=IGNORE, reduction="none"
            )
            return each.view_as(mode)
        share = counts / counts.sum(2, keepdim=True).clamp(min=1)
        return -(share * logits.log_softmax(2)).sum(2)

    def count(self, batch: Batch, mask: Mask) -> Tensor:
        """Labelled patches."""
        return (batch.class_counts.sum(2) > 0).sum()

    def forward(self, tokens: Tokens, batch: Batch, model: MaskedAutoencoder) -> Sums:
        """Cross-entropy over all labelled patches, visible ones too."""
        counts = take_tokens(batch.class_counts, tokens.mask.order)
        labelled = counts.sum(2) > 0
        mode = patch_mode(counts)
        logits = self.predict(tokens).float()
        count = labelled.sum()
        right = (logits.detach().argmax(2) == mode) & labelled
        seen = tokens.mask.num_visible
        return {
            "esa_ce": (self.cross_entropy(logits, counts).sum(), count),
            "esa_acc": (right.sum(), count),
            "esa_acc_masked": (right[:, seen:].sum(), labelled[:, seen:].sum()),
            "esa_acc_visible": (right[:, :seen].sum(), labelled[:, :seen].sum()),
        }


def pixel_errors(
    predicted: Float[Tensor, "batch masked value"],
    target: Float[Tensor, "batch masked value"],
    valid: Bool[Tensor, "batch masked pixel"],
    beta: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " band"]]:
    """Sums over valid scalars: SmoothL1, which has a gradient, and the absolute error by band."""
    if eager_on_cpu(predicted):
        return _PixelErrors.apply(predicted, target, valid, beta)
    missing = ~valid[:, :, None]
    each = smooth_l1(predicted, target, beta).unflatten(2, (-1, valid.shape[2]))
    absolute = (predicted - target).detach().abs().unflatten(2, (-1, valid.shape[2]))
    return (
        each.masked_fill(missing, 0.0).sum(),
        absolute.masked_fill(missing, 0.0).sum((0, 1, 3)),
    )


class _PixelErrors(torch.autograd.Function):
    """``pixel_errors`` on a CPU: some chips at a time, so that they stay in its cache.

    With s = clamp(d / beta, -1, 1), the slope at an error d, SmoothL1 is s d - beta s^2 / 2.
    """

    @staticmethod
    def forward(
        ctx: Any, predicted: Tensor, target: Tensor, valid: Tensor, beta: float
    ) -> tuple[Tensor, Tensor]:
        slope, num_bands = torch.empty_like(predicted), predicted.shape[2] // valid.shape[2]
        total, absolute = torch.zeros(()), torch.zeros(num_bands)
        parts = (each.split(CHIPS_IN_CACHE) for each in (predicted, target, valid, slope))
        for guess, truth, known, out in zip(*parts, strict=True):
            error = (guess - truth).unflatten(2, (num_bands, -1))
            if not known_all(known):
                error.masked_fill_(~known[:, :, None], 0.0)
            torch.div(error, beta, out=out.unflatten(2, (num_bands, -1))).clamp_(-1, 1)
            flat = out.flatten()
            total += (flat * error.flatten()).sum() - beta / 2 * (flat * flat).sum()
            absolute += error.abs_().sum((0, 1, 3))
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(absolute)
        return total, absolute

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope.mul_(grads[0]), None, None, None  # a second pass would be refused


def smooth_l1(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """SmoothL1 of every element: 0.5 d^2 / beta below beta, |d| - 0.5 beta above."""
    return F.smooth_l1_loss(predicted, target, reduction="none", beta=beta)


def patch_mode(counts: Int64[Tensor, "batch token cls"]) -> Int64[Tensor, "batch token"]:
    """The most frequent class, ties to the lowest id; ``IGNORE`` where nothing is labelled."""
    most, mode = counts.max(2)
    first = (counts == most[..., None]).to(torch.uint8).argmax(2)
    return torch.where(most > 0, first, torch.full_like(mode, IGNORE))


HEADS: dict[str, type[Head]] = {"pixels": PixelHead, "landcover": LandCoverHead}


def build_heads(heads: Mapping[str, HeadConfig], model: MaskedAutoencoder) -> nn.ModuleDict:
    """The configured heads.

    Raises:
        ConfigError: a head or one of its options does not exist, or an option does not fit.
    """
    built: dict[str, nn.Module] = {}
    for name, config in heads.items():
        if name not in HEADS:
            raise ConfigError(
                f"heads.{shortened(name)} is not a head; known are {', '.join(HEADS)}"
            )
        options = checked_options(HEADS[name], config.options, f"heads.{name}.options")
        built[name] = HEADS[name](model, **options).apply(model.init_weights)
    return nn.ModuleDict(built)


def checked_options(head: type[Head], options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A head's options as its class takes them, defaults left out.

    Raises:
        ConfigError: one is unknown, or is not of its type or within its bounds.
    """
    known = list(inspect.signature(head).parameters)[1:]  # the first is the model
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(
            f"{where}: {shortened(repr(unknown[0]))} is no option; known are {', '.join(known)}"
        )
    hints = get_type_hints(head.__init__, include_extras=True)
    taken: Any = {name: (hints.get(name, Any), ...) for name in options}
    kind = create_model(f"{head.__name__}Options", __base__=Record, **taken)
    remedy = "see docs/reference/configuration.md"
    return checked(kind, options, where, ConfigError, remedy).model_dump()
