"""The command line: verbs and their options. Each stage is imported when its verb is called."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bharateo
from bharateo.errors import BharatEOError, RankLostError, Stopped

if TYPE_CHECKING:
    from bharateo.planning import Request

_ROOT_HELP = (
    "where WorldCover tiles lie: a folder, an http(s) URL or an s3 URL that holds "
    "v200/2021/map/... (default: $BHARATEO_WORLDCOVER_ROOT, else the public bucket)"
)
_ROI_HELP = (
    "a place to sample from, as NAME=LON,LAT[,SIZE_PX] or NAME=WEST,SOUTH,EAST,NORTH or a known "
    "name (delhi_ncr, shekhawati, mathura_belt); repeat for several"
)
_SET_HELP = "override one key of the configuration, e.g. training.lr=0.001; repeat for several"

_FIRST_RANK = os.environ.get("RANK", "0") == "0"
"""Under ``torchrun`` every rank runs the verb, and the first one speaks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status (0 done, 1 refused with a message, 130 stopped)."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    # rasterio's word on a file cut short; our own error follows it
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
    try:
        options.verb(options)
    except Stopped as stopped:
        if _FIRST_RANK:
            print(f"bharateo: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except BharatEOError as error:
        message = " ".join(str(error).split())
        if _FIRST_RANK or isinstance(error, RankLostError):  # others would say the same
            print(f"bharateo: {type(error).__name__}: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bharateo: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every verb with its options."""
    parser = argparse.ArgumentParser(
        prog="bharateo",
        description="Masked-autoencoder pretraining for Earth observation, from public pixels to "
        "an honest report. Every verb turns one folder into the next: a configuration into a "
        "dataset, a dataset into a run, a run into an evaluation and a report. Every verb can be "
        "killed and run again; it goes on where it stopped.",
        epilog="Start with `bharateo demo`.",
    )
    parser.add_argument("--version", action="version", version=f"bharateo {bharateo.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_demo(verbs)
    _add_build(verbs)
    _add_pretrain(verbs)
    _add_evaluate(verbs)
    _add_report(verbs)
    _add_tokens(verbs)
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], None],
    name: str,
    help_line: str,
    text: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=help_line, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(verb=run)
    return parser


def _add_demo(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs,
        _demo,
        "demo",
        "the whole way: pixels, dataset, training, evaluation, report",
        "Build a dataset, train a masked autoencoder on it, evaluate it and write a report.\n"
        "Reads ESA WorldCover where it answers within seconds, else the packaged sample.\n\n"
        "  bharateo demo\n"
        "  bharateo demo --roi pune=73.86,18.52 --output runs/pune\n"
        "  bharateo demo --preset seed --output runs/seed",
    )
    parser.add_argument("--preset", choices=("v0", "seed"), default="v0",
                        help="v0: our model on held-out ground; seed: the first experiment as "
                        "published (default: v0)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR",
                        help="gets dataset/ and run/ with run/report.html "
                        "(default: runs/demo)")  # fmt: skip
    parser.add_argument("--worldcover-root", metavar="ROOT", help=_ROOT_HELP)
    parser.add_argument("--roi", action="append", default=[], metavar="ROI", help=_ROI_HELP)
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


def _add_build(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
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
    parser.add_argument("--worldcover-root", metavar="ROOT", help=_ROOT_HELP)
    parser.add_argument("--roi", action="append", default=[], metavar="ROI",
                        help=_ROI_HELP + " (instead of the configuration's)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=_SET_HELP)


def _add_pretrain(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
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
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=_SET_HELP)


def _add_evaluate(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs,
        _evaluate,
        "evaluate",
        "score a run beside the baselines, on its own dataset or another",
        "Score a run per split and per region, with block-bootstrap intervals.\n\n"
        "  bharateo evaluate runs/v0\n"
        "  bharateo evaluate runs/v0 --dataset datasets/elsewhere --output elsewhere.json",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder made by pretrain")
    parser.add_argument("--dataset", type=Path, metavar="OTHER",
                        help="score on this dataset instead of the run's own")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="the JSON file to write (default: RUN/evaluation.json; needed with "
                        "--dataset)")  # fmt: skip


def _add_report(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs,
        _report,
        "report",
        "a run into one self-contained HTML page",
        "Write RUN/report.html: where the pixels come from, what was learnt, how well.\n"
        "Evaluates the run first if that has not been done.\n\n"
        "  bharateo report runs/v0",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder made by pretrain")


_PLAN_OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {
        "choices": ("nano", "tiny", "small", "base"),
        "help": "plan this model: parameters, FLOPs, bytes",
    },
    "--machine": {
        "choices": ("this", "h100", "h200", "a100", "l4", "rtx4090"),
        "help": "plan for this machine (measured in a few seconds) or a GPU by its data sheet, at "
        "an assumed 30 %% of its peak: hours, energy, CO2",
    },
    "--num-machines": {"type": int, "metavar": "N", "help": "machines or GPUs (default: 1)"},
    "--watts": {
        "type": float,
        "metavar": "W",
        "help": "power of one machine (default: its data sheet's; 15 W a core for this one)",
    },
    "--grid": {
        "type": float,
        "metavar": "KG_PER_KWH",
        "help": "CO2 of a kWh (default: 0.727, India in FY 2023-24)",
    },
    "--masks-per-chip": {
        "type": int,
        "metavar": "K",
        "help": "presentations of every chip read, each with its own mask (default: 1)",
    },
    "--batch-size": {"type": int, "metavar": "N", "help": "chips of a step (default: 64)"},
    "--precision": {
        "choices": ("auto", "fp32", "bf16"),
        "help": "of the matrix products (default: auto, bf16 where the machine has it)",
    },
}


def _add_tokens(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(
        verbs,
        _tokens,
        "tokens",
        "count tokens, pixels and scalars of a run, and plan one",
        "Count what a run is shown and asked: tokens, pixels and scalars, each by its name.\n"
        "Without arguments: the two published runs. With RUN: a finished run, as presented.\n"
        "With --model also FLOPs and bytes; with --machine also hours, energy and its CO2.\n\n"
        "  bharateo tokens\n"
        "  bharateo tokens runs/v0\n"
        "  bharateo tokens --chips 5000 --epochs 100 --bands 10 --model nano --machine this\n"
        "  bharateo tokens --chips 1000000 --epochs 100 --bands 10 --model base --machine h200",
    )
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a finished run's folder")
    parser.add_argument("--chips", type=int, help="chips presented in an epoch")
    parser.add_argument("--epochs", type=int, default=1, help="epochs (default: 1)")
    parser.add_argument("--bands", type=int, default=3, help="bands of a chip (default: 3)")
    parser.add_argument("--chip-px", type=int, default=128, help="side of a chip (default: 128)")
    parser.add_argument("--patch-px", type=int, default=16, help="side of a patch (default: 16)")
    parser.add_argument("--mask-ratio", type=float, default=0.75,
                        help="share of tokens hidden (default: 0.75)")  # fmt: skip
    for option, settings in _PLAN_OPTIONS.items():
        parser.add_argument(option, **settings)


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
    from bharateo.chips.store import Dataset
    from bharateo.config import load_config
    from bharateo.display import Display

    overrides = [
        *options.set,
        *(f"training.{name}={getattr(options, name)}" for name in ("epochs", "seed")
          if getattr(options, name) is not None),
    ]  # fmt: skip
    config = load_config(options.config, overrides)
    display = Display(quiet=not _FIRST_RANK)
    stages.pretrain(config, Dataset.open(options.dataset), options.output, display)


def _evaluate(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.chips.store import Dataset
    from bharateo.display import Display
    from bharateo.errors import ConfigError
    from bharateo.training.checkpoint import Run

    if options.dataset and not options.output:
        raise ConfigError(
            "--dataset needs --output FILE, so that the run's own evaluation.json is not replaced "
            "by figures of other ground"
        )
    run = Run.open(options.run)
    dataset = Dataset.open(options.dataset) if options.dataset else run.own_dataset()
    output = options.output or options.run / "evaluation.json"
    stages.evaluate(run, dataset, output, Display())


def _report(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.display import Display
    from bharateo.training.checkpoint import Run

    display = Display()
    evaluation = options.run / "evaluation.json"
    if not evaluation.exists():
        run = Run.open(options.run)
        stages.evaluate(run, run.own_dataset(), evaluation, display)
    stages.report(options.run, display)


def _tokens(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.accounting import Accounting
    from bharateo.display import Display

    account = None
    if options.chips is not None:
        account = Accounting(options.chips, options.epochs, options.chip_px, options.patch_px,
                             options.bands, options.mask_ratio)  # fmt: skip
    stages.tokens(options.run, account, Display(), _plan_request(options))


def _plan_request(options: argparse.Namespace) -> Request | None:
    """What to plan, None without --model; an option that would have no effect is refused."""
    from bharateo.errors import ConfigError

    names = [option.removeprefix("--").replace("-", "_") for option in _PLAN_OPTIONS]
    given = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    for name in given:
        needed = "machine" if name in ("num_machines", "watts", "grid") else "model"
        if needed not in given:
            option, choices = name.replace("_", "-"), _PLAN_OPTIONS[f"--{needed}"]["choices"]
            raise ConfigError(
                f"--{option} needs --{needed}: add one of {', '.join(choices)}, or leave it out"
            )
    if not given:
        return None
    if options.chips is None and options.run is None:
        raise ConfigError("--model needs chips to plan for: add --chips N, or name a finished RUN")

    from bharateo.config import TrainingConfig
    from bharateo.planning import Request

    training = {n: given.pop(n) for n in ("masks_per_chip", "batch_size", "precision")
                if n in given}  # fmt: skip
    return Request(given.pop("model"), training=TrainingConfig(**training), **given)


if __name__ == "__main__":
    sys.exit(main())
