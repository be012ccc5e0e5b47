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
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bharateo.chips.store import Dataset
from bharateo.errors import ConfigError, StorageError
from bharateo.explorer.area import Area, Keep, Progress, area_of_raster, areas_of_dataset
from bharateo.explorer.chips import Chip, chips_of_dataset, chips_of_raster
from bharateo.explorer.packing import script, zipped
from bharateo.explorer.records import area_record, chip_record, page_record
from bharateo.explorer.runtime import BINARY, LICENCE, LOADER, SCRIPT, runtime_files
from bharateo.files import remove_leftovers, write_atomically, write_text
from bharateo.handover.onnx_file import write_onnx
from bharateo.inference.inputs import RasterInput
from bharateo.inference.pieces import scratch
from bharateo.models.heads import PixelHead
from bharateo.outputs import beginning_with
from bharateo.report.html import templates
from bharateo.training.checkpoint import Run, dataset_fingerprint
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
) -> Path:
    """Write the page of a run on a dataset or raster; the path of its ``index.html``.

    A model that would make the folder larger than ``most_megabytes`` stays out, and with it the
    painting; ``say`` is told. Everything is made before the first file is written; what takes
    long is kept beside ``output`` until all is there, and used again after a kill.

    Raises:
        ConfigError: the runtime or onnx is not installed, or ``output`` holds something else.
        ContractError: the run must not be fed this dataset.
        StorageError: the disk is full or refuses.
    """
    runtime = runtime_files()
    output = output.absolute()
    _check_output(output)
    ground = _fitting(run, ground)  # before the minutes that all else takes
    with scratch(output, _plan(run, ground), say) as folder:
        texts, record = _made(run, ground, runtime, folder, progress, say, most_megabytes)
        _write(output, texts, record)
    return output / "index.html"


def _plan(run: Run, ground: Dataset | RasterInput) -> dict[str, Any]:
    """What decides the numbers on a page."""
    identity = dataset_fingerprint(ground) if isinstance(ground, Dataset) else ground.identity
    return {
        "product": "explorer",
        "code_version": __version__,
        "run": {"weights_sha256": run.weights_sha256},
        "ground": identity,
    }


def _kept_in(folder: Path) -> Keep:
    def keep(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        file = folder / f"{name}.npy"
        if not file.exists():
            write_atomically(file, partial(np.save, arr=make()))
        kept: np.ndarray = np.load(file)
        return kept

    return keep


def _made(
    run: Run,
    ground: Dataset | RasterInput,
    runtime: Mapping[str, bytes],
    folder: Path,
    progress: Progress,
    say: Callable[[str], object],
    most_megabytes: float,
) -> tuple[dict[str, str], dict[str, Any]]:
    """The scripts of a page by name, and what the page itself shows."""
    painting = {
        "runtime": script("runtime", _runtime_record(runtime)),
        "model": _model_script(run, folder, say),
    }
    areas, chips, attribution, left_out = _look(run, ground, progress, _kept_in(folder))
    scripts = {f"area-{i}": area_record(area) for i, area in enumerate(areas)}
    scripts |= {f"chip-{i}": chip_record(chip) for i, chip in enumerate(chips)}
    texts = {name: script(name, record) for name, record in scripts.items()}
    reason = _no_painting(run, chips, {**texts, **painting}, most_megabytes)
    if reason is None:
        texts |= painting
    else:
        say(f"no painting on the page: {reason}")
        texts = {name: text for name, text in texts.items() if not name.startswith("chip-")}
        chips = []
    record = page_record(run, areas, chips, attribution, left_out, reason)
    record["cautions"] = _cautions(ground)
    texts["explorer"] = script("explorer", record)
    return texts, record


def _fitting(run: Run, ground: Dataset | RasterInput) -> Dataset | RasterInput:
    """The ground with the run's bands; a raster was checked when it was opened."""
    if isinstance(ground, Dataset):
        if {*run.sensor.band_names} <= {*ground.sensor.band_names}:
            ground = ground.with_bands(run.sensor.band_names)
        run.check(ground)
    return ground


def _look(
    run: Run, ground: Dataset | RasterInput, progress: Progress, keep: Keep
) -> tuple[list[Area], list[Chip], Sequence[str], str]:
    """Areas, chips, whose pixels and labels they are, and what is left out."""
    if isinstance(ground, Dataset):
        areas, left_out = areas_of_dataset(run, ground, progress, keep)
        return areas, chips_of_dataset(run, ground), ground.attribution, left_out
    area = area_of_raster(run, ground, Path(ground.location).stem, progress, keep)
    pixels = (f"Pixels: {Path(ground.location).name}",)
    return [area], chips_of_raster(run, ground, area), pixels, ""


def _cautions(ground: Dataset | RasterInput) -> list[str]:
    """What was allowed to differ from the run's contract, without the folder of the raster."""
    if isinstance(ground, Dataset):
        return []
    name = Path(ground.location).name
    return [differs.replace(ground.location, name) for differs in ground.overridden.values()]


def _model_script(run: Run, folder: Path, say: Callable[[str], object]) -> str:
    """The autoencoder, which was compared with PyTorch before it is given out."""
    if not _rebuilds(run):
        return ""
    path = folder / "model.onnx"
    if not path.exists():
        say("exporting the model for the page; this takes a minute at most")
        write_onnx(run, path, "autoencoder")
    return script("model", zipped(path.read_bytes()))


def _rebuilds(run: Run) -> bool:
    return any(isinstance(head, PixelHead) for head in run.heads.values())


def _no_painting(
    run: Run, chips: Sequence[Chip], texts: Mapping[str, str], most_megabytes: float
) -> str | None:
    """Why no mask can be painted, None where it can."""
    if not _rebuilds(run):
        return "the run has no pixel head, so it rebuilds nothing"
    if not chips:
        return "the ground is smaller than a chip"
    megabytes = (sum(map(len, texts.values())) + _page_bytes()) / 1e6
    if megabytes > most_megabytes:
        return (
            f"with the model ({run.contract.num_parameters / 1e6:.1f} million parameters) the "
            f"folder would have {megabytes:.0f} MB, more than {most_megabytes:g} MB"
        )
    return None


def _runtime_record(runtime: Mapping[str, bytes]) -> dict[str, str]:
    worker = files("bharateo.explorer").joinpath("page", "worker.js").read_bytes()
    return {
        "script": zipped(runtime[SCRIPT]),
        "loader": zipped(runtime[LOADER]),
        "binary": base64.b64encode(runtime[BINARY]).decode(),
        "worker": zipped(worker),
    }


# Files


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


def _write(output: Path, texts: Mapping[str, str], record: Mapping[str, Any]) -> None:
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
    for name, text in texts.items():
        write_text(output / "data" / f"{name}.js", text)
    for name, text in _app().items():
        write_text(output / "app" / name, text)
    write_text(output / LICENCE.name, LICENCE.read_text())
    write_text(output / "index.html", _page(record))
    (output / _BEGUN).unlink()


def _app() -> dict[str, str]:
    """Styles and scripts of the page by name."""
    page = files("bharateo.explorer").joinpath("page")
    return {
        each.name: each.read_text(encoding="utf-8")
        for each in page.iterdir()
        if each.name.endswith((".js", ".css")) and each.name != "worker.js"
    }


def _page_bytes() -> int:
    return sum(len(text.encode()) for text in _app().values())


def _page(record: Mapping[str, Any]) -> str:
    template = templates("explorer/page").get_template("index.html.j2")
    return template.render(record, version=__version__)
