"""The stages with their progress shown: what the verbs, the demo and people's own programs call.

Runs and datasets are taken open or as their folders, paths as text or ``Path``. Every stage can be
killed and called again, and goes on where it stopped. ``display`` says where progress is shown: on
the terminal or notebook if not given, nowhere with ``Display(quiet=True)``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bharateo.config import Config, DataConfig
from bharateo.display import Display
from bharateo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import geopandas as gpd

    from bharateo.accounting import Accounting
    from bharateo.chips.store import Dataset
    from bharateo.chips.workers import Workers
    from bharateo.embedding.embed import Embedding
    from bharateo.embedding.inputs import RasterInput, Reading
    from bharateo.evaluation.outside import Resize
    from bharateo.handover.onnx_file import What
    from bharateo.mapping.domain import Domain
    from bharateo.planning import Machine, Plan, Request
    from bharateo.sources import Recipe
    from bharateo.training.checkpoint import Run

    Paths = str | Path | Sequence[str | Path]
    """One path or several."""


def _open_run(run: Run | str | Path) -> Run:
    from bharateo.training.checkpoint import Run

    return run if isinstance(run, Run) else Run.open(run)


def _open_dataset(dataset: Dataset | str | Path) -> Dataset:
    from bharateo.chips.store import Dataset

    return dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)


def _paths(paths: Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def _to_score(
    run: Run | str | Path,
    dataset: Dataset | str | Path | None,
    output: str | Path | None,
    name: str,
) -> tuple[Run, Dataset, Path]:
    """A run, the ground to score it on and the file to write, which by default are its own.

    Raises:
        ConfigError: figures of other ground would replace the run's own.
    """
    opened = _open_run(run)
    if output is not None:
        output = Path(output)
    elif dataset is None:
        output = opened.path / name
    else:
        raise ConfigError(
            "a dataset (--dataset) needs a file to write (--output FILE), so that the run's own "
            "figures are not replaced by those of other ground"
        )
    return opened, opened.own_dataset() if dataset is None else _open_dataset(dataset), output


def open_recipe(data: DataConfig, display: Display) -> Recipe:
    """The source named in the configuration, on its ROIs."""
    if data.source == "sample":
        from bharateo.sources.sample import sample_recipe

        return sample_recipe(data.bands, display.say)
    if data.source == "sentinel2":
        from bharateo.sources.sentinel2 import sentinel2_recipe

        return sentinel2_recipe(data)
    if data.source == "geotiff":
        from bharateo.sources.geotiff import geotiff_recipe

        return geotiff_recipe(data)
    from bharateo.regions import parse_roi
    from bharateo.sources.worldcover import worldcover_recipe

    rois = [parse_roi(text) for text in data.rois]
    names = [roi.name for roi in rois]
    if not rois or len({*names}) < len(names):
        raise ConfigError(f"data.rois needs places with different names, got {names}")
    return worldcover_recipe(rois, data.worldcover_root, data.worldcover_year)


def build(
    config: Config,
    output: str | Path,
    display: Display | None = None,
    workers: Workers | None = None,
) -> Dataset:
    """The dataset of a configuration's ``data`` section, built in the folder ``output``.

    Raises:
        ConfigError, RegionError: a place or plan is impossible.
        SourceError: pixels cannot be had.
        BuildError: too many reads failed.
        DatasetError: the folder holds another plan's dataset.
        StorageError: the disk is full.
    """
    from bharateo.chips.build import build as build_chips
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    output, display = Path(output), display or Display()
    recipe = open_recipe(config.data, display)
    with display.bar("build") as bar:
        dataset = build_chips(
            recipe, config.data.plan, output, config.data.seed, bar.update, workers, display.say
        )
    splits = ", ".join(f"{count} {name}" for name, count in dataset.info["splits"].items())
    display.say(f"dataset: {output} ({splits} squares of {dataset.size_px} px)")
    for warning in dataset.info["warnings"]:
        display.say(f"warning: {warning}")
    if failed := dataset.info["failed"]:
        display.say(
            f"warning: {len(failed)} reads failed for good and are left out (see 'failed' in "
            f"{output / 'dataset.json'}); the first: {failed[0]['reason']}"
        )
    return dataset


def dry_run(config: Config, display: Display, mbit: float, num_cores: int) -> None:
    """Print what a build would take at ``mbit`` Mbit/s, without reading a pixel of the image."""
    from bharateo.chips.budget import budget
    from bharateo.chips.build import coarse_look, site_plan
    from bharateo.errors import UnreachableError

    recipe, plan, seed = open_recipe(config.data, display), config.data.plan, config.data.seed
    if plan.strategy not in ("blocks", "files"):
        raise ConfigError(
            f"plan.strategy {plan.strategy!r} chooses its chips by looking at the pixels, so there "
            "is nothing to print beforehand: --dry-run is for the strategies blocks and files"
        )
    look = coarse_look(recipe, plan)
    try:
        layout = site_plan(recipe, plan, seed, look)
    except UnreachableError as error:
        display.say(
            "The labels' overviews cannot be seen, so all ground is taken for land and classes "
            f"are not balanced: {str(error).split(';')[0]}."
        )
        layout = site_plan(recipe, plan, seed)
    display.table("what the build will take", budget(recipe, layout).rows(mbit, num_cores))


def pretrain(
    config: Config,
    dataset: Dataset | str | Path,
    output: str | Path,
    display: Display | None = None,
) -> Run:
    """A run in the folder ``output``: a configuration's model, trained on a dataset's train split.

    Raises:
        ConfigError: a key does not fit the dataset.
        RunError: the folder holds another configuration's run.
        DivergedError: a loss is no number.
        Stopped: by Ctrl-C or SIGTERM, with a checkpoint.
        StorageError: the disk is full.
    """
    from bharateo.training.loop import Progress
    from bharateo.training.loop import pretrain as train

    dataset, output, display = _open_dataset(dataset), Path(output), display or Display()
    with display.bar("pretrain") as bar:

        def show(now: Progress) -> None:
            metrics = now.metrics
            shown = [f"epoch {now.epoch}/{now.num_epochs}", f"loss {metrics['loss']:.3f}"]
            if "masked_mae" in metrics:
                shown.append(f"masked MAE {metrics['masked_mae']:.4f}")
            if "esa_acc_masked" in metrics:
                shown.append(f"masked accuracy {metrics['esa_acc_masked']:.3f}")
            left = f"{int(now.seconds_left) // 60}:{int(now.seconds_left) % 60:02d} left"
            note = "  ".join([*shown, f"{now.chips_per_s:.0f} chips/s", left])
            bar.update(now.step, now.num_steps, note)

        run = train(dataset, config, output, show, display.say)
    display.say(f"run: {output} ({run.contract['num_parameters'] / 1e6:.2f} M parameters)")
    return run


def evaluate(
    run: Run | str | Path,
    dataset: Dataset | str | Path | None = None,
    output: str | Path | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Scores of what a run makes of hidden patches, beside the baselines, as in ``output``.

    Without ``dataset`` the run's own, without ``output`` the run's ``evaluation.json``.

    Raises:
        ConfigError: another dataset is given without ``output``.
        ContractError: the dataset breaks the run's contract.
    """
    from bharateo.evaluation.evaluate import evaluate as score

    opened, ground, output = _to_score(run, dataset, output, "evaluation.json")
    display = display or Display()
    with display.bar("evaluate") as bar:
        record = score(opened, ground, output, bar.update)
    for split, scores in record["splits"].items():
        model, copy = scores["model"], scores["baselines"]["nearest_visible"]
        display.say(f"{split}: masked MAE {_beside(model, copy, 'masked_mae')}, masked class "
                    f"accuracy {_beside(model, copy, 'esa_acc_masked')}")  # fmt: skip
    display.say(f"evaluation: {output}")
    return record


def _beside(model: dict[str, Any], copy: dict[str, Any], metric: str) -> str:
    def shown(value: float | None) -> str:
        return "nothing to measure" if value is None else f"{value:.4f}"

    return f"{shown(model[metric])} (nearest visible token {shown(copy[metric])})"


def evaluate_task(
    run: Run | str | Path,
    folder: str | Path,
    output: str | Path,
    *,
    layout: str | None = None,
    resize: Resize = "bilinear",
    split_file: str | Path | None = None,
    reading: Reading | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Scores of probes of a run's features on labelled chips that others made, as in ``output``.

    ``layout`` (``eurosat`` or ``geobench``; else as the folder looks) says how the chips lie;
    chips of another size are stretched (``bilinear``) or put amid invalid pixels (``pad``).

    Raises:
        DatasetError: the folder is no such task, or the split does not fit it.
        ContractError: bands are missing, or the numbers are of another unit.
    """
    from bharateo.evaluation.outside import HEADER, open_task, rows
    from bharateo.evaluation.outside import evaluate_task as score

    opened, display = _open_run(run), display or Display()
    split = None if split_file is None else Path(split_file)
    task, overridden = open_task(Path(folder), opened, reading, layout, split)
    counts = ", ".join(f"{count} {split}" for split, count in task.counts.items())
    display.say(f"task: {task.folder} ({len(task.classes)} classes; {counts}; {task.found.split})")
    for note in [*task.found.notes, *(f"{field}: {what}" for field, what in overridden.items())]:
        display.say(f"note: {note}")
    with display.bar("evaluate") as bar:
        record = score(opened, task, Path(output), resize, overridden, bar.update)
    display.columns(HEADER, rows(record))
    display.say(f"evaluation: {output}")
    return record


def probe(
    run: Run | str | Path,
    dataset: Dataset | str | Path | None = None,
    output: str | Path | None = None,
    *,
    levels: Sequence[str] = ("patch", "chip"),
    budgets: Sequence[int | Literal["all"]] = (5, 20, 100, "all"),
    features: Sequence[str] | None = None,
    zones: str | Path | None = None,
    zone_field: str | None = None,
    seed: int = 0,
    display: Display | None = None,
) -> dict[str, Any]:
    """Scores of probes of a run's frozen features, beside simpler features, as in ``output``.

    Without ``dataset`` the run's own, without ``output`` the run's ``probes.json``. ``budgets``
    are labels a class; ``features`` are kinds of features (None: all there are); ``zones`` is a
    file of polygons to score one by one, named by its column ``zone_field``.

    Raises:
        ConfigError: a level or a kind of features does not exist, or another dataset is given
            without ``output``.
        ContractError: the dataset breaks the run's contract, or has no train or no test chips.
        RegionError: ``zones`` holds no polygons, or no such column.
    """
    from bharateo.evaluation import probe_table
    from bharateo.evaluation.features import MAKERS
    from bharateo.evaluation.probing import probe_run
    from bharateo.evaluation.zones import Zoning

    opened, ground, output = _to_score(run, dataset, output, "probes.json")
    display = display or Display()
    zoning = Zoning.of(ground, None if zones is None else Path(zones), zone_field)
    with display.bar("probe") as bar:
        record = probe_run(
            opened, ground, output, levels=levels, budgets=budgets,
            features=tuple(MAKERS) if features is None else features, zoning=zoning, seed=seed,
            on_step=bar.update,
        )  # fmt: skip
    for level, why in record["skipped"].items():
        display.say(f"no {level} is probed: {why}")
    for title, header, rows in probe_table.text_tables(record):
        display.columns(header, rows, title)
    for sentence in probe_table.sentences(record):
        display.say(sentence)
    display.say(f"probes: {output}")
    return record


def ablate(
    config: Config,
    dataset: Dataset | str | Path,
    output: str | Path,
    *,
    vary: Sequence[str] = (),
    full: bool = False,
    seeds: int | None = None,
    quick: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """The table of a grid of trainings, each with something of the configuration changed.

    ``vary`` are texts ``KEY=VALUE,VALUE`` (none: the land-cover loss and the bands), changed one
    at a time or in every combination (``full``), with 3 ``seeds`` each. ``quick`` is the smallest
    grid: with land-cover labels and without, 2 seeds, at most ten epochs.

    Raises:
        ConfigError: a key or value does not exist, or no seed is asked for.
        RunError: the folder holds another ablation.
        ContractError: the dataset has no test ground.
    """
    from bharateo.evaluation import ablation
    from bharateo.evaluation.comparison import explained, header, rows

    seeds = (2 if quick else 3) if seeds is None else seeds
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: give at least 1")
    dataset, output, display = _open_dataset(dataset), Path(output), display or Display()
    factors = ablation.default_factors(dataset)
    if quick:
        config, factors = ablation.quick(config)
    if vary:
        factors = [ablation.Factor.parse(text) for text in vary]
    cells = ablation.grid(config, dataset, factors, full)
    display.say(f"ablate: {len(cells)} cells x {seeds} seeds = {len(cells) * seeds} trainings")
    with display.bar("ablate") as bar:
        record = ablation.ablate(cells, dataset, output, seeds, bar.update)
    display.columns(header(record["factors"]), rows(record))
    display.say(explained(record))
    display.say(f"table: {output / 'ablation.md'}")
    return record


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
    from bharateo.embedding.embed import Embedding, embed_dataset, embed_raster
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    opened, outputs, how = _open_run(run), _paths(outputs), how or Embedding()
    display = display or Display()
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
) -> dict[str, Any]:
    """The record of a map of a raster or STAC item, by a run's land-cover head or by a ``probe``.

    ``against`` are labels to compare with: a raster, ``worldcover``, or where its tiles lie;
    ``stride_px`` is the side of a cell of the map (None: the patch size).

    Raises:
        ConfigError: an option does not fit.
        ContractError: the raster breaks the run's contract.
        RunError: the run has no land-cover head, or the probe is not of this run.
        SourceError: the raster or the labels cannot be read.
    """
    from bharateo.mapping.classifier import head_classifier, probe_classifier
    from bharateo.mapping.labels import open_labels
    from bharateo.mapping.map import Request, write_map
    from bharateo.mapping.summary import map_lines
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    opened, output, display = _open_run(run), Path(output), display or Display()
    classifier = head_classifier(opened) if probe is None else probe_classifier(opened, Path(probe))
    labels = None if against is None else open_labels(against)
    source = _open_raster(opened, location, reading, display)
    domain = _domain(opened, display)
    request = Request(classifier, domain, labels, stride_px, precision)
    with display.bar("map") as bar:
        record = write_map(opened, source, output, request, bar.update, display.say)
    for line in map_lines(record):
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
) -> dict[str, Any]:
    """The record of a probe on a person's own points, and of the map it makes of a raster.

    ``points`` are files of points with their classes in ``class_field`` (None: a column of a
    usual name); ``output`` is a folder.

    Raises:
        ConfigError: the points cannot be used.
        ContractError: the raster breaks the run's contract.
        SourceError: the raster cannot be read.
    """
    from bharateo.mapping.own_classes import NEXT_FILE, Options, map_own_classes
    from bharateo.mapping.points import read_all_points
    from bharateo.mapping.summary import map_lines, probe_lines
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    opened, output, display = _open_run(run), Path(output), display or Display()
    labelled = read_all_points(_paths(points), class_field)
    source = _open_raster(opened, location, reading, display)
    options = Options(_domain(opened, display), stride_px, precision)
    with display.bar("probe") as bar:
        record = map_own_classes(opened, source, labelled, output, options, bar.update, display.say)
    for line in (*probe_lines(record), *map_lines(record["map"])):
        display.say(line)
    display.say(f"map: {output / 'map.tif'}; to label next: {output / NEXT_FILE}")
    return record


def _open_raster(
    run: Run, location: str | Path, reading: Reading | None, display: Display
) -> RasterInput:
    """A raster as a run's input; what was allowed to differ is said."""
    from bharateo.embedding.inputs import Reading, open_input

    source = open_input(str(location), run.contract, reading or Reading())
    for field, differs in source.overridden.items():
        display.say(f"allowed: {field}: {differs}")
    return source


def _domain(run: Run, display: Display) -> Domain | None:
    """The run's domain, None where its dataset has gone before it was known."""
    from bharateo.errors import DatasetError
    from bharateo.mapping.domain import domain_of

    try:
        with display.bar("domain") as bar:
            return domain_of(run, bar.update)
    except DatasetError as error:
        display.say(f"warning: what is out of the run's domain stays unknown: {error}")
        return None


def write_report(run: Run | str | Path, display: Display | None = None) -> Path:
    """The path of the report of a run, which is evaluated first if that has not been done.

    Raises:
        RunError: the folder holds no finished run.
        DatasetError: the evaluated dataset has gone.
    """
    from bharateo.report import write_report as draw

    folder = Path(run) if isinstance(run, str | Path) else run.path
    display = display or Display()
    if not (folder / "evaluation.json").exists():
        evaluate(run, display=display)
    display.say("report: drawing")
    path = draw(folder)
    display.say(f"report: {path}")
    return path


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
    opened, output, display = _open_run(run), Path(output), display or Display()
    ground: Dataset | RasterInput
    if raster is not None:
        ground = _open_raster(opened, raster, reading, display)
    else:
        ground = opened.own_dataset() if dataset is None else _open_dataset(dataset)
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
    opened, output, display = _open_run(run), Path(output), display or Display()
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
    from bharateo.mapping.area import open_area
    from bharateo.mapping.search import dataset_of, with_classes
    from bharateo.mapping.search import search as find
    from bharateo.report.contact_sheet import write_contact_sheet

    area, folder, display = open_area(Path(embedding)), Path(output), display or Display()
    with display.bar("search") as bar:
        found = find(area, like, count, away_m, bar.update)
    if dataset := dataset_of(area):
        found = with_classes(found, dataset)
        counts = found["class"][found["rank"] > 0].value_counts()
        display.say("found: " + ", ".join(f"{num} {name}" for name, num in counts.items()))
    record = found.to_geo_dict(drop_id=True) | {"embedding": dict(area.provenance)}
    write_json(folder / "found.geojson", record)
    display.say(f"places: {folder / 'found.geojson'}")
    if write_contact_sheet(folder / "sheet.png", found, area):
        display.say(f"contact sheet: {folder / 'sheet.png'}")
    else:
        display.say("no contact sheet: the pixels the vectors are of are not where they were")
    return found


def score_search(run: Path, dataset: Path, folder: Path, k: int, display: Display) -> None:
    """Write and print how often search finds the class it was asked for, on the test split."""
    from bharateo.evaluation.retrieval import retrieval_record, retrieval_rows
    from bharateo.files import write_json

    opened, chips = _open_run(run), _open_dataset(dataset)
    with display.bar("search --score") as bar:
        record = retrieval_record(opened, chips, "test", k, on_step=bar.update)
    write_json(folder / "precision.json", record)
    head, rows = retrieval_rows(record)
    display.say(
        f"share of the class among the {k} patches found, on other ground of the test split"
    )
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        display.say("  ".join(cells).rstrip())
    display.say(f"scores: {folder / 'precision.json'}")


def tokens(
    run: str | Path | None = None,
    account: Accounting | None = None,
    request: Request | None = None,
    display: Display | None = None,
) -> None:
    """Print the account of a run, of given numbers, or of the two published runs.

    With a ``request`` for a plan: what its model takes for that account.

    Raises:
        RunError: the folder holds no finished run.
    """
    from bharateo.accounting import Accounting, published

    bytes_per_value, display = 2, display or Display()
    if run is not None:
        from bharateo.training.checkpoint import read_contract

        contract = read_contract(Path(run))
        bytes_per_value = 1 if contract["sensor"]["dtype"] == "uint8" else 2
        accounts = {str(run): Accounting.of_run(contract)}
    elif account is not None:
        accounts = {"as given": account}
    else:
        accounts = dict(published())
    for title, each in accounts.items():
        if request is None:
            display.table(title, each.rows())
        else:
            plan = request.plan(each, bytes_per_value)
            if request.machine == "this":
                plan = replace(plan, machine=_measured(plan, display))
            display.table(f"{title}, {request.size} model", plan.rows())


def _measured(plan: Plan, display: Display) -> Machine:
    """This machine, at the training of a plan."""
    from bharateo.planning import measured_machine
    from bharateo.training.engine import open_engine
    from bharateo.training.speed import measure

    display.say("Measuring this machine: a few seconds, or five steps where those take longer.")
    with open_engine(plan.config) as engine:
        speed = measure(plan.config, plan.num_bands, engine)
    machine = measured_machine(**vars(speed), flops=plan.layers.flops)
    display.say(
        f"Measured: {speed.chips_per_s:,.4g} chips/s in batches of "
        f"{plan.config.training.batch_size:,}, {machine.share * speed.peak / 1e9:,.4g} GFLOP/s, "
        f"{100 * machine.share:.3g} % of the {speed.peak / 1e9:,.4g} GFLOP/s that a large "
        f"{speed.precision} product reaches."
    )
    if machine.watts is None and plan.watts is None:
        display.say("Its power is not known: add --watts W for energy and CO2.")
    return machine
