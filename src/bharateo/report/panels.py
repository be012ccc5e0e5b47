"""What the page shows: plates (a picture with lines drawn over it) and charts, as inline SVG.

Everything is drawn with the page's own colours (CSS variables), so it follows a dark page and a
printed one. Token grids are [token_row, token_col]; masked means hidden from the model.
"""

from __future__ import annotations

import io
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bharateo.landcover import BHARATEO_CLASSES, IGNORE, NUM_CLASSES
from bharateo.report import render
from bharateo.sensor import Sensor

if TYPE_CHECKING:
    from bharateo.evaluation.reconstruction import Chip, Example


@dataclass(frozen=True)
class Plate:
    """A drawing with the words under it; ``alt`` says in the drawing's stead what it shows."""

    svg: Markup
    label: str
    alt: str


def class_name(class_id: int) -> str:
    """A class as written for readers, e.g. ``built up``."""
    return BHARATEO_CLASSES[class_id].name.replace("_", " ")


def class_css(class_id: int) -> str:
    """A class's colour in CSS."""
    return "#{:02x}{:02x}{:02x}".format(*BHARATEO_CLASSES[class_id].colour)


def shares(class_ids: UInt8[np.ndarray, "*shape"], most: int = 3) -> str:
    """The commonest classes in words, e.g. ``62 % built up, 20 % tree``."""
    counts = np.bincount(class_ids.reshape(-1), minlength=256)[:NUM_CLASSES]
    if not counts.any():
        return "no labelled pixel"
    top = [int(i) for i in np.argsort(-counts, kind="stable")[:most] if counts[i]]
    return ", ".join(f"{100 * counts[i] / counts.sum():.0f} % {class_name(i)}" for i in top)


# Plates


def _svg(width: float, height: float, alt: str, content: str, style: str = "plate") -> Markup:
    return Markup(
        f'<svg class="{style}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(alt)}">{content}</svg>'
    )


def picture(rgb: UInt8[np.ndarray, "row col rgb"], label: str, alt: str, over: str = "") -> Plate:
    """A picture at its own pixels, with SVG in pixel coordinates drawn over it."""
    height, width = rgb.shape[:2]
    image = (
        f'<image href="{render.png_uri(rgb)}" width="{width}" height="{height}" '
        'preserveAspectRatio="none"/>'
    )
    return Plate(_svg(width, height, alt, image + over), label, alt)


def token_lines(rows: int, cols: int, patch_px: int) -> str:
    """The edges of the patches, as an SVG path over a chip."""
    height, width = rows * patch_px, cols * patch_px
    across = "".join(f"M0 {row * patch_px}H{width}" for row in range(1, rows))
    down = "".join(f"M{col * patch_px} 0V{height}" for col in range(1, cols))
    return f'<path class="lines" d="{across}{down}"/>'


def class_grid(
    classes: UInt8[np.ndarray, "token_row token_col"],
    label: str,
    alt: str,
    hidden: Bool[np.ndarray, "token_row token_col"] | None = None,
    wrong: Bool[np.ndarray, "token_row token_col"] | None = None,
) -> Plate:
    """Patch classes as coloured squares; visible ones small, wrong ones crossed out."""
    rows, cols = classes.shape
    hidden = np.ones(classes.shape, bool) if hidden is None else hidden
    content = ""
    for class_id in np.unique(classes):
        fill = "url(#no-label)" if class_id == IGNORE else class_css(int(class_id))
        full = _squares(hidden & (classes == class_id), 0.03)
        small = _squares(~hidden & (classes == class_id), 0.31)
        content += f'<path fill="{fill}" d="{full}{small}"/>'
    if wrong is not None and wrong.any():
        crosses = "".join(
            f"M{col + 0.28} {row + 0.28}l.44 .44m0 -.44l-.44 .44"
            for row, col in zip(*np.nonzero(wrong), strict=True)
        )
        content += f'<path class="cross-halo" d="{crosses}"/><path class="cross" d="{crosses}"/>'
    return Plate(_svg(cols, rows, alt, content, "plate tokens"), label, alt)


def _squares(where: Bool[np.ndarray, "row col"], margin: float) -> str:
    side = 1 - 2 * margin
    return "".join(
        f"M{col + margin:g} {row + margin:g}h{side:g}v{side:g}h-{side:g}z"
        for row, col in zip(*np.nonzero(where), strict=True)
    )


# Regions


@dataclass(frozen=True)
class Outline:
    """A rectangle to draw on a region's map, in the region's pixels."""

    row: int
    col: int
    height: int
    width: int
    split: str


def map_plate(
    rgb: UInt8[np.ndarray, "row col rgb"],
    step_px: int,
    outlines: Sequence[Outline],
    label: str,
    alt: str,
) -> Plate:
    """A region thinned to every ``step_px``-th pixel, with rectangles over it."""
    height, width = rgb.shape[0] * step_px, rgb.shape[1] * step_px
    image = (
        f'<image href="{render.photo_uri(rgb)}" width="{width}" height="{height}" '
        'preserveAspectRatio="none"/>'
    )
    content = image + "".join(_outline(outline, max(height, width)) for outline in outlines)
    return Plate(_svg(width, height, alt, content, "plate map"), label, alt)


def _outline(outline: Outline, extent: int) -> str:
    frame = f'x="{outline.col}" y="{outline.row}" width="{outline.width}" height="{outline.height}"'
    drawn = f'<rect class="halo {outline.split}" {frame}/>'
    drawn += f'<rect class="block {outline.split}" {frame}/>'
    if outline.split == "train":
        return drawn
    x, y = outline.col + outline.width / 2, outline.row + outline.height / 2
    size = min(extent / 22, outline.width / 3)
    return drawn + (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:.0f}" aria-hidden="true">'
        f"{escape(outline.split)}</text>"
    )


# Chips and their tokens


def label_plates(example: Chip, sensor: Sensor) -> list[Plate]:
    """A chip in every composite, its land cover and its patch labels."""
    rows, cols = example.hidden.shape
    patch_px = example.image.shape[1] // rows
    lines = token_lines(rows, cols, patch_px)
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
            f"Land cover of chip {example.chip}: {shares(example.landcover)}",
            lines,
        ),
        class_grid(
            example.true_class,
            "patch labels",
            f"Most frequent class of its {rows} by {cols} patches: {shares(example.true_class)}",
        ),
    ]


def token_mean_rgb(example: Chip, sensor: Sensor) -> UInt8[np.ndarray, "token_row token_col rgb"]:
    """The colour of every patch's mean over valid pixels; hatch grey where none is valid."""
    patches, valid = _patches(example)
    count = valid.sum(-1)
    mean = (patches * valid[:, :, None]).sum(-1) / np.maximum(count, 1)[..., None]
    rgb = render.composite_rgb(np.moveaxis(mean, -1, 0), sensor)
    return render.paint(rgb, count == 0, (161, 161, 158))


def token_variance(
    example: Chip, std: Float[np.ndarray, " band"]
) -> Float[np.ndarray, "token_row token_col"]:
    """Variance of every patch's valid pixels around its mean, in units of ``std``, band mean."""
    patches, valid = _patches(example)
    scaled = patches / std[:, None]
    weight = valid[:, :, None] / np.maximum(valid.sum(-1), 1)[..., None, None]
    mean = (scaled * weight).sum(-1, keepdims=True)
    variance: np.ndarray = ((scaled - mean) ** 2 * weight).sum(-1).mean(-1)
    return variance


def _patches(example: Chip) -> tuple[np.ndarray, np.ndarray]:
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


def token_plates(example: Chip, sensor: Sensor, std: Float[np.ndarray, " band"]) -> list[Plate]:
    """One chip as a model meets it: pixels, mean colour, variance and mask of its tokens."""
    rows, cols = example.hidden.shape
    patch_px = example.image.shape[1] // rows
    lines = token_lines(rows, cols, patch_px)
    rgb = render.composite_rgb(example.image, sensor, example.valid)
    variance = token_variance(example, std)
    top = float(variance.max())
    num_hidden = int(example.hidden.sum())
    return [
        picture(rgb, "pixels", f"Chip {example.chip} cut into {rows} by {cols} patches", lines),
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
        picture(
            _masked(example, rgb),
            "what the model is given",
            f"The same chip with {num_hidden} of {rows * cols} patches hidden in grey",
        ),
    ]


# Reconstructions


def hidden_pixels(example: Chip) -> Bool[np.ndarray, "row col"]:
    """The masked tokens at pixel size."""
    return render.upscale(example.hidden, example.image.shape[1] // example.hidden.shape[0])


def absolute_error(
    example: Chip, made: Float32[np.ndarray, "band row col"]
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


def reconstruction_plates(example: Example, sensor: Sensor, composite: str) -> list[Plate]:
    """Target, masked input, reconstruction and nearest copy of one chip, in one composite."""
    rgb = render.composite_rgb(example.image, sensor, example.valid, composite)
    num_hidden, num_tokens = int(example.hidden.sum()), example.hidden.size
    note = "" if len(sensor.composites) == 1 else f" ({composite})"
    plates = [
        picture(rgb, "target", f"Chip {example.chip}: {shares(example.landcover)}{note}"),
        picture(
            _masked(example, rgb),
            "masked input",
            f"The same chip with {num_hidden} of {num_tokens} patches hidden in grey{note}",
        ),
    ]
    for made, name in (
        (example.reconstruction, "reconstruction"),
        (example.nearest, "nearest-visible copy"),
    ):
        mae = _mean(absolute_error(example, made))
        alt = f"The {name}: mean absolute error {mae} in the masked patches{note}"
        rgb = render.composite_rgb(made, sensor, example.valid, composite)
        plates.append(picture(rgb, name, alt))
    return plates


def error_plates(example: Example, top: float) -> list[Plate]:
    """Absolute error of the reconstruction and of the copy over all bands, ``top`` brightest."""
    plates = []
    for made, name in ((example.reconstruction, "error"), (example.nearest, "copy's error")):
        error = absolute_error(example, made)
        alt = f"Absolute {name}, inside the masked patches: mean {_mean(error)}, {_worst(error)}"
        grey = render.paint(render.ramp_rgb(error, top), ~np.isfinite(error))
        plates.append(picture(grey, f"{name}, mean {_mean(error)}", alt))
    return plates


def _masked(
    example: Chip, rgb: UInt8[np.ndarray, "row col rgb"]
) -> UInt8[np.ndarray, "row col rgb"]:
    return render.paint(rgb, hidden_pixels(example))


def _mean(error: Float[np.ndarray, "row col"]) -> str:
    finite = error[np.isfinite(error)]
    return f"{finite.mean():.3g}" if finite.size else "not measurable"


def _worst(error: Float[np.ndarray, "row col"]) -> str:
    finite = error[np.isfinite(error)]
    return f"largest {finite.max():.3g}" if finite.size else "no valid pixel"


# Patch classes


def class_plates(example: Example) -> list[Plate]:
    """True, predicted and copied patch classes under one mask; wrong masked ones crossed out."""
    labelled = example.true_class != IGNORE
    judged = example.hidden & labelled
    plates = [
        class_grid(
            example.true_class,
            "true",
            f"True patch classes of chip {example.chip}: {shares(example.true_class)}",
            example.hidden,
        )
    ]
    for classes, name in (
        (example.predicted_class, "predicted"),
        (example.nearest_class, "copy"),
    ):
        right = int((judged & (classes == example.true_class)).sum())
        score = f"{right} of {int(judged.sum())}"
        plates.append(
            class_grid(
                classes,
                f"{name}, {score} right",
                f"Patch classes, {name}: {score} masked patches right",
                example.hidden,
                judged & (classes != example.true_class),
            )
        )
    return plates


# Charts

_CSS_COLOURS = {
    "#0a0b01": "var(--ink)",
    "#0a0b02": "var(--muted)",
    "#0a0b03": "var(--rule)",
    "#0a0b11": "var(--series-1)",
    "#0a0b12": "var(--series-2)",
    "#0a0b13": "var(--series-3)",
}
"""Colours that stand in for the page's own while matplotlib draws."""

INK, MUTED, RULE, *SERIES = _CSS_COLOURS

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bharateo",
    "text.parse_math": False,  # a label may hold a dollar
    "font.size": 9.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Series:
    """One line of a chart: values per epoch (None where nothing was measured)."""

    label: str
    values: Sequence[float | None]
    colour: str
    dashed: bool = False
    level: bool = False
    """A single value to compare with, drawn as a thin dotted line across the chart."""


def curve_chart(
    epochs: Sequence[int],
    series: Sequence[Series],
    show: Callable[[float], str],
    alt: str,
    top: float,
) -> Markup:
    """Lines over epochs, from zero to ``top``, each named at its right end with its last value."""
    with _figure(4.6, 2.9) as figure:
        axes = figure.add_axes((0.11, 0.13, 0.56, 0.83))
        for line in series:
            _draw_line(axes, epochs, line)
        axes.set_ylim(0, top)
        axes.yaxis.set_major_formatter(lambda value, _: _tick(show(value)))
        axes.set_xlim(epochs[0] - 0.02, max(epochs[-1], epochs[0] + 1))
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)  # type: ignore[call-arg]
        axes.set_xlabel("epoch", loc="right")
        _name_lines(axes, series, show)
        return chart_svg(figure, alt)


def _draw_line(axes: Axes, epochs: Sequence[int], line: Series) -> None:
    if line.level:
        axes.axhline(line.values[-1] or 0, color=line.colour, lw=1, ls=(0, (1, 2)))
        return
    values = [np.nan if value is None else value for value in line.values]
    marker = "o" if len(epochs) == 1 else None
    style = (0, (4, 2)) if line.dashed else "-"
    axes.plot(epochs, values, color=line.colour, lw=1.6, ls=style, marker=marker, ms=4)


def _tick(shown: str) -> str:
    """A value as an axis needs it: without zeros at the end."""
    number, _, unit = shown.partition(" ")
    return f"{float(number):g} {unit}".strip()


def _name_lines(axes: Axes, series: Sequence[Series], show: Callable[[float], str]) -> None:
    """Names at the lines' ends, pushed apart where they would overlap."""
    ends = [(line, [v for v in line.values if v is not None]) for line in series]
    shown = sorted(((line, values[-1]) for line, values in ends if values), key=lambda end: end[1])
    top = axes.get_ylim()[1]
    places = spread([value / top for _, value in shown], 0.075)
    for (line, value), place in zip(shown, places, strict=True):
        text = _in_line(f"{line.label} {show(value)}")
        axes.text(
            1.03, place, text, color=line.colour, va="center", transform=axes.transAxes, size=9
        )


def _in_line(label: str) -> str:
    """A label without line breaks and control characters, which SVG cannot hold."""
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in label).split())


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in 0..1, moved as little as one pass each way can, ``gap`` apart."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    for index in range(len(moved) - 1, -1, -1):
        ceiling = moved[index + 1] - gap if index + 1 < len(moved) else 1.0
        moved[index] = min(moved[index], ceiling)
    return moved


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, to draw: the model's own, its bar to beat, or another's."""

    label: str
    value: float
    interval: tuple[float, float] | None
    colour: str


def interval_chart(estimates: Sequence[Estimate], show: Callable[[float], str], alt: str) -> Markup:
    """A dot and its interval for everyone who was measured, one below the other."""
    with _figure(4.6, 0.42 + 0.3 * len(estimates)) as figure:
        height = 0.3 * len(estimates) / (0.42 + 0.3 * len(estimates))
        axes = figure.add_axes((0.31, 0.94 - height, 0.57, height))
        for place, estimate in enumerate(estimates):
            low, high = estimate.interval or (estimate.value, estimate.value)
            axes.plot([low, high], [place, place], color=estimate.colour, lw=2.4, alpha=0.45)
            axes.plot([estimate.value], [place], "o", color=estimate.colour, ms=5.5)
            axes.text(
                1.03, place, show(estimate.value), color=estimate.colour, va="center",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
        axes.set_yticks(range(len(estimates)), [_in_line(each.label) for each in estimates])
        axes.set_ylim(len(estimates) - 0.5, -0.5)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(lambda value, _: _tick(show(value)))
        axes.spines["left"].set_visible(False)
        return chart_svg(figure, alt)


def budget_chart(
    budgets: Sequence[str],
    lines: Sequence[Sequence[Estimate]],
    show: Callable[[float], str],
    alt: str,
) -> Markup:
    """A line for everyone who was measured, an estimate with its interval at every budget."""
    with _figure(5.6, 3.6) as figure:
        axes = figure.add_axes((0.08, 0.13, 0.42, 0.83))
        for number, line in enumerate(lines):
            # beside each other, so that intervals can be told apart
            places = np.arange(len(budgets)) + 0.05 * (number - (len(lines) - 1) / 2)
            axes.plot(places, [e.value for e in line], "o-", color=line[0].colour, lw=1.4, ms=3.5)
            for place, estimate in zip(places, line, strict=True):
                if estimate.interval:
                    axes.plot(
                        [place] * 2, estimate.interval, color=estimate.colour, lw=2, alpha=0.4
                    )
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(budgets)), budgets)
        axes.set_xlabel("labels a class")
        axes.yaxis.set_major_formatter(lambda value, _: _tick(show(value)))
        ends = [Series(line[-1].label, [line[-1].value], line[-1].colour) for line in lines]
        _name_lines(axes, ends, show)
        return chart_svg(figure, alt)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height))


def chart_svg(figure: Figure, alt: str) -> Markup:
    """The figure as inline SVG in the page's colours and type, the same bytes every time."""
    file = io.StringIO()
    metadata: Mapping[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(file, format="svg", transparent=True, metadata=dict(metadata))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    for stand_in, colour in _CSS_COLOURS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r"font: (?:\d+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = _own_ids(text, alt)
    width, height = (round(inches * 72) for inches in figure.get_size_inches())
    head = (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(alt)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Markup(head + re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]))


def _own_ids(svg: str, alt: str) -> str:
    """The drawing with ids that no other chart of the page has, and no names of groups."""
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)
    prefix = f"c{zlib.crc32(alt.encode()):08x}-"
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
