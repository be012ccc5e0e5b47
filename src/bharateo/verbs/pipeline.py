"""From a configuration to a report: build, pretrain, evaluate, report."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bharateo.errors import ConfigError
from bharateo.verbs.arguments import (
    ConfigLike,
    DatasetLike,
    MaybeDevice,
    MaybeDisplay,
    MaybeOutput,
    Output,
    PathLike,
    Places,
    RunLike,
    Settings,
    open_config,
    open_dataset,
    open_run,
)

if TYPE_CHECKING:
    from bharateo.chips.store import Dataset
    from bharateo.config import Config
    from bharateo.display import Display
    from bharateo.results import Evaluation
    from bharateo.training.run import Run


def build(
    config: ConfigLike,
    output: MaybeOutput = None,
    display: MaybeDisplay = None,
    *,
    dry_run: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    mbit: float = 200.0,
    aoi: PathLike | None = None,
    worldcover_root: str | None = None,
    roi: Places = (),
    settings: Settings = (),
) -> Dataset:
    """A configuration into a dataset folder.

    Reads the regions of a configuration and stores their chips, labels and splits.

      bharateo build configs/v0.yaml --output datasets/v0
      bharateo build configs/sentinel2-10band.yaml --roi pune=73.86,18.52 --dry-run
      bharateo build configs/sentinel2-rgb.yaml --aoi district.geojson -o datasets/d
      bharateo build configs/india-v0.yaml --output /shared/india \\
          --scheduler tcp://head:8786

    Args:
        config: a YAML file; see configs/
        output: the dataset folder to make or to go on with
        dry_run: print sites, requests, bytes, disk and hours, and build nothing
        workers: processes that read (default: one a core, fewer for little work)
        scheduler: let the workers of this Dask scheduler read, e.g. tcp://head:8786
        mbit: --dry-run: the network's speed in Mbit/s
        aoi: Sentinel-2: polygons to sample from (GeoJSON, GeoPackage), instead of the
            configuration's places
        worldcover_root: where WorldCover tiles lie: a folder, an http(s) URL or an s3 URL that
            holds v200/2021/map/... (default: $BHARATEO_WORLDCOVER_ROOT, else the public bucket)
        roi: a place to sample from, as NAME=LON,LAT[,SIZE_PX] or NAME=WEST,SOUTH,EAST,NORTH or a
            known name (delhi_ncr, shekhawati, mathura_belt); repeat for several (instead of the
            configuration's)
        settings: override one key of the configuration, e.g. training.lr=0.001; repeat for
            several

    Returns:
        The dataset; None from a dry run.

    Raises:
        ConfigError, RegionError: a place or plan is impossible.
        SourceError: pixels cannot be had.
        BuildError: too many reads failed.
        DatasetError: the folder holds another plan's dataset.
        StorageError: the disk is full.
    """
    from bharateo.chips.build import build as build_chips
    from bharateo.chips.workers import Workers
    from bharateo.config import section_to_yaml
    from bharateo.display import Display
    from bharateo.memory import return_freed_memory
    from bharateo.sources import open_recipe

    config, display = open_config(config, settings), display or Display()
    data = config.data
    if roi or aoi:
        data = replace(data, rois=tuple(roi), aoi=str(aoi) if aoi else None,
                       mgrs_tiles=(), worldcover_tiles=())  # fmt: skip
    if worldcover_root:
        data = replace(data, worldcover_root=worldcover_root)
    config = replace(config, data=data)
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: give at least 1")
    if dry_run:
        _dry_run(config, display, mbit, workers or os.cpu_count() or 1)
        return None  # type: ignore[return-value]  # only to those who ask for nothing
    if output is None:
        raise ConfigError(
            "--output is missing: name the dataset folder to make or to go on with, e.g. --output "
            f"datasets/{'-'.join(place.partition('=')[0] for place in roi) or data.source}"
        )
    return_freed_memory()
    output, recipe = Path(output), open_recipe(data, display.say)
    with display.bar("build") as bar:
        dataset = build_chips(
            recipe, data.plan, output, data.seed, bar.update, Workers(workers, scheduler),
            display.say,
            # A training's configuration has a ``data`` section too, which need not be this one.
            recipe_text=section_to_yaml(config, "data"),
        )  # fmt: skip
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


def _dry_run(config: Config, display: Display, mbit: float, num_cores: int) -> None:
    """Print what a build would take, without reading a pixel of the image."""
    from bharateo.chips.budget import budget
    from bharateo.chips.build import coarse_look
    from bharateo.chips.layouts import LAYOUTS, lay_out
    from bharateo.errors import UnreachableError
    from bharateo.sources import open_recipe

    recipe, plan, seed = open_recipe(config.data, display.say), config.data.plan, config.data.seed
    if LAYOUTS[plan.strategy].by_pixels:
        raise ConfigError(
            f"plan.strategy {plan.strategy!r} chooses its chips by looking at the pixels, so there "
            "is nothing to print beforehand: --dry-run is for the strategies blocks and files"
        )
    look, occasions = coarse_look(recipe, plan), recipe.image.occasion_names
    try:
        layout = lay_out(recipe.regions, plan, seed, occasions, look)
    except UnreachableError as error:
        display.say(
            "The labels' overviews cannot be seen, so all ground is taken for land and classes "
            f"are not balanced: {str(error).split(';')[0]}."
        )
        layout = lay_out(recipe.regions, plan, seed, occasions)
    display.table("what the build will take", budget(recipe, layout).rows(mbit, num_cores))


def pretrain(
    config: ConfigLike,
    dataset: DatasetLike,
    output: Output,
    display: MaybeDisplay = None,
    *,
    epochs: int | None = None,
    seed: int | None = None,
    settings: Settings = (),
    device: MaybeDevice = None,
) -> Run:
    """A dataset into a trained run.

    Trains the configuration's model on the train split of a dataset. Stop it with Ctrl-C or
    SIGTERM, and run it again: it goes on from the step it was at, also on another number of
    processes. Sizes: --set model.size=nano|tiny|small|base. The `machine` section of the
    configuration says how processors, memory and disks are used.

      bharateo pretrain configs/v0.yaml --dataset datasets/v0 --output runs/v0
      torchrun --nproc-per-node 8 -m bharateo pretrain configs/v0.yaml \\
          --dataset datasets/v0 --output runs/base --set model.size=base

    Args:
        config: a YAML file; see configs/
        dataset: a folder made by build
        output: the run folder to make or to go on with
        epochs: epochs to train (default: the configuration's)
        seed: seed of every random draw (default: the configuration's)
        settings: override one key of the configuration, e.g. training.lr=0.001; repeat for
            several

    Raises:
        ConfigError: a key does not fit the dataset.
        RunError: the folder holds another configuration's run.
        DivergedError: a loss is no number.
        Stopped: by Ctrl-C or SIGTERM, with a checkpoint.
        StorageError: the disk is full.
    """
    from bharateo.display import Display
    from bharateo.training.loop import pretrain as train

    given = {"training.epochs": epochs, "training.seed": seed, "machine.device": device}
    config = open_config(
        config,
        [*settings, *(f"{key}={value}" for key, value in given.items() if value is not None)],
    )
    dataset, output, display = open_dataset(dataset), Path(output), display or Display()
    with display.bar("pretrain") as bar:
        run = train(dataset, config, output, bar.update, display.say)
    display.say(f"run: {output} ({run.contract.num_parameters / 1e6:.2f} M parameters)")
    return run


def evaluate(
    run: RunLike,
    dataset: DatasetLike | None = None,
    output: MaybeOutput = None,
    display: MaybeDisplay = None,
    *,
    device: MaybeDevice = None,
) -> Evaluation:
    """Score a run beside the baselines, on its own dataset or another.

    Scores what a run makes of hidden patches, per split and per region, with block-bootstrap
    intervals. What its frozen features are worth is the verb `probe`.

      bharateo evaluate runs/v0
      bharateo evaluate runs/v0 --dataset datasets/elsewhere --output elsewhere.json

    Args:
        run: a folder made by pretrain
        dataset: score on this dataset instead of the run's own
        output: the JSON file to write (default: RUN/evaluation.json; needed with --dataset)

    Returns:
        What the file holds.

    Raises:
        ConfigError: another dataset is given without ``output``.
        ContractError: the dataset breaks the run's contract.
    """
    from bharateo.display import Display
    from bharateo.evaluation.evaluate import evaluate as score

    opened, ground, output = to_score("evaluate", run, dataset, output, "evaluation.json", device)
    display = display or Display()
    with display.bar("evaluate") as bar:
        record = score(opened, ground, output, bar.update)

    def shown(value: float | None) -> str:
        return "nothing to measure" if value is None else f"{value:.4f}"

    for split, scores in record.splits.items():
        model, copy = scores.model, scores.baselines["nearest_visible"]
        beside = (
            f"{metric.phrase or metric.title} {shown(model.value(metric.name))} "
            f"(nearest visible token {shown(copy.value(metric.name))})"
            for metric in record.metrics
            if metric.against
        )
        display.say(f"{split}: {', '.join(beside)}")
    display.say(f"evaluation: {output}")
    return record


def to_score(
    verb: str,
    run: RunLike,
    dataset: DatasetLike | None,
    output: MaybeOutput,
    name: str,
    device: MaybeDevice = None,
) -> tuple[Run, Dataset, Path]:
    """A run, the ground to score it on and the file to write, which by default are its own.

    Raises:
        ConfigError: figures of other ground would replace the run's own, or ``output`` is
            something else than such figures.
    """
    from bharateo.outputs import check_outputs, json_with

    opened = open_run(run, device)
    if output is None and dataset is not None:
        raise ConfigError(
            "a dataset (--dataset) needs a file to write, so that the run's own figures are not "
            f"replaced by those of other ground: --output {Path(verb).with_suffix('.json')}"
        )
    path = opened.path / name if output is None else Path(output)
    figures = {"evaluation.json": "splits", "probes.json": "levels"}
    check_outputs(verb, {path: json_with(figures[name])}, opened.own_files)
    return opened, opened.own_dataset() if dataset is None else open_dataset(dataset), path


def write_report(run: RunLike, display: MaybeDisplay = None) -> Path:
    """A run into one self-contained HTML page.

    Writes RUN/report.html: where the pixels come from, what was learnt, how well. Evaluates the
    run first if that has not been done.

      bharateo report runs/v0

    Args:
        run: a folder made by pretrain

    Returns:
        The page's path.

    Raises:
        RunError: the folder holds no finished run.
        DatasetError: the evaluated dataset has gone.
    """
    from bharateo.display import Display
    from bharateo.report import write_report as draw

    folder = Path(run) if isinstance(run, str | Path) else run.path
    display = display or Display()
    if not (folder / "evaluation.json").exists():
        evaluate(run, display=display)
    display.say("report: drawing")
    path = draw(folder)
    display.say(f"report: {path}")
    return path
