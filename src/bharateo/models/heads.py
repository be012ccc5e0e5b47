"""Pretext tasks: each head owns its target, prediction, loss and metrics.

A new task is one class here, one line in ``HEADS`` and one entry under ``heads`` in the YAML.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    cast,
    get_type_hints,
    runtime_checkable,
)

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import Field, create_model
from torch import Tensor, nn
from torch.nn import functional as F

from bharateo.artefacts import Record, checked, shortened
from bharateo.config import HeadConfig
from bharateo.errors import ConfigError
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, NUM_CLASSES, LandCoverClass
from bharateo.models.embedding import Energies
from bharateo.models.kernels import pixel_errors, take_patches
from bharateo.models.mae import MaskedAutoencoder, Tokens
from bharateo.models.palette import Palette
from bharateo.models.patches import Mask, patchify, pull_push, take_tokens, unpatchify
from bharateo.models.targets import TARGETS
from bharateo.results import Metric

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
    chip: Int64[Tensor, " batch"]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; where it is pinned, nobody waits for that."""
        layers = (getattr(self, field.name) for field in fields(self))
        return Batch(*(each.to(device, non_blocking=True) for each in layers))

    def pinned(self) -> Batch:
        """The batch in memory that a GPU reads by itself."""
        return Batch(*(getattr(self, field.name).pin_memory() for field in fields(self)))


@dataclass(frozen=True)
class Layer:
    """What a head says of the ground, for a map: so many of its predicted values of every token.

    Of ``classes`` they are the logits; otherwise one value a patch, or one for each of its pixels,
    row-major, in ``unit``. ``range`` is what values may be, where that is known.
    """

    name: str
    num_values: int = 1
    unit: str = ""
    classes: tuple[LandCoverClass, ...] = ()
    range: tuple[float, float] | None = None


class Head(nn.Module):
    """A pretext task on the decoded tokens: what is to be predicted, how, and how it is judged.

    ``target``, ``predict`` and ``measure`` are what a task must say; training, evaluation, its
    baselines, report and map come from these. ``loss_metric`` names the loss among ``metrics``.

    What its class takes beside the model are its options; their types and bounds stand there, and
    ``build_heads`` holds a configuration to them.
    """

    loss_metric: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    training_metrics: ClassVar[tuple[Metric, ...]] = ()
    """Losses that ``forward`` alone gives, and ``measure`` does not; see ``losses``."""
    classes: ClassVar[tuple[LandCoverClass, ...]] = ()
    """Those that it tells apart, if it does; ``confusion`` counts them."""
    confusion_key: ClassVar[str] = ""
    """The key of the confusion matrix in files, of a head that tells classes apart."""
    learns_of_visible: ClassVar[bool] = False
    """Whether visible patches are targets as well as hidden ones, so that none need be hidden."""
    rebuilds_image: ClassVar[bool] = False
    """Whether what it predicts are the patches of the image, in model units."""
    frozen: ClassVar[bool] = False
    """Whether its target is a choice of the experiment, refused if nothing can be learned of it."""

    def fit(
        self,
        patches: Float[Tensor, "batch token value"],
        pixels: Bool[Tensor, "batch token pixel"],
        seed: int,
    ) -> None:
        """Measure what its target needs, once, of training patches in model units."""

    def begin(self) -> None:
        """Change the weights that it is given to start from."""

    def layers(self) -> tuple[Layer, ...]:
        """What maps can show of it: ``predict`` gives their values, one layer after the other."""
        return ()

    def target(self, batch: Batch, model: MaskedAutoencoder) -> Shaped[Tensor, "batch token value"]:
        """What is to be predicted of every token, row-major; NaN where nothing is known.

        A baseline's prediction is the target of a batch whose hidden tokens it has filled in.
        """
        raise NotImplementedError

    def predict(
        self, decoded: Float[Tensor, "batch token decoded"]
    ) -> Float[Tensor, "batch token value"]:
        """What it says of decoded tokens, each by itself, in whatever order they come."""
        raise NotImplementedError

    def answer(self, tokens: Tokens) -> Float[Tensor, "batch token value"]:
        """What it says of all tokens, in the mask's order."""
        return self.predict(tokens.values)

    def measure(
        self,
        predicted: Float[Tensor, "batch token value"],
        target: Shaped[Tensor, "batch token value"],
        hidden: Bool[Tensor, "batch token"],
        model: MaskedAutoencoder,
    ) -> Sums:
        """Metric -> (sum, count) of every chip (batch,), predictions against targets.

        The counts depend on the target alone. Tokens come in any order, ``hidden`` in the same.
        """
        raise NotImplementedError

    def confusion(
        self,
        predicted: Float[Tensor, "batch token value"],
        target: Shaped[Tensor, "batch token value"],
        hidden: Bool[Tensor, "batch token"],
    ) -> Int64[Tensor, "batch true predicted"]:
        """Counts of true and predicted classes of every chip's hidden tokens."""
        raise NotImplementedError

    @classmethod
    def losses(cls, options: Mapping[str, Any]) -> dict[str, float]:
        """Metric -> its weight in the head's loss: of one with these options in a configuration.

        ``loss_metric`` is the first; others, which ``forward`` alone gives, are of the training.
        """
        return {cls.loss_metric: 1.0}

    def counts(self, batch: Batch, mask: Mask, model: MaskedAutoencoder) -> list[Tensor]:
        """What each of its losses is divided by; see ``count``."""
        return [self.count(batch, mask, model)]

    def count(self, batch: Batch, mask: Mask, model: MaskedAutoencoder) -> Tensor:
        """How many targets of the task a batch holds: the loss is the sum over them by this.

        Known before the model has run, so that the parts of a batch, on several ranks or one
        after the other, are divided by the count of the whole.
        """
        target = self.target(batch, model)
        perfect = self.measure(target.float(), target, mask.hidden, model)
        return perfect[self.loss_metric][1].sum()

    def forward(self, tokens: Tokens, batch: Batch, model: MaskedAutoencoder) -> Sums:
        """Metric -> (sum, count) of the batch; the loss alone carries a gradient."""
        mask = tokens.mask
        place = torch.arange(mask.order.shape[1], device=mask.order.device)
        sums = self.measure(
            self.answer(tokens).float(),
            take_tokens(self.target(batch, model), mask.order),
            (place >= mask.num_visible).expand_as(mask.order),
            model,
        )
        totals = {name: total.sum() for name, (total, _) in sums.items()}
        return {
            name: (total if name == self.loss_metric else total.detach(), sums[name][1].sum())
            for name, total in totals.items()
        }


class LinearHead(Head):
    """What it says of a token is a linear map of it: LayerNorm, Linear."""

    def __init__(self, model: MaskedAutoencoder, num_values: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(model.decoded_width)
        self.linear = nn.Linear(model.decoded_width, num_values)

    def predict(
        self, decoded: Float[Tensor, "batch token decoded"]
    ) -> Float[Tensor, "batch token value"]:
        """As many values as the target has: patches in model units, features, class logits."""
        predicted: Tensor = self.linear(self.norm(decoded))
        return predicted


class PixelHead(LinearHead):
    """Rebuild the pixels of the masked patches: LayerNorm, Linear, SmoothL1 in model units.

    With ``target`` "correction" it says what is to be added to ``pull_push``, a smooth fill from
    the visible patches, and starts where that ends; "pixels" are said as they are. With "palette",
    for pixels in the colours of the classes, it says how likely each colour is and learns by
    cross-entropy, ``palette_ce``; what it rebuilds is their median, see ``Palette``.

    Metrics: ``rec_smooth_l1`` (model units) and ``masked_mae`` (physical units), over valid
    scalars of masked patches.
    """

    loss_metric = "rec_smooth_l1"
    metrics = (
        Metric(
            name="rec_smooth_l1",
            title="SmoothL1",
            better="lower",
            meaning="SmoothL1 over pixels and bands of masked patches, in model units",
            shown=False,
        ),
        Metric(
            name="masked_mae",
            title="Masked MAE",
            better="lower",
            meaning="mean absolute error over pixels and bands of masked patches, in the unit of "
            "the input",
            phrase="masked MAE",
            subject="pixels",
            sentence="rebuilds hidden pixels with a mean absolute error of {}, against {} for the "
            "copy",
            against="ratio",
        ),
    )
    training_metrics = (
        Metric(
            name="palette_ce",
            title="cross-entropy of colours",
            better="lower",
            meaning="cross-entropy of the colour that a pixel of a masked patch has",
            baselines="none",
            shown=False,
        ),
    )
    rebuilds_image = True

    def __init__(
        self,
        model: MaskedAutoencoder,
        beta: Annotated[float, Field(gt=0, le=1e6)] = 0.1,
        target: Literal["pixels", "correction", "palette"] = "pixels",
    ) -> None:
        palette, num_layers = None, model.num_bands
        if target == "palette":
            palette = Palette(model.normalise.model_units, model.num_bands)
            num_layers = palette.num_colours
        super().__init__(model, num_layers * model.config.patch_px**2)
        self.beta, self.patch_px, self.kind = beta, model.config.patch_px, target
        self.palette = palette

    @classmethod
    def losses(cls, options: Mapping[str, Any]) -> dict[str, float]:
        """SmoothL1; of a palette the cross-entropy of its colours in its place."""
        palette = options.get("target") == "palette"
        return {"palette_ce": 1.0} if palette else super().losses(options)

    def fit(
        self,
        patches: Float[Tensor, "batch token value"],
        pixels: Bool[Tensor, "batch token pixel"],
        seed: int,
    ) -> None:
        """Nothing, but to refuse a palette for pixels in other colours.

        Raises:
            ConfigError: some are.
        """
        if self.palette:
            self.palette.check(patches, pixels)

    def begin(self) -> None:
        """No correction."""
        if self.kind == "correction":
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def target(self, batch: Batch, model: MaskedAutoencoder) -> Float[Tensor, "batch token value"]:
        """Patches in model units."""
        patches, valid = model.every_patch(batch.image, batch.valid)
        return patches.masked_fill(~valid.repeat(1, 1, model.num_bands), torch.nan)

    def answer(self, tokens: Tokens) -> Float[Tensor, "batch token value"]:
        """Patches in model units; of a correction, with what it corrects."""
        predicted = self.predict(tokens.values)
        if self.palette:
            return self.palette.median(predicted)
        return predicted + self.fill(tokens) if self.kind == "correction" else predicted

    def fill(self, tokens: Tokens) -> Float[Tensor, "batch token value"]:
        """All patches, the hidden ones filled by ``pull_push`` from the visible ones."""
        mask, patches, pixels = tokens.mask, tokens.patches, tokens.pixels
        hidden = torch.arange(mask.order.shape[1], device=mask.order.device) >= mask.num_visible
        known = mask.restore(pixels & ~hidden[:, None])
        grid = math.isqrt(len(hidden))
        weight = unpatchify(known.to(patches.dtype), self.patch_px, grid)
        image = unpatchify(mask.restore(patches), self.patch_px, grid)
        filled = pull_push(image, weight, image.new_zeros(image.shape[1]))
        return take_tokens(patchify(filled, self.patch_px), mask.order)

    def measure(
        self,
        predicted: Float[Tensor, "batch token value"],
        target: Float[Tensor, "batch token value"],
        hidden: Bool[Tensor, "batch token"],
        model: MaskedAutoencoder,
    ) -> Sums:
        """SmoothL1 and absolute error over valid scalars of hidden patches."""
        known = target.isfinite() & hidden[:, :, None]
        aim = torch.where(known, target, predicted)
        smooth = F.smooth_l1_loss(predicted, aim, reduction="none", beta=self.beta)
        absolute = (predicted - aim).detach().abs().unflatten(2, (model.num_bands, -1))
        mae = (absolute * model.normalise.std[:, None]).sum((1, 2, 3))
        count = known.sum((1, 2))
        return {"rec_smooth_l1": (smooth.sum((1, 2)), count), "masked_mae": (mae, count)}

    def count(self, batch: Batch, mask: Mask, model: MaskedAutoencoder) -> Tensor:
        """Valid scalars of masked patches."""
        valid = take_patches(batch.valid[:, None], self.patch_px, mask.masked)
        return valid.sum() * batch.image.shape[1]

    def counts(self, batch: Batch, mask: Mask, model: MaskedAutoencoder) -> list[Tensor]:
        """Valid scalars of masked patches; of a palette, whose colours are whole, their pixels."""
        scalars = self.count(batch, mask, model)
        return [scalars // model.num_bands if self.palette else scalars]

    def forward(self, tokens: Tokens, batch: Batch, model: MaskedAutoencoder) -> Sums:
        """As of every head, and fast: masked patches alone are predicted, the model's own patches
        are the target, and a kernel takes the errors.
        """
        masked = slice(tokens.mask.num_visible, None)
        target, valid = tokens.patches[:, masked], tokens.pixels[:, masked]
        predicted = self.predict(tokens.masked).float()
        sums: Sums = {}
        if self.palette:
            entropy, predicted = self.palette.errors(predicted, target, valid)
            sums["palette_ce"] = entropy, valid.sum()
        if self.kind == "correction":
            predicted = predicted + self.fill(tokens)[:, masked]
        total, absolute = pixel_errors(predicted, target, valid, self.beta)
        mae = (absolute * model.normalise.std).sum()
        count = valid.sum() * model.num_bands
        return sums | {"rec_smooth_l1": (total, count), "masked_mae": (mae, count)}


class FeatureHead(LinearHead):
    """Predict frozen features of the masked patches: LayerNorm, Linear, SmoothL1.

    ``target`` names them (``TARGETS``): "energies", how strongly a patch responds to whitened
    squares; "normalised", its pixels whatever the light; "gradients", histograms of them and
    differences of bands; "projection" in random directions, "whitened" or not. All are standardised
    as they vary over training patches. Metrics, over masked patches with a valid pixel:
    ``feature_smooth_l1`` and ``feature_mse``, which is about 1 for always saying the mean.
    """

    loss_metric = "feature_smooth_l1"
    metrics = (
        Metric(
            name="feature_smooth_l1",
            title="SmoothL1 of features",
            better="lower",
            meaning="SmoothL1 over the standardised features of masked patches",
            shown=False,
        ),
        Metric(
            name="feature_mse",
            title="Features, squared error",
            better="lower",
            meaning="mean squared error of the standardised features of masked patches: about 1 "
            "for saying the mean of all patches",
            phrase="feature error",
            subject="features",
            sentence="predicts hidden patches' features with a squared error of {}, against {} for "
            "the copy",
            against="ratio",
        ),
    )
    frozen = True

    def __init__(
        self,
        model: MaskedAutoencoder,
        target: Literal["energies", "normalised", "gradients", "projection", "whitened"] = (
            "energies"
        ),
    ) -> None:
        size = model.num_bands, model.config.patch_px
        features = (
            Energies(*size, model.config.num_filters)
            if target == "energies"
            else TARGETS[target](*size)
        )
        super().__init__(model, features.size)
        self.features = features

    def fit(
        self,
        patches: Float[Tensor, "batch token value"],
        pixels: Bool[Tensor, "batch token pixel"],
        seed: int,
    ) -> None:
        """Draw and standardise the features."""
        self.features.fit(patches, pixels, seed)

    @torch.no_grad()
    def target(self, batch: Batch, model: MaskedAutoencoder) -> Float[Tensor, "batch token value"]:
        """The features of every patch, NaN of one without a valid pixel."""
        patches, valid = model.every_patch(batch.image, batch.valid)
        return self.features(patches, valid).masked_fill(~valid.any(2, keepdim=True), torch.nan)

    def measure(
        self,
        predicted: Float[Tensor, "batch token value"],
        target: Float[Tensor, "batch token value"],
        hidden: Bool[Tensor, "batch token"],
        model: MaskedAutoencoder,
    ) -> Sums:
        """SmoothL1 and squared error over the features of hidden patches."""
        known = target.isfinite() & hidden[:, :, None]
        aim = torch.where(known, target, predicted)
        smooth = F.smooth_l1_loss(predicted, aim, reduction="none").sum((1, 2))
        squared = (predicted - aim).detach().square().sum((1, 2))
        count = known.sum((1, 2))
        return {"feature_smooth_l1": (smooth, count), "feature_mse": (squared, count)}

    def count(self, batch: Batch, mask: Mask, model: MaskedAutoencoder) -> Tensor:
        """Features of masked patches with a valid pixel."""
        valid = take_patches(batch.valid[:, None], model.config.patch_px, mask.masked)
        return valid.any(2).sum() * self.features.size

    def forward(self, tokens: Tokens, batch: Batch, model: MaskedAutoencoder) -> Sums:
        """As of every head, and fast: of the model's own masked patches alone."""
        masked = slice(tokens.mask.num_visible, None)
        valid = tokens.pixels[:, masked]
        with torch.no_grad():
            target = self.features(tokens.patches[:, masked], valid)
        target = target.masked_fill(~valid.any(2, keepdim=True), torch.nan)
        predicted = self.predict(tokens.masked).float()
        found = self.measure(predicted, target, target.new_ones(target.shape[:2]) > 0, model)
        return {name: (total.sum(), count.sum()) for name, (total, count) in found.items()}


class LandCoverHead(LinearHead):
    """Predict every patch's land cover: LayerNorm, Linear, cross-entropy over labelled patches.

    ``target`` "mode" is the most frequent class (ties to the lowest id), "fraction" the share of
    every class among the labelled pixels. Metrics: ``esa_ce`` over all labelled patches;
    ``esa_acc`` (of the most frequent class) over all, masked and visible ones, never mixed.

    With ``encoder`` above 0, the encoder's own vectors of visible patches are asked as well, by a
    LayerNorm and a Linear that training alone has a use for: their cross-entropy
    ``esa_ce_encoder``, over labelled visible patches, times ``encoder`` is added to the loss. All
    that is predicted, mapped and scored comes from the decoded tokens as before.
    """

    loss_metric = "esa_ce"
    metrics = (
        Metric(
            name="esa_ce",
            title="cross-entropy",
            better="lower",
            meaning="cross-entropy of the patch class, masked and visible patches together",
            baselines="none",
            shown=False,
        ),
        Metric(
            name="esa_acc",
            title="Accuracy, all",
            better="higher",
            unit="%",
            meaning="masked and visible together, the number usually quoted; it flatters",
            baselines="told",
        ),
        Metric(
            name="esa_acc_masked",
            title="Accuracy, masked",
            better="higher",
            unit="%",
            meaning="masked patches whose most frequent class is named right",
            phrase="masked class accuracy",
            subject="patch classes",
            sentence="names the land cover of {} of the hidden patches, against {} for copying the "
            "nearest visible patch",
            against="gain",
        ),
        Metric(
            name="esa_acc_visible",
            title="Accuracy, visible",
            better="higher",
            unit="%",
            meaning="the same for patches the model was shown: reading, not inference",
            baselines="told",
        ),
        Metric(
            name="esa_balanced_acc_masked",
            title="Balanced accuracy, masked",
            better="higher",
            unit="%",
            meaning="the same for each class by itself, then averaged over the classes that occur",
            mean_over_classes="balanced_accuracy",
        ),
        Metric(
            name="esa_macro_f1_masked",
            title="Macro F1, masked",
            better="higher",
            unit="%",
            meaning="harmonic mean of precision and recall of each class, averaged over the "
            "classes that occur",
            mean_over_classes="macro_f1",
        ),
    )
    training_metrics = (
        Metric(
            name="esa_ce_encoder",
            title="cross-entropy, encoder",
            better="lower",
            meaning="cross-entropy of visible patches' classes, as the encoder's vectors tell them",
            baselines="none",
            shown=False,
        ),
    )
    classes = BHARATEO_CLASSES
    confusion_key = "confusion_masked"
    learns_of_visible = True

    def __init__(
        self,
        model: MaskedAutoencoder,
        target: Literal["mode", "fraction"] = "fraction",
        encoder: Annotated[float, Field(ge=0, le=1e6)] = 0.0,
    ) -> None:
        super().__init__(model, NUM_CLASSES)
        self.kind = target
        self.encoded = None
        if encoder:
            width = model.config.width
            self.encoded = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, NUM_CLASSES))

    @classmethod
    def losses(cls, options: Mapping[str, Any]) -> dict[str, float]:
        """Cross-entropy of decoded tokens, and of the encoder's where that is asked for."""
        encoder = options.get("encoder")
        return super().losses(options) | ({"esa_ce_encoder": float(encoder)} if encoder else {})

    def layers(self) -> tuple[Layer, ...]:
        """The land-cover classes."""
        return (Layer("land cover", NUM_CLASSES, classes=self.classes),)

    def target(self, batch: Batch, model: MaskedAutoencoder) -> Int64[Tensor, "batch token cls"]:
        """Labelled pixels of every class, none where nothing is labelled."""
        return batch.class_counts

    def cross_entropy(
        self,
        logits: Float[Tensor, "batch token cls"],
        counts: Int64[Tensor, "batch token cls"],
    ) -> Float[Tensor, "batch token"]:
        """Cross-entropy of every token with its target, 0 where nothing is labelled."""
        if self.kind == "mode":
            mode = patch_mode(counts)
            each = F.cross_entropy(
                logits.flatten(0, 1), mode.flatten(), ignore_index=IGNORE, reduction="none"
            )
            return each.view_as(mode)
        share = counts / counts.sum(2, keepdim=True).clamp(min=1)
        return -(share * logits.log_softmax(2)).sum(2)

    def count(self, batch: Batch, mask: Mask, model: MaskedAutoencoder) -> Tensor:
        """Labelled patches."""
        return (batch.class_counts.sum(2) > 0).sum()

    def counts(self, batch: Batch, mask: Mask, model: MaskedAutoencoder) -> list[Tensor]:
        """Labelled patches, and those of them that are visible."""
        whole = super().counts(batch, mask, model)
        if self.encoded is None:
            return whole
        labelled = batch.class_counts.sum(2) > 0
        return [*whole, take_tokens(labelled, mask.visible).sum()]

    def forward(self, tokens: Tokens, batch: Batch, model: MaskedAutoencoder) -> Sums:
        """As of every head, and what the encoder's own vectors tell, if they are asked."""
        sums = super().forward(tokens, batch, model)
        if self.encoded is not None:
            target = take_tokens(batch.class_counts, tokens.mask.visible)
            each = self.cross_entropy(self.encoded(tokens.encoded).float(), target)
            sums["esa_ce_encoder"] = each.sum(), (target.sum(2) > 0).sum()
        return sums

    def measure(
        self,
        predicted: Float[Tensor, "batch token cls"],
        target: Int64[Tensor, "batch token cls"],
        hidden: Bool[Tensor, "batch token"],
        model: MaskedAutoencoder,
    ) -> Sums:
        """Cross-entropy over all labelled patches, visible ones too, and the accuracies."""
        labelled = target.sum(2) > 0
        right = (predicted.detach().argmax(2) == patch_mode(target)) & labelled
        count = labelled.sum(1)
        return {
            "esa_ce": (self.cross_entropy(predicted, target).sum(1), count),
            "esa_acc": (right.sum(1), count),
            "esa_acc_masked": ((right & hidden).sum(1), (labelled & hidden).sum(1)),
            "esa_acc_visible": ((right & ~hidden).sum(1), (labelled & ~hidden).sum(1)),
        }

    def confusion(
        self,
        predicted: Float[Tensor, "batch token cls"],
        target: Int64[Tensor, "batch token cls"],
        hidden: Bool[Tensor, "batch token"],
    ) -> Int64[Tensor, "batch true predicted"]:
        """Counts of (most frequent class, named class) of hidden patches that have a label."""
        true = patch_mode(target)
        cells = true * NUM_CLASSES + predicted.argmax(2)
        cells = torch.where((true != IGNORE) & hidden, cells, NUM_CLASSES**2)
        counts = cells.new_zeros(len(cells), NUM_CLASSES**2 + 1)
        counts.scatter_add_(1, cells, torch.ones_like(cells))
        return counts[:, :-1].unflatten(1, (NUM_CLASSES, NUM_CLASSES))


def patch_mode(counts: Int64[Tensor, "batch token cls"]) -> Int64[Tensor, "batch token"]:
    """The most frequent class, ties to the lowest id; ``IGNORE`` where nothing is labelled."""
    most, mode = counts.max(2)
    first = (counts == most[..., None]).to(torch.uint8).argmax(2)
    return torch.where(most > 0, first, torch.full_like(mode, IGNORE))


HEADS: dict[str, type[Head]] = {
    "pixels": PixelHead,
    "features": FeatureHead,
    "landcover": LandCoverHead,
}


@runtime_checkable
class Weighted(Protocol):
    """What is known of a head in a configuration and in a contract."""

    @property
    def weight(self) -> float:
        """Its weight in the loss."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What its class takes."""
        ...


def declared_metrics(heads: Mapping[str, Weighted]) -> list[Metric]:
    """The metrics of configured heads, as they stand in files of scores: those that training
    minimises with their weight.
    """
    found = []
    for name in (each for each in heads if each in HEADS):
        losses = HEADS[name].losses(heads[name].options)
        training = [each for each in HEADS[name].training_metrics if each.name in losses]
        for metric in (*HEADS[name].metrics, *training):
            weight = losses.get(metric.name)
            own = None if weight is None else weight * heads[name].weight
            found.append(metric.model_copy(update={"head": name, "weight": own}))
    return found


class Heads(nn.ModuleDict):
    """Heads of one model by name."""

    def by_name(self) -> dict[str, Head]:
        """Every head, in the order of the configuration."""
        return cast(dict[str, Head], dict(self.items()))

    @property
    def rebuilding(self) -> Head | None:
        """The one that rebuilds the image, if any does."""
        return next((head for head in self.by_name().values() if head.rebuilds_image), None)

    @property
    def land_cover(self) -> Head | None:
        """The one that tells the land-cover classes apart, if any does."""
        every = self.by_name().values()
        return next((head for head in every if head.classes == BHARATEO_CLASSES), None)


def build_heads(heads: Mapping[str, HeadConfig], model: MaskedAutoencoder) -> Heads:
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
        head = HEADS[name](model, **options)
        head.apply(model.init_weights)
        head.begin()
        built[name] = head
    return Heads(built)


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
