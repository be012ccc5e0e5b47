"""Panels: a picture of a chip or of a region with lines over it; a template's macro draws them.

Token grids are [token_row, token_col]; masked means hidden from the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from bharateo.landcover import BHARATEO_CLASSES, IGNORE, LandCoverClass
from bharateo.pixels.picture import hatch
from bharateo.report import render
from bharateo.sensor import Sensor

if TYPE_CHECKING:
    from bharateo.evaluation.reconstruction import Example, Made, MaskedChip


@dataclass(frozen=True)
class Outline:
    """A rectangle over a region's map, in the region's pixels, drawn as its split is."""

    row: int
    col: int
    height: int
    width: int
    split: str


@dataclass(frozen=True)
class Panel:
    """A drawing with the words under it; ``alt`` says in the drawing's stead what it shows.

    ``height`` and ``width`` are those of its units, pixels or patches. A ``picture``, a data URI,
    fills it; over it lie ``paths`` (style, fill, SVG path data) and ``outlines``.
    """

    label: str
    alt: str
    height: int
    width: int
    picture: str = ""
    paths: Sequence[tuple[str, str, str]] = ()
    outlines: Sequence[Outline] = ()
    style: str = "panel"


Classes = Sequence[LandCoverClass]
"""By id: those of a layer, or the eight as they are called on a dataset's ground."""


def class_name(class_id: int, classes: Classes = BHARATEO_CLASSES) -> str:
    """A class as written for readers, e.g. ``built up``."""
    return next(each.name for each in classes if each.id == class_id).replace("_", " ")


def css(each: LandCoverClass) -> str:
    """A class's colour in CSS."""
    return "#{:02x}{:02x}{:02x}".format(*each.colour)


def shares(
    class_ids: UInt8[np.ndarray, "*shape"],
    most: int = 3,
    classes: Classes = BHARATEO_CLASSES,
) -> str:
    """The commonest classes in words, e.g. ``62 % built up, 20 % tree``."""
    names = {each.id: class_name(each.id, classes) for each in classes}
    counts = np.bincount(class_ids.reshape(-1), minlength=256)[:IGNORE]
    if not counts.any():
        return "no labelled pixel"
    top = [int(i) for i in np.argsort(-counts, kind="stable")[:most] if counts[i]]
    return ", ".join(f"{100 * counts[i] / counts.sum():.0f} % {names[i]}" for i in top)


def picture(
    rgb: UInt8[np.ndarray, "row col rgb"],
    label: str,
    alt: str,
    paths: Sequence[tuple[str, str, str]] = (),
) -> Panel:
    """A picture at its own pixels, with paths in pixel coordinates over it."""
    return Panel(label, alt, rgb.shape[0], rgb.shape[1], render.png_uri(rgb), paths)


def token_lines(rows: int, cols: int, patch_px: int) -> tuple[str, str, str]:
    """The edges of the patches, as a path over a chip."""
    height, width = rows * patch_px, cols * patch_px
    across = "".join(f"M0 {row * patch_px}H{width}" for row in range(1, rows))
    down = "".join(f"M{col * patch_px} 0V{height}" for col in range(1, cols))
    return "lines", "", across + down


def class_grid(
    class_ids: UInt8[np.ndarray, "token_row token_col"],
    label: str,
    alt: str,
    hidden: Bool[np.ndarray, "token_row token_col"] | None = None,
    wrong: Bool[np.ndarray, "token_row token_col"] | None = None,
    classes: Classes = BHARATEO_CLASSES,
) -> Panel:
    """Patch classes as coloured squares; visible ones small, wrong ones crossed out."""
    paths, colours = [], {each.id: css(each) for each in classes}
    for class_id in np.unique(class_ids):
        squares = ""
        for row, col in zip(*np.nonzero(class_ids == class_id), strict=True):
            margin = 0.03 if hidden is None or hidden[row, col] else 0.31
            side = 1 - 2 * margin
            squares += f"M{col + margin:g} {row + margin:g}h{side:g}v{side:g}h-{side:g}z"
        fill = "url(#no-label)" if class_id == IGNORE else colours[int(class_id)]
        paths.append(("", fill, squares))
    if wrong is not None and wrong.any():
        crosses = "".join(
            f"M{col + 0.28} {row + 0.28}l.44 .44m0 -.44l-.44 .44"
            for row, col in zip(*np.nonzero(wrong), strict=True)
        )
        paths += [("cross-halo", "", crosses), ("cross", "", crosses)]
    rows, cols = class_ids.shape
    return Panel(label, alt, rows, cols, paths=paths, style="panel tokens")


# Chips and their tokens


def label_panels(
    example: MaskedChip, sensor: Sensor, classes: Classes = BHARATEO_CLASSES
) -> list[Panel]:
    """A chip in every composite, its land cover and its patch labels."""
    rows, cols = example.hidden.shape
    lines = token_lines(rows, cols, example.image.shape[1] // rows)
    return [
        *(
            picture(
                render.composite_rgb(example.image, sensor, example.valid, composite),
                "image" if len(sensor.composites) == 1 else composite,
                f"Chip {example.chip}, {composite}",
            )
            for composite in sensor.composites
        ),
        picture(
            render.class_rgb(example.landcover),
            "land cover",
            f"Land cover of chip {example.chip}: {shares(example.landcover, classes=classes)}",
            [lines],
        ),
        class_grid(
            example.true_class,
            "patch labels",
            f"Most frequent class of its {rows} by {cols} patches: "
            + shares(example.true_class, classes=classes),
        ),
    ]


def token_panels(
    example: MaskedChip, sensor: Sensor, std: Float[np.ndarray, " band"]
) -> list[Panel]:
    """One chip as a model meets it: pixels, mean colour, variance and mask of its tokens."""
    rows, cols = example.hidden.shape
    patch_px = example.image.shape[1] // rows
    rgb = render.composite_rgb(example.image, sensor, example.valid)
    variance = token_variance(example, std)
    top = float(variance.max())
    return [
        picture(
            rgb,
            "pixels",
            f"Chip {example.chip} cut into {rows} by {cols} patches",
            [token_lines(rows, cols, patch_px)],
        ),
        picture(
            render.upscale(token_mean_rgb(example, sensor), patch_px),
            "mean colour of each token",
            f"Mean colour of each of the {rows * cols} tokens",
        ),
        picture(
            render.upscale(render.ramp_rgb(variance, top), patch_px),
            f"variance in each token, 0 to {top:.2g}",
            f"Variance inside each token: from {variance.min():.2g} to {top:.2g}, "
            f"median {np.median(variance):.2g}",
        ),
        _masked(example, rgb, "what the model is given"),
    ]


def _masked(
    example: MaskedChip, rgb: UInt8[np.ndarray, "row col rgb"], label: str, note: str = ""
) -> Panel:
    """The picture of a chip with its hidden patches in grey."""
    alt = f"{int(example.hidden.sum())} of {example.hidden.size} patches hidden in grey{note}"
    grey = render.paint(rgb, hidden_pixels(example))
    return picture(grey, label, f"The same chip with {alt}")


def token_mean_rgb(
    example: MaskedChip, sensor: Sensor
) -> UInt8[np.ndarray, "token_row token_col rgb"]:
    """The colour of every patch's mean over valid pixels; hatch grey where none is valid."""
    patches, valid = _patches(example)
    count = valid.sum(-1)
    mean = (patches * valid[:, :, None]).sum(-1) / np.maximum(count, 1)[..., None]
    rgb = render.composite_rgb(np.moveaxis(mean, -1, 0), sensor)
    return render.paint(rgb, count == 0, (161, 161, 158))


def token_variance(
    example: MaskedChip, std: Float[np.ndarray, " band"]
) -> Float[np.ndarray, "token_row token_col"]:
    """Variance of every patch's valid pixels around its mean, in units of ``std``, band mean."""
    patches, valid = _patches(example)
    scaled = patches / std[:, None]
    weight = valid[:, :, None] / np.maximum(valid.sum(-1), 1)[..., None, None]
    mean = (scaled * weight).sum(-1, keepdims=True)
    variance: np.ndarray = ((scaled - mean) ** 2 * weight).sum(-1).mean(-1)
    return variance


def _patches(example: MaskedChip) -> tuple[np.ndarray, np.ndarray]:
    """Values [token_row, token_col, band, pixel], zero where invalid, and their validity."""
    rows, cols = example.hidden.shape
    bands, height, width = example.image.shape
    cut = np.where(example.valid, np.nan_to_num(example.image), 0).astype(np.float64)
    grid = cut.reshape(bands, rows, height // rows, cols, width // cols)
    valid = example.valid.reshape(rows, height // rows, cols, width // cols)
    return (
        grid.transpose(1, 3, 0, 2, 4).reshape(rows, cols, bands, -1),
        valid.transpose(0, 2, 1, 3).reshape(rows, cols, -1),
    )


# Reconstructions


def hidden_pixels(example: MaskedChip) -> Bool[np.ndarray, "row col"]:
    """The masked tokens at pixel size."""
    return render.upscale(example.hidden, example.image.shape[1] // example.hidden.shape[0])


def absolute_error(
    example: MaskedChip, made: Float32[np.ndarray, "band row col"]
) -> Float[np.ndarray, "row col"]:
    """Band-mean absolute error in physical units; NaN where visible or invalid."""
    error = np.abs(made.astype(np.float64) - example.image).mean(0)
    return np.where(hidden_pixels(example) & example.valid, error, np.nan)


def error_top(made: Sequence[Float[np.ndarray, "row col"]]) -> float:
    """A round end for the ramp that all error maps of a page share: their 99th percentile."""
    values = np.concatenate([error[np.isfinite(error)] for error in made] or [np.zeros(0)])
    if not values.size or values.max() == 0:
        return 1.0
    return float(f"{np.percentile(values, 99):.1g}") or float(values.max())


def reconstruction_panels(
    example: Example, sensor: Sensor, composite: str, classes: Classes = BHARATEO_CLASSES
) -> list[Panel]:
    """Target, masked input, reconstruction and nearest copy of one chip, in one composite."""
    rgb = render.composite_rgb(example.image, sensor, example.valid, composite)
    note = "" if len(sensor.composites) == 1 else f" ({composite})"
    cover = shares(example.landcover, classes=classes)
    found = [
        picture(rgb, "target", f"Chip {example.chip}: {cover}{note}"),
        _masked(example, rgb, "masked input", note),
    ]
    for made, name in (
        (example.reconstruction, "reconstruction"),
        (example.nearest, "nearest-visible copy"),
    ):
        if made is None:
            continue
        mae = _mean(absolute_error(example, made))
        alt = f"The {name}: mean absolute error {mae} in the masked patches{note}"
        rgb = render.composite_rgb(made, sensor, example.valid, composite)
        found.append(picture(rgb, name, alt))
    return found


def error_panels(example: Example, top: float) -> list[Panel]:
    """Absolute error of the reconstruction and of the copy over all bands, ``top`` brightest."""
    found = []
    for made, name in ((example.reconstruction, "error"), (example.nearest, "copy's error")):
        if made is None:
            continue
        error = absolute_error(example, made)
        judged, mean = np.isfinite(error), _mean(error)
        worst = f"largest {error[judged].max():.3g}" if judged.any() else "no valid pixel"
        alt = f"Absolute {name}, inside the masked patches: mean {mean}, {worst}"
        grey = render.paint(render.ramp_rgb(error, top), ~judged)
        found.append(picture(grey, f"{name}, mean {mean}", alt))
    return found


def _mean(error: Float[np.ndarray, "row col"]) -> str:
    finite = error[np.isfinite(error)]
    return f"{finite.mean():.3g}" if finite.size else "not measurable"


def class_panels(example: Example, classes: Classes = BHARATEO_CLASSES) -> list[Panel]:
    """True, predicted and copied patch classes under one mask; none where a run tells none."""
    found = (made for made in example.layers if made.layer.classes == BHARATEO_CLASSES)
    return [panel for made in found for panel in _panels_of_classes(example, made, classes)]


def layer_panels(example: Example, made: Made) -> list[Panel]:
    """A layer of a head on one chip in truth, as predicted, and copied: classes under one mask with
    wrong masked ones crossed out, or values on a ramp.
    """
    if made.layer.classes:
        return _panels_of_classes(example, made, made.layer.classes)
    low, high = made.layer.range or (np.nanmin(made.true), np.nanmax(made.true))
    judged = render.upscale(example.hidden, len(made.true) // len(example.hidden))
    found = []
    for values, name in (
        (made.true, "true"),
        (made.predicted, "predicted"),
        (made.nearest, "copy"),
    ):
        off = np.where(judged, np.abs(values - made.true), np.nan)
        mean = "" if name == "true" else f", off by {_mean(off)}"
        rgb = render.ramp_rgb(values - low, high - low)
        rgb = render.upscale(hatch(rgb, np.isnan(values)), example.image.shape[1] // len(values))
        alt = f"{made.layer.name} of chip {example.chip}, {name}"
        alt += f"{mean} on average in the masked patches" if mean else ""
        found.append(picture(rgb, f"{name}{mean}", alt))
    return found


def _panels_of_classes(example: Example, made: Made, classes: Classes) -> list[Panel]:
    judged = example.hidden & (made.true != IGNORE)
    alt = f"True patch classes of chip {example.chip}: {shares(made.true, classes=classes)}"
    found = [class_grid(made.true, "true", alt, example.hidden, classes=classes)]
    for ids, name in ((made.predicted, "predicted"), (made.nearest, "copy")):
        wrong = judged & (ids != made.true)
        score = f"{int(judged.sum() - wrong.sum())} of {int(judged.sum())}"
        alt = f"Patch classes, {name}: {score} masked patches right"
        label = f"{name}, {score} right"
        found.append(class_grid(ids, label, alt, example.hidden, wrong, classes))
    return found


def class_legend(classes: Classes) -> list[tuple[str, str]]:
    """Names and colours of classes."""
    return [(class_name(each.id, classes), css(each)) for each in classes]
