"""The folder of an explorer.

::

    index.html           the page; written last, so a folder with it is complete
    app/                 its styles and scripts
    data/explorer.js     what everything is
    data/area-0.js ...   pictures of an area, and the patches of it
    data/chip-0.js ...   the pixels of a chip
    data/model.js        the run's autoencoder, an ONNX file
    data/runtime.js      ONNX Runtime, which runs it
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np

from bharateo.chips.store import Dataset
from bharateo.errors import ConfigError, StorageError
from bharateo.explorer.area import Progress, area_of_raster, areas_of_dataset
from bharateo.explorer.chips import chips_of_dataset, chips_of_raster
from bharateo.explorer.records import area_record, chip_record, page_record, script, zipped
from bharateo.explorer.runtime import BINARY, LICENCE, LOADER, SCRIPT, runtime_files
from bharateo.files import remove_leftovers, scratch, write_atomically, write_text
from bharateo.handover.onnx_file import write_onnx
from bharateo.inference.dense import check_rebuilds
from bharateo.inference.domain import Domain
from bharateo.inference.inputs import RasterInput
from bharateo.outputs import beginning_with
from bharateo.report.html import templates
from bharateo.training.run import Run, dataset_fingerprint
from bharateo.version import __version__

MOST_MEGABYTES = 25.0
"""Size of a folder that may be sent around; megabytes are millions of bytes."""

_OWN = {"index.html", "app", "data", LICENCE.name}
_MARK = "BharatEO explorer</title>"
"""In the head of a page."""

_BEGUN = ".explorer.partial"
"""Says of a folder without a page that what is in it is ours."""


def write_explorer(
    run: Run,
    ground: Dataset | RasterInput,
    output: Path,
    progress: Progress,
    say: Callable[[str], object],
    most_megabytes: float = MOST_MEGABYTES,
    domain: Domain | None = None,
) -> Path:
    """Write the page of a run on a dataset or raster; the path of its ``index.html``.

    A model that would make the folder larger than ``most_megabytes`` stays out, and with it the
    painting; ``say`` is told. What lies out of the run's ``domain`` is shown where it is known.
    Everything is made before the first file is written; what takes long is kept beside ``output``
    until all is there, and used again after a kill.

    Raises:
        ConfigError: the runtime or onnx is not installed, or ``output`` holds something else.
        ContractError: the run must not be fed this dataset.
        RunError: the run's encoder was tuned since its pretraining.
        StorageError: the disk is full or refuses.
    """
    check_rebuilds(run)
    runtime = runtime_files()
    output = output.absolute()
    _check_output(output)
    # before the minutes that all else takes; a raster was checked when it was opened
    if isinstance(ground, Dataset):
        if {*run.sensor.band_names} <= {*ground.sensor.band_names}:
            ground = ground.with_bands(run.sensor.band_names)
        run.check(ground)
    plan = {
        "product": "explorer",
        "code_version": __version__,
        "run": {"weights_sha256": run.weights_sha256, "domain": domain is not None},
        "ground": dataset_fingerprint(ground)
        if isinstance(ground, Dataset)
        else ground.made_of.identity,
    }
    text = json.dumps(plan, sort_keys=True)
    with scratch(output, text, say) as folder:
        data, page = _made(run, ground, domain, runtime, folder, progress, say, most_megabytes)
        _write(output, data, page)
    return output / "index.html"


def _made(
    run: Run,
    ground: Dataset | RasterInput,
    domain: Domain | None,
    runtime: Mapping[str, bytes],
    folder: Path,
    progress: Progress,
    say: Callable[[str], object],
    most_megabytes: float,
) -> tuple[dict[str, str], str]:
    """The data files by name, and the page; arrays and the model are kept in ``folder``."""

    def keep(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        file = folder / f"{name}.npy"
        if not file.exists():
            write_atomically(file, partial(np.save, arr=make()))
        kept: np.ndarray = np.load(file)
        return kept

    worker = files("bharateo.explorer").joinpath("page", "worker.js").read_bytes()
    painting = {
        "runtime": script("runtime", {
            "script": zipped(runtime[SCRIPT]),
            "loader": zipped(runtime[LOADER]),
            "binary": base64.b64encode(runtime[BINARY]).decode(),
            "worker": zipped(worker),
        }),
    }  # fmt: skip
    rebuilds = run.heads.rebuilding is not None
    if rebuilds:
        model = folder / "model.onnx"
        if not model.exists():
            say("exporting the model for the page; this takes a minute at most")
            write_onnx(run, model, "autoencoder")  # which compares it with PyTorch
        painting["model"] = script("model", zipped(model.read_bytes()))

    if isinstance(ground, Dataset):
        areas, left_out = areas_of_dataset(run, ground, progress, keep, domain)
        chips, attribution = chips_of_dataset(run, ground), ground.attribution
        cautions: list[str] = []
        raster = None
    else:
        file = Path(ground.location)
        raster = file.name
        areas = [area_of_raster(run, ground, file.stem, progress, keep, domain)]
        chips, attribution, left_out = (
            chips_of_raster(run, ground, areas[0]),
            (f"Pixels: {file.name}",),
            "",
        )
        # without the folder on this machine
        cautions = [
            differs.replace(ground.location, file.name) for differs in ground.overridden.values()
        ]

    data = {f"area-{i}": area_record(area) for i, area in enumerate(areas)}
    data |= {f"chip-{i}": chip_record(chip) for i, chip in enumerate(chips)}
    texts = {name: script(name, record) for name, record in data.items()}
    size = sum(map(len, (*texts.values(), *painting.values(), *_app().values()))) / 1e6
    no_painting = None
    if not rebuilds:
        no_painting = "the run has no pixel head, so it rebuilds nothing"
    elif not chips:
        no_painting = "the ground is smaller than a chip"
    elif size > most_megabytes:
        no_painting = (
            f"with the model ({run.contract.num_parameters / 1e6:.1f} million parameters) the "
            f"folder would have {size:.0f} MB, more than {most_megabytes:g} MB"
        )
    if no_painting is None:
        texts |= painting
    else:
        say(f"no painting on the page: {no_painting}")
        texts = {name: text for name, text in texts.items() if not name.startswith("chip-")}
        chips = []
    record = page_record(run, areas, chips, attribution, left_out, no_painting, cautions, raster)
    texts["explorer"] = script("explorer", record)
    page = templates("explorer/page").get_template("index.html.j2")
    return texts, page.render(record, version=__version__)


def _check_output(output: Path) -> None:
    """Refuse a folder that holds anything but an explorer, whole or begun."""
    if not os.path.lexists(output):
        return
    names = [path.name for path in output.iterdir()] if output.is_dir() else [output.name]
    foreign = sorted(name for name in names if name not in _OWN and not name.endswith(".partial"))
    ours = _BEGUN in names or beginning_with(_MARK)(output / "index.html")
    if names and not ours:
        foreign = foreign or sorted(names)
    if foreign:
        raise ConfigError(
            f"{output} holds {foreign[0]}, so it is no explorer: choose a new or empty folder as "
            "--output"
        )


def _write(output: Path, data: Mapping[str, str], page: str) -> None:
    """Replace an older explorer: its page goes first, the new one comes last."""
    try:
        if output.is_dir():
            remove_leftovers(output)
            (output / _BEGUN).touch()
        (output / "index.html").unlink(missing_ok=True)
        for old in (*output.glob("app/*.*"), *output.glob("data/*.js")):
            if old.suffix in (".js", ".css"):
                old.unlink()
    except OSError as error:
        raise StorageError(f"cannot write {output} ({error}): choose another --output") from error
    write_text(output / _BEGUN, "")
    for name, text in data.items():
        write_text(output / "data" / f"{name}.js", text)
    for name, text in _app().items():
        write_text(output / "app" / name, text)
    write_text(output / LICENCE.name, LICENCE.read_text())
    write_text(output / "index.html", page)
    (output / _BEGUN).unlink()


def _app() -> dict[str, str]:
    """Styles and scripts of the page by name."""
    page = files("bharateo.explorer").joinpath("page")
    return {
        each.name: each.read_text(encoding="utf-8")
        for each in page.iterdir()
        if each.name.endswith((".js", ".css")) and each.name not in ("worker.js", "points.js")
    }
