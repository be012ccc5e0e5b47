"""A run on somebody's ground: vectors, maps, places alike, a page; and for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bharateo.display import Display
from bharateo.stages.opening import list_of_paths, open_dataset, open_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    import geopandas as gpd

    from bharateo.chips.store import Dataset
    from bharateo.evaluation.own_classes import OwnClasses
    from bharateo.handover.onnx_file import What
    from bharateo.inference.domain import Domain
    from bharateo.inference.embed import Embedding
    from bharateo.inference.inputs import RasterInput, Reading
    from bharateo.inference.map import MapRecord
    from bharateo.stages.opening import Paths
    from bharateo.training.run import Run


def embed(
    run: Run | str | Path,
    location: str | Path,
    outputs: Paths,
    *,
    how: Embedding | None = None,
    reading: Reading | None = None,
    display: Display | None = None,
) -> list[Path]:
    """The files (``.tif`` or ``.parquet``) of a run's vectors of a raster, STAC item or dataset.

    Raises:
        ConfigError: an output or a choice of ``how`` does not fit.
        ContractError: the input breaks the run's contract.
        SourceError: the input cannot be read.
    """
    from bharateo.chips.store import DATASET_FILE, Dataset
    from bharateo.inference.embed import (
        Embedding,
        embed_dataset,
        embed_raster,
        embedding_products,
    )
    from bharateo.memory import return_freed_memory
    from bharateo.outputs import check_outputs

    return_freed_memory()
    outputs, how = list_of_paths(outputs), how or Embedding()
    check_outputs("embed", embedding_products(outputs), [location])
    opened, display = open_run(run), display or Display()
    is_dataset = (Path(location) / DATASET_FILE).exists()
    with display.bar("embed") as bar:
        if is_dataset:
            dataset = Dataset.open(location)
            embed_dataset(opened, dataset, outputs, how, bar.update, display.say)
        else:
            source = _open_raster(opened, location, reading, display)
            embed_raster(opened, source, outputs, how, bar.update, display.say)
    for output in outputs:
        display.say(f"embedding: {output}")
    return outputs


def map_raster(
    run: Run | str | Path,
    location: str | Path,
    output: str | Path,
    *,
    probe: str | Path | None = None,
    against: str | None = None,
    stride_px: int | None = None,
    precision: str = "fp32",
    reading: Reading | None = None,
    display: Display | None = None,
) -> MapRecord:
    """The record of a map of a raster or STAC item, by a run's land-cover head or by a ``probe``.

    ``against`` are labels to compare with: a raster, ``worldcover``, or where its tiles lie;
    ``stride_px`` is the side of a cell of the map (None: the patch size).

    Raises:
        ConfigError: an option does not fit.
        ContractError: the raster breaks the run's contract.
        RunError: the run has no land-cover head, or the probe is not of this run.
        SourceError: the raster or the labels cannot be read.
    """
    from bharateo.evaluation.own_classes import probe_classifier
    from bharateo.inference.labels import open_labels
    from bharateo.inference.map import Request, head_classifier, own_products, write_map
    from bharateo.memory import return_freed_memory
    from bharateo.outputs import check_outputs

    return_freed_memory()
    output, inputs = Path(output), [each for each in (location, probe, against) if each]
    check_outputs("map", own_products(output), inputs)
    opened, display = open_run(run), display or Display()
    classifier = head_classifier(opened) if probe is None else probe_classifier(opened, Path(probe))
    labels = None if against is None else open_labels(against)
    source = _open_raster(opened, location, reading, display)
    domain = _domain(opened, display)
    request = Request(classifier, domain, labels, stride_px, precision)
    with display.bar("map") as bar:
        record = write_map(opened, source, output, request, bar.update, display.say)
    for line in record.lines():
        display.say(line)
    display.say(f"map: {output}")
    return record


def probe_points(
    run: Run | str | Path,
    location: str | Path,
    points: Paths,
    output: str | Path,
    *,
    class_field: str | None = None,
    stride_px: int | None = None,
    precision: str = "fp32",
    reading: Reading | None = None,
    display: Display | None = None,
) -> OwnClasses:
    """The record of a probe on a person's own points, and of the map it makes of a raster.

    ``points`` are files of points with their classes in ``class_field`` (None: a column of a
    usual name); ``output`` is a folder.

    Raises:
        ConfigError: the points cannot be used.
        ContractError: the raster breaks the run's contract.
        SourceError: the raster cannot be read.
    """
    from bharateo.evaluation.own_classes import (
        NEXT_FILE,
        Options,
        map_own_classes,
        own_class_products,
    )
    from bharateo.inference.points import read_all_points
    from bharateo.memory import return_freed_memory
    from bharateo.outputs import check_outputs

    return_freed_memory()
    output, points = Path(output), list_of_paths(points)
    check_outputs("probe", own_class_products(output), [location, *points])
    opened, display = open_run(run), display or Display()
    labelled = read_all_points(points, class_field)
    source = _open_raster(opened, location, reading, display)
    options = Options(_domain(opened, display), stride_px, precision)
    with display.bar("probe") as bar:
        record = map_own_classes(opened, source, labelled, output, options, bar.update, display.say)
    for line in (*record.lines(), *record.map.lines()):
        display.say(line)
    display.say(f"map: {output / 'map.tif'}; to label next: {output / NEXT_FILE}")
    return record


def _open_raster(
    run: Run, location: str | Path, reading: Reading | None, display: Display
) -> RasterInput:
    """A raster as a run's input; what was allowed to differ is said."""
    from bharateo.inference.inputs import Reading, open_input

    source = open_input(str(location), run.contract, reading or Reading())
    for field, differs in source.overridden.items():
        display.say(f"allowed: {field}: {differs}")
    return source


def _domain(run: Run, display: Display) -> Domain | None:
    """The run's domain, None where its dataset has gone before it was known."""
    from bharateo.errors import DatasetError
    from bharateo.inference.domain import domain_of

    try:
        with display.bar("domain") as bar:
            return domain_of(run, bar.update)
    except DatasetError as error:
        display.say(f"warning: what is out of the run's domain stays unknown: {error}")
        return None


def embed_for_search(
    run: Run | str | Path,
    location: str | Path,
    folder: str | Path,
    *,
    reading: Reading | None = None,
    display: Display | None = None,
) -> Path:
    """The embedding of a dataset (a table) or raster (a COG) in a folder, made if it is missing."""
    from bharateo.chips.store import DATASET_FILE

    ending = "parquet" if (Path(location) / DATASET_FILE).exists() else "tif"
    output = Path(folder) / f"embedding.{ending}"
    return embed(run, location, output, reading=reading, display=display)[0]


def search(
    embedding: str | Path,
    like: Sequence[tuple[float, float]],
    output: str | Path,
    *,
    count: int = 20,
    away_m: float | None = None,
    display: Display | None = None,
) -> gpd.GeoDataFrame:
    """The places of an embedded area most like some points (longitude, latitude), best first.

    Rank 0 is the place asked for. ``away_m`` is the least distance in metres between places
    (None: two sides of a patch). ``output`` is a folder for ``found.geojson`` and ``sheet.png``.

    Raises:
        ConfigError: a point lies outside the area.
        SourceError: the file is missing or holds no vectors.
    """
    from bharateo.files import write_json
    from bharateo.inference.area import open_area
    from bharateo.inference.search import dataset_of, with_classes
    from bharateo.inference.search import search as find
    from bharateo.outputs import beginning_with, check_outputs, json_of
    from bharateo.report.contact_sheet import SHEET_MARK, write_contact_sheet

    folder, display = Path(output), display or Display()
    places, sheet = folder / "found.geojson", folder / "sheet.png"
    products = {places: json_of("search"), sheet: beginning_with(SHEET_MARK)}
    check_outputs("search", products, [embedding])
    area = open_area(Path(embedding))
    with display.bar("search") as bar:
        found = find(area, like, count, away_m, bar.update)
    if dataset := dataset_of(area):
        found = with_classes(found, dataset)
        counts = found["class"][found["rank"] > 0].value_counts()
        display.say("found: " + ", ".join(f"{num} {name}" for name, num in counts.items()))
    about = {"product": "search", "embedding": dict(area.provenance)}
    write_json(places, found.to_geo_dict(drop_id=True) | about)
    display.say(f"places: {places}")
    if write_contact_sheet(sheet, found, area):
        display.say(f"contact sheet: {sheet}")
    else:
        display.say("no contact sheet: the pixels the vectors are of are not where they were")
    return found


def score_search(run: Path, dataset: Path, folder: Path, k: int, display: Display) -> None:
    """Write and print how often search finds the class it was asked for, on the test split."""
    from bharateo.evaluation.retrieval import retrieval_record, retrieval_rows
    from bharateo.files import write_json
    from bharateo.outputs import check_outputs, json_of

    output = folder / "precision.json"
    check_outputs("search --score", {output: json_of("precision")}, ())
    opened, chips = open_run(run), open_dataset(dataset)
    with display.bar("search --score") as bar:
        record = retrieval_record(opened, chips, "test", k, on_step=bar.update)
    write_json(output, record.model_dump())
    head, rows = retrieval_rows(record)
    display.say(
        f"share of the class among the {k} patches found, on other ground of the test split"
    )
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        display.say("  ".join(cells).rstrip())
    display.say(f"scores: {output}")


def explore(
    run: Run | str | Path,
    output: str | Path,
    *,
    dataset: Dataset | str | Path | None = None,
    raster: str | Path | None = None,
    megabytes: float | None = None,
    reading: Reading | None = None,
    display: Display | None = None,
) -> Path:
    """The page to explore a run in a browser: on its own dataset, another, or a raster.

    A model that makes the folder larger than ``megabytes`` (25) stays out, and the painting too.

    Raises:
        ConfigError: the runtime or onnx is not installed, or ``output`` holds something else.
        ContractError: the ground breaks the run's contract.
        DatasetError: the run's own dataset has gone.
        SourceError: the raster cannot be read.
    """
    from bharateo.explorer.write import MOST_MEGABYTES, write_explorer
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    opened, output, display = open_run(run), Path(output), display or Display()
    ground: Dataset | RasterInput
    if raster is not None:
        ground = _open_raster(opened, raster, reading, display)
    else:
        ground = opened.own_dataset() if dataset is None else open_dataset(dataset)
    with display.bar("explore") as bar:
        page = write_explorer(
            opened, ground, output, bar.update, display.say, megabytes or MOST_MEGABYTES
        )
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    display.say(f"explorer: {page} ({size / 1e6:.1f} MB); open it in a browser")
    return page


def export(
    run: Run | str | Path,
    to: Literal["hub", "timm", "onnx"],
    output: str | Path,
    *,
    what: What = "encoder",
    licence: str | None = None,
    display: Display | None = None,
) -> None:
    """Write a run for other programs: a ``hub`` or ``timm`` folder, or an ``onnx`` file.

    ``what`` goes into an ONNX file; ``licence`` is the weights' on the Hub's card.

    Raises:
        ConfigError: a package that the format needs is not installed, or ``output`` is a run.
        RunError: onnxruntime does not agree with PyTorch; nothing is written.
        StorageError: the disk is full.
    """
    opened, output, display = open_run(run), Path(output), display or Display()
    if to == "hub":
        from bharateo.handover.hub import save_folder

        save_folder(opened, output, licence)
    elif to == "timm":
        from bharateo.handover.timm_weights import write_timm

        write_timm(opened, output)
    else:
        from bharateo.handover.onnx_file import write_onnx

        display.say(f"onnx: exporting the {what}; this takes a minute at most")
        difference = write_onnx(opened, output, what)
        display.say(f"onnxruntime differs from PyTorch by {difference:.1e} of the output at most")
    sensor = opened.sensor
    display.say(f"{to}: {output}, for {', '.join(sensor.band_names)} in {sensor.unit}")
