"""Figures of a notebook: those of the report one by one, and pictures of maps and searches.

Each is the last line of a cell: notebooks show what has a ``_repr_html_``. A figure brings its
style and its pixels along and is drawn on white paper, so that it looks the same in every notebook,
light or dark.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from jinja2 import Template
from markupsafe import Markup, escape

from bharateo.accounting import Accounting
from bharateo.errors import SourceError
from bharateo.inference.map import NODATA, products
from bharateo.pixels.picture import bands_shown, hatch, stretched
from bharateo.pixels.raster import open_raster
from bharateo.report import ground, html, panels, probes, render, scores

if TYPE_CHECKING:
    from bharateo.chips.store import Dataset
    from bharateo.config import Config
    from bharateo.results import Probes
    from bharateo.training.run import Run

MOST_PX = 768
"""Longer side of a map as it is shown."""

_PALE, _MARK = (232, 231, 226), (200, 40, 30)


@dataclass(frozen=True)
class Figure:
    """Something to look at in a notebook."""

    content: Markup
    title: str

    def __repr__(self) -> str:
        return f"<{self.title}>"

    def _repr_html_(self) -> str:
        return _template().environment.get_template("notebook.html.j2").render(figure=self)


@cache
def _template() -> Template:
    return html.article_template()


def _block(title: str, name: str, **shown: Any) -> Figure:
    """A block of the report's page by itself."""
    template = _template()
    return Figure(Markup("".join(template.blocks[name](template.new_context(shown)))), title)


# Before there is a run


def show_account(account: Accounting) -> Figure:
    """The table of tokens, pixels and scalars of a planned or finished run."""
    return _block("token accounting", "account", accounting=account.rows())


def show_regions(dataset: Dataset) -> Figure:
    """Every region as picture and class map, with its blocks and its class histogram."""
    return _block("regions", "regions", **ground.shown(dataset), **ground.regions(dataset))


def show_chips(dataset: Dataset, config: Config, count: int = 4) -> Figure:
    """Chips of the train split, their land cover and the labels of their patches."""
    return _chips("chips and their labels", "chips", dataset, config, count)


def show_tokens(dataset: Dataset, config: Config) -> Figure:
    """One chip as a model meets it: patches, their mean colour and variance, and a mask."""
    return _chips("a chip as tokens", "tokens", dataset, config, 1)


def _chips(title: str, block: str, dataset: Dataset, config: Config, count: int) -> Figure:
    from bharateo.evaluation.reconstruction import chips

    some = chips(dataset, "train", config.model, count)
    return _block(title, block, **ground.shown(dataset), **html.chips(dataset, some))


# What a run learnt


def show_curves(run: Run) -> Figure:
    """Losses, accuracy and error over the epochs of an evaluated run.

    Raises:
        RunError: the run has not been evaluated.
    """
    files = html.read_run(run.path)
    charts = scores.curves(files.history, files.evaluation, files.contract.kept)
    minimised = scores.minimised(files.evaluation)
    return _block(
        "learning curves", "curves", curves=charts, minimised=minimised, sensor=run.sensor
    )


def show_reconstructions(run: Run, dataset: Dataset, count: int = 3) -> Figure:
    """Target, masked input, reconstruction, the nearest copy and the errors, on held-out chips."""
    return _examples("reconstructions", "reconstructions", run, dataset, count)


def show_patch_classes(run: Run, dataset: Dataset, count: int = 4) -> Figure:
    """True, predicted and copied classes of the patches of held-out chips."""
    return _examples("classes of patches", "classes", run, dataset, count)


def _examples(title: str, block: str, run: Run, dataset: Dataset, count: int) -> Figure:
    from bharateo.evaluation.reconstruction import reconstruct

    split = next((s for s in ("test", "val") if len(dataset.indices(s))), "train")
    made = html.reconstructions(dataset, reconstruct(run, dataset, split, count))
    return _block(title, block, **ground.shown(dataset), **made, example_split=split)


def show_scores(run: Run) -> Figure:
    """An evaluated run and its baselines on test ground, with intervals.

    Raises:
        RunError: the run has not been evaluated.
    """
    files = html.read_run(run.path)
    return _block("scores", "result", **scores.result(files.evaluation), other_dataset=False)


def show_confusion(run: Run) -> Figure:
    """Where the masked patches of every class went, on test ground.

    Raises:
        RunError: the run has not been evaluated.
    """
    files = html.read_run(run.path)
    numbers = scores.result(files.evaluation) | scores.all_numbers(files.evaluation)
    return _block("confusion of classes", "confusion", **numbers)


def show_probes(record: Probes) -> Figure:
    """What ``probe`` found: macro-F1 of features against the labels that they were shown."""
    return _block("probes", "probe_charts", probes=probes.section(record))


# Files


def show_picture(path: str | Path, alt: str) -> Figure:
    """A PNG file; ``alt`` says in its stead what it shows.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        content = base64.b64encode(Path(path).read_bytes()).decode()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}): make it first") from error
    picture = f'<img src="data:image/png;base64,{content}" alt="{escape(alt)}">'
    return Figure(Markup(picture), alt)


def show_map(path: str | Path) -> Figure:
    """What ``map_raster`` wrote: the raster, its classes, how sure the map is, and the labels
    that it finds hard to believe where it was made ``against`` any.

    Raises:
        SourceError: a file of the map, or the raster, is no longer there.
    """
    files = products(Path(path))
    record = json.loads(files["record"].read_text())
    source, names = record["source"], list(record["source"]["bands"])
    entropy, outside = _thin(files["uncertainty"], 1, 2)
    unsure = render.ramp_rgb(entropy / 100, 1)
    shown = {}
    if "bands_in_file" in source and "tiles" not in source:  # else it is of many files
        bands = [source["bands_in_file"][i] for i in bands_shown(names)]
        raster = _thin(source["input"], *bands)
        low, high = np.percentile(raster, [2, 98])
        shown["the raster"] = stretched(raster.astype(float), low, high)
    shown |= {
        "land cover": render.class_rgb(_thin(files["classes"], 1)[0]),
        "uncertainty": hatch(unsure, entropy == NODATA),
    }
    if (outside != NODATA).any():
        shown["out of the run's domain"] = _marked(outside == 1, outside != NODATA)
    if record["against"]:
        suspect, label = _thin(files["suspect"], 1, 2)
        shown["labels"] = render.class_rgb(label)
        shown["suspect labels"] = _marked(suspect == 1, label != NODATA)
    legend = [
        (each["name"].replace("_", " "), f"#{bytes(each['colour']).hex()}")
        for each in record["classes"]
    ]
    drawn = [panels.picture(rgb, label, label) for label, rgb in shown.items()]
    figure: Any = _template().environment.globals["map_figure"]
    return Figure(figure(drawn, legend, Markup(render.ramp_css())), "a map")


def _thin(path: str | Path, *bands: int) -> Shaped[np.ndarray, "band row col"]:
    """Bands of a file, counted from 1, thinned to ``MOST_PX`` or with every cell as many pixels."""
    file = open_raster(str(path), vrt=True)
    if file is None:
        raise SourceError(f"{path} cannot be read (it is gone): make the map again")
    with file:
        step = max(1, max(file.shape) / MOST_PX)
        values = file.read_thinned(step, [band - 1 for band in bands])
    factor = max(1, MOST_PX // max(values.shape))
    return values.repeat(factor, 1).repeat(factor, 2)


def _marked(
    where: Bool[np.ndarray, "row col"], known: Bool[np.ndarray, "row col"]
) -> UInt8[np.ndarray, "row col rgb"]:
    """Marked cells on pale paper, hatched where nothing is known."""
    paper = np.full((*where.shape, 3), _PALE, np.uint8)
    return hatch(render.paint(paper, where, _MARK), ~known)
