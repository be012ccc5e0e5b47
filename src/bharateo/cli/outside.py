"""The options of evaluate for labelled chips that others made."""

from __future__ import annotations

import argparse
from pathlib import Path

from bharateo.cli.verbs import add_reading_options, reading_of


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group(
        "labelled chips that others made",
        "Probe the run's frozen features on a task of chips, beside simpler features: EuroSAT's\n"
        "13-band GeoTIFFs (FOLDER/CLASS/*.tif), or a classification task of GEO-Bench\n"
        "(FOLDER/*.hdf5 with default_partition.json and label_map.json; no pickle is opened).\n\n"
        "  bharateo evaluate runs/v1 --task EuroSAT_MS --output eurosat.json\n"
        "  bharateo evaluate runs/v1 --task classification_v1.0/m-eurosat --output m.json",
    )
    group.add_argument("--task", type=Path, metavar="FOLDER", help="the chips; needs --output")
    group.add_argument(
        "--layout",
        choices=("eurosat", "geobench"),
        help="how they lie (default: as the folder looks)",
    )
    group.add_argument(
        "--resize",
        choices=("bilinear", "pad"),
        default="bilinear",
        help="chips of another size than the run's are stretched, or put amid invalid pixels "
        "(default: bilinear)",
    )
    group.add_argument(
        "--split-file",
        type=Path,
        metavar="JSON",
        help='who is in which split: {"train": [file names], "val": [...], "test": [...]} '
        "(default: GEO-Bench's partition; 60/20/20 of every class of EuroSAT)",
    )
    add_reading_options(parser)


def evaluate_task(options: argparse.Namespace) -> None:
    """``bharateo evaluate RUN --task FOLDER``."""
    from bharateo import stages
    from bharateo.errors import ConfigError

    if options.dataset or not options.output:
        raise ConfigError("--task needs --output FILE, and goes without --dataset")
    stages.evaluate_task(
        options.run, options.task, options.output, layout=options.layout, resize=options.resize,
        split_file=options.split_file, reading=reading_of(options),
    )  # fmt: skip
