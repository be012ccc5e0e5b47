"""The stages with their progress shown: what the verbs and the demo both call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bharateo.config import Config, DataConfig
from bharateo.display import Display
from bharateo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bharateo.accounting import Accounting
    from bharateo.chips.store import Dataset
    from bharateo.chips.workers import Workers
    from bharateo.embedding.embed import Embedding
    from bharateo.embedding.inputs import RasterInput, Reading
    from bharateo.evaluation.ablation import Cell
    from bharateo.evaluation.outside import Resize, Task
    from bharateo.handover.onnx_file import What
    from bharateo.mapping.domain import Domain
    from bharateo.planning import Machine, Plan, Request
    from bharateo.sources import Recipe
    from bharateo.training.checkpoint import Run


def open_recipe(data: DataConfig) -> Recipe:
    """The source named in the configuration, on its ROIs."""
    if data.source == "sample":
        from bharateo.sources.sample import sample_recipe

        return sample_recipe(data.bands)
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
    config: Config, output: Path, display: Display, workers: Workers | None = None
) -> Dataset:
    """Build the dataset of a configuration."""
    from bharateo.chips.build import build as build_chips
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    recipe = open_recipe(config.data)
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
    """Print what a build would take, without reading a pixel of the image."""
    from bharateo.chips.budget import budget
    from bharateo.chips.build import coarse_look, site_plan
    from bharateo.errors import UnreachableError

    recipe, plan, seed = open_recipe(config.data), config.data.plan, config.data.seed
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


def pretrain(config: Config, dataset: Dataset, output: Path, display: Display) -> Run:
    """Train the model of a configuration."""
    from bharateo.training.loop import Progress
    from bharateo.training.loop import pretrain as train

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


def evaluate(run: Run, dataset: Dataset, output: Path, display: Display) -> dict[str, Any]:
    """Evaluate a run and print how it stands against the nearest visible token."""
    from bharateo.evaluation.evaluate import evaluate as score

    with display.bar("evaluate") as bar:
        record = score(run, dataset, output, bar.update)
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
    run: Run,
    task: Task,
    output: Path,
    resize: Resize,
    overridden: Mapping[str, str],
    display: Display,
) -> dict[str, Any]:
    """Probe a run on labelled chips that others made, and print the table."""
    from bharateo.evaluation.outside import HEADER, rows
    from bharateo.evaluation.outside import evaluate_task as score

    counts = ", ".join(f"{count} {split}" for split, count in task.counts.items())
    display.say(f"task: {task.folder} ({len(task.classes)} classes; {counts}; {task.found.split})")
    for note in [*task.found.notes, *(f"{field}: {what}" for field, what in overridden.items())]:
        display.say(f"note: {note}")
    with display.bar("evaluate") as bar:
        record = score(run, task, output, resize, overridden, bar.update)
    display.columns(HEADER, rows(record))
    display.say(f"evaluation: {output}")
    return record


def probe(run: Run, dataset: Dataset, output: Path, display: Display, **how: Any) -> dict[str, Any]:
    """Probe a run's frozen features and print the tables; ``how`` is that of ``probe_run``."""
    from bharateo.evaluation import probe_table
    from bharateo.evaluation.probing import probe_run

    with display.bar("probe") as bar:
        record = probe_run(run, dataset, output, on_step=bar.update, **how)
    for level, why in record["skipped"].items():
        display.say(f"no {level} is probed: {why}")
    for title, header, rows in probe_table.text_tables(record):
        display.columns(header, rows, title)
    for sentence in probe_table.sentences(record):
        display.say(sentence)
    display.say(f"probes: {output}")
    return record


def ablate(
    cells: Sequence[Cell], dataset: Dataset, output: Path, seeds: int, display: Display
) -> dict[str, Any]:
    """Train and score a grid of configurations and print the table."""
    from bharateo.evaluation.ablation import ablate as compare
    from bharateo.evaluation.comparison import explained, header, rows

    display.say(f"ablate: {len(cells)} cells x {seeds} seeds = {len(cells) * seeds} trainings")
    with display.bar("ablate") as bar:
        record = compare(cells, dataset, output, seeds, bar.update)
    display.columns(header(record["factors"]), rows(record))
    display.say(explained(record))
    display.say(f"table: {output / 'ablation.md'}")
    return record


def embed(
    run: Run,
    location: str,
    outputs: Sequence[Path],
    how: Embedding,
    reading: Reading,
    display: Display,
) -> None:
    """Write a run's vectors of a raster, a STAC item or a dataset."""
    from bharateo.chips.store import DATASET_FILE, Dataset
    from bharateo.embedding.embed import embed_dataset, embed_raster
    from bharateo.embedding.inputs import open_input
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    with display.bar("embed") as bar:
        if (Path(location) / DATASET_FILE).exists():
            dataset = Dataset.open(location)
            embed_dataset(run, dataset, outputs, how, bar.update, display.say)
        else:
            source = open_input(location, run.contract, reading)
            for field, differs in source.overridden.items():
                display.say(f"allowed: {field}: {differs}")
            embed_raster(run, source, outputs, how, bar.update, display.say)
    for output in outputs:
        display.say(f"embedding: {output}")


def map_raster(
    run: Run,
    location: str,
    output: Path,
    reading: Reading,
    display: Display,
    probe: Path | None = None,
    against: str | None = None,
    stride_px: int | None = None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Map a raster, by a run's land-cover head or by a probe, and print what covers how much."""
    from bharateo.mapping.classifier import head_classifier, probe_classifier
    from bharateo.mapping.labels import open_labels
    from bharateo.mapping.map import Request, write_map
    from bharateo.mapping.summary import map_lines
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    classifier = head_classifier(run) if probe is None else probe_classifier(run, probe)
    labels = None if against is None else open_labels(against)
    source = _open_raster(run, location, reading, display)
    domain = _domain(run, display)
    request = Request(classifier, domain, labels, stride_px, precision)
    with display.bar("map") as bar:
        record = write_map(run, source, output, request, bar.update, display.say)
    for line in map_lines(record):
        display.say(line)
    display.say(f"map: {output}")
    return record


def probe_points(
    run: Run,
    location: str,
    points: Sequence[Path],
    output: Path,
    reading: Reading,
    display: Display,
    class_field: str | None = None,
    stride_px: int | None = None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Fit a probe on a person's points, map a raster with it, and print how good it will be."""
    from bharateo.mapping.own_classes import NEXT_FILE, Options, map_own_classes
    from bharateo.mapping.points import read_all_points
    from bharateo.mapping.summary import map_lines, probe_lines
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    labelled = read_all_points(points, class_field)
    source = _open_raster(run, location, reading, display)
    options = Options(_domain(run, display), stride_px, precision)
    with display.bar("probe") as bar:
        record = map_own_classes(run, source, labelled, output, options, bar.update, display.say)
    for line in (*probe_lines(record), *map_lines(record["map"])):
        display.say(line)
    display.say(f"map: {output / 'map.tif'}; to label next: {output / NEXT_FILE}")
    return record


def _open_raster(run: Run, location: str, reading: Reading, display: Display) -> RasterInput:
    """A raster as a run's input; what was allowed to differ is said."""
    from bharateo.embedding.inputs import open_input

    source = open_input(location, run.contract, reading)
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


def report(run: Path, display: Display) -> Path:
    """Write the report of an evaluated run."""
    from bharateo.report import write_report

    display.say("report: drawing")
    path = write_report(run)
    display.say(f"report: {path}")
    return path


def export(
    run: Path, to: str, output: Path, display: Display, what: What, licence: str | None
) -> None:
    """Write a run for other programs: a ``hub`` or ``timm`` folder, or an ``onnx`` file."""
    from bharateo.training.checkpoint import Run

    opened = Run.open(run)
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
    run: Path, location: str, folder: Path, reading: Reading, display: Display
) -> Path:
    """The embedding of a dataset (a table) or raster (a COG) in a folder, made if it is missing."""
    from bharateo.chips.store import DATASET_FILE
    from bharateo.embedding.embed import Embedding
    from bharateo.training.checkpoint import Run

    ending = "parquet" if (Path(location) / DATASET_FILE).exists() else "tif"
    output = folder / f"embedding.{ending}"
    embed(Run.open(run), location, [output], Embedding(), reading, display)
    return output


def search(
    embedding: Path,
    like: Sequence[tuple[float, float]],
    count: int,
    away_m: float | None,
    folder: Path,
    display: Display,
) -> None:
    """Write the places most like some points (longitude, latitude) of an embedded area."""
    from bharateo.files import write_json
    from bharateo.mapping.area import open_area
    from bharateo.mapping.search import dataset_of, with_classes
    from bharateo.mapping.search import search as find
    from bharateo.report.contact_sheet import write_contact_sheet

    area = open_area(embedding)
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


def score_search(run: Path, dataset: Path, folder: Path, k: int, display: Display) -> None:
    """Write and print how often search finds the class it was asked for, on the test split."""
    from bharateo.chips.store import Dataset
    from bharateo.evaluation.retrieval import retrieval_record, retrieval_rows
    from bharateo.files import write_json
    from bharateo.training.checkpoint import Run

    opened, chips = Run.open(run), Dataset.open(dataset)
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
    run: Path | None, account: Accounting | None, display: Display, request: Request | None = None
) -> None:
    """Print the account of a run, of given numbers, or of the two published runs.

    With a request: the plan of its model for that account.
    """
    from bharateo.accounting import Accounting, published

    bytes_per_value = 2
    if run is not None:
        from bharateo.training.checkpoint import read_contract

        contract = read_contract(run)
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
