"""The way from a configuration to a report: demo, build, pretrain, evaluate, report."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from bharateo.cli.outside import add_task_options, evaluate_task
from bharateo.cli.probing import add_probe_options, evaluate_features
from bharateo.cli.verbs import FIRST_RANK, ROI_HELP, ROOT_HELP, SET_HELP, Verbs, add_verb


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    _add_demo(verbs)
    _add_build(verbs)
    _add_pretrain(verbs)
    _add_evaluate(verbs)
    _add_report(verbs)


def _add_demo(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        _demo,
        "demo",
        "the whole way: pixels, dataset, training, evaluation, report",
        "Build a dataset, train a masked autoencoder on it, evaluate it and write a report.\n"
        "Reads ESA WorldCover where it answers within seconds, else the packaged sample.\n\n"
        "  bharateo demo\n"
        "  bharateo demo --roi pune=73.86,18.52 --output runs/pune\n"
        "  bharateo demo --preset sample --output runs/sentinel2\n"
        "  bharateo demo --preset seed --output runs/seed",
    )
    parser.add_argument("--preset", choices=("v0", "seed", "sample"), default="v0",
                        help="v0: our model on held-out ground; seed: the first experiment as "
                        "published; sample: v0 on the packaged ten-band Sentinel-2 scene, which "
                        "can map rasters (default: v0)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR",
                        help="gets dataset/ and run/ with run/report.html "
                        "(default: runs/demo)")  # fmt: skip
    parser.add_argument("--worldcover-root", metavar="ROOT", help=ROOT_HELP)
    parser.add_argument("--roi", action="append", default=[], metavar="ROI", help=ROI_HELP)
    _add_epochs_and_seed(parser)


_BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    "--dry-run": {
        "action": "store_true",
        "help": "print sites, requests, bytes, disk and hours, and build nothing",
    },
    "--workers": {
        "type": int,
        "metavar": "N",
        "help": "processes that read (default: one a core, fewer for little work)",
    },
    "--scheduler": {
        "metavar": "ADDRESS",
        "help": "let the workers of this Dask scheduler read, e.g. tcp://head:8786",
    },
    "--mbit": {
        "type": float,
        "default": 200.0,
        "metavar": "MBIT_S",
        "help": "--dry-run: the network's speed in Mbit/s (default: 200)",
    },
    "--aoi": {
        "type": Path,
        "metavar": "FILE",
        "help": "Sentinel-2: polygons to sample from (GeoJSON, GeoPackage), instead of the "
        "configuration's places",
    },
}


def _add_build(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        _build,
        "build",
        "a configuration into a dataset folder",
        "Read the regions of a configuration and store their chips, labels and splits.\n\n"
        "  bharateo build configs/v0.yaml --output datasets/v0\n"
        "  bharateo build configs/sentinel2-10band.yaml --roi pune=73.86,18.52 --dry-run\n"
        "  bharateo build configs/sentinel2-rgb.yaml --aoi district.geojson --output datasets/d\n"
        "  bharateo build configs/india-v0.yaml --output /shared/india --scheduler tcp://head:8786",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file; see configs/")
    parser.add_argument("--output", type=Path, metavar="DATASET",
                        help="the dataset folder to make or to go on with")  # fmt: skip
    for option, settings in _BUILD_OPTIONS.items():
        parser.add_argument(option, **settings)
    parser.add_argument("--worldcover-root", metavar="ROOT", help=ROOT_HELP)
    parser.add_argument("--roi", action="append", default=[], metavar="ROI",
                        help=ROI_HELP + " (instead of the configuration's)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET_HELP)


def _add_pretrain(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        _pretrain,
        "pretrain",
        "a dataset into a trained run",
        "Train the configuration's model on the train split of a dataset. Stop it with Ctrl-C or\n"
        "SIGTERM, and run it again: it goes on from the step it was at, also on another number of\n"
        "processes. Sizes: --set model.size=nano|tiny|small|base. The `machine` section of the\n"
        "configuration says how processors, memory and disks are used.\n\n"
        "  bharateo pretrain configs/v0.yaml --dataset datasets/v0 --output runs/v0\n"
        "  torchrun --nproc-per-node 8 -m bharateo pretrain configs/v0.yaml \\\n"
        "      --dataset datasets/v0 --output runs/base --set model.size=base",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file; see configs/")
    parser.add_argument("--dataset", type=Path, required=True, help="a folder made by build")
    parser.add_argument("--output", type=Path, required=True, metavar="RUN",
                        help="the run folder to make or to go on with")  # fmt: skip
    _add_epochs_and_seed(parser)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET_HELP)


def _add_evaluate(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        _evaluate,
        "evaluate",
        "score a run beside the baselines, on its own dataset or another",
        "Score a run per split and per region, with block-bootstrap intervals: what it makes of\n"
        "hidden patches, or what its frozen features are worth.\n\n"
        "  bharateo evaluate runs/v0\n"
        "  bharateo evaluate runs/v0 --dataset datasets/elsewhere --output elsewhere.json\n"
        "  bharateo evaluate runs/v0 --probe",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder made by pretrain")
    parser.add_argument("--dataset", type=Path, metavar="OTHER",
                        help="score on this dataset instead of the run's own")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="the JSON file to write (default: RUN/evaluation.json, with --probe "
                        "RUN/probes.json; needed with --dataset)")  # fmt: skip
    add_probe_options(parser)
    add_task_options(parser)


def _add_report(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        _report,
        "report",
        "a run into one self-contained HTML page",
        "Write RUN/report.html: where the pixels come from, what was learnt, how well.\n"
        "Evaluates the run first if that has not been done.\n\n"
        "  bharateo report runs/v0",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder made by pretrain")


def _add_epochs_and_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, help="epochs to train (default: the preset's)")
    parser.add_argument("--seed", type=int, help="seed of every random draw (default: 42)")


def _demo(options: argparse.Namespace) -> None:
    from bharateo.demo import demo
    from bharateo.display import Display

    demo(
        options.output,
        Display(),
        options.preset,
        options.worldcover_root,
        options.roi,
        options.epochs,
        options.seed,
    )


def _build(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.chips.workers import Workers
    from bharateo.config import load_config
    from bharateo.display import Display
    from bharateo.errors import ConfigError

    config = load_config(options.config, options.set)
    data = config.data
    if options.roi or options.aoi:
        data = replace(data, rois=tuple(options.roi), aoi=options.aoi and str(options.aoi),
                       mgrs_tiles=(), worldcover_tiles=())  # fmt: skip
    if options.worldcover_root:
        data = replace(data, worldcover_root=options.worldcover_root)
    config = replace(config, data=data)
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: give at least 1")
    if options.dry_run:
        stages.dry_run(config, Display(), options.mbit, options.workers or os.cpu_count() or 1)
    elif options.output is None:
        raise ConfigError("--output is missing: name the dataset folder to make or to go on with")
    else:
        workers = Workers(options.workers, options.scheduler)
        stages.build(config, options.output, Display(), workers)


def _pretrain(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.config import load_config
    from bharateo.display import Display

    overrides = [
        *options.set,
        *(f"training.{name}={getattr(options, name)}" for name in ("epochs", "seed")
          if getattr(options, name) is not None),
    ]  # fmt: skip
    config = load_config(options.config, overrides)
    display = Display(quiet=not FIRST_RANK)
    stages.pretrain(config, options.dataset, options.output, display)


def _evaluate(options: argparse.Namespace) -> None:
    if options.task:
        evaluate_task(options)
        return
    if options.probe:
        evaluate_features(options)
        return
    from bharateo import stages

    stages.evaluate(options.run, options.dataset, options.output)


def _report(options: argparse.Namespace) -> None:
    from bharateo import stages

    stages.write_report(options.run)
