"""Asking what helps: ablate."""

from __future__ import annotations

import argparse
from pathlib import Path

from bharateo.cli.verbs import SET_HELP, Verbs, add_verb


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        _ablate,
        "ablate",
        "does WorldCover help? train a grid, probe every run, one table",
        "Train the configuration with something changed, several seeds each, and score the frozen\n"
        "features by a linear probe on the dataset's test ground: one table with intervals over\n"
        "seeds and blocks of ground. Without --vary: the weight of the land-cover loss (0, 0.2,\n"
        "0.5), its target (mode, fraction), and the usual sets of bands that the dataset holds,\n"
        "one changed at a time. Every training is a run folder below DIR. Kill it, run it again,\n"
        "ask for more cells or seeds: what is there is kept.\n\n"
        "  bharateo ablate configs/sentinel2-10band.yaml --dataset datasets/d --output a\n"
        "  bharateo ablate configs/sample.yaml --dataset datasets/sample --output a --quick\n"
        "  bharateo ablate configs/v0.yaml --dataset datasets/v0 --output a \\\n"
        "      --vary heads.landcover.weight=0,0.2,1 --vary model.mask_ratio=0.5,0.75 --full\n"
        "  bharateo ablate configs/sample.yaml --dataset datasets/sample --output a \\\n"
        "      --vary bands=rgb,B02+B03+B04+B08",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file; see configs/")
    parser.add_argument("--dataset", type=Path, required=True, help="a folder made by build")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="gets a folder a cell, ablation.json and ablation.md")  # fmt: skip
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=VALUES",
                        help="a key of the configuration and its values, separated by commas; "
                        "repeat for several")  # fmt: skip
    parser.add_argument("--full", action="store_true",
                        help="every combination, instead of one key changed at a time")  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N",
                        help="trainings of every cell (default: 3; 2 with --quick)")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="the smallest grid: with land-cover labels and without, two seeds, at "
                        "most ten epochs")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET_HELP)


def _ablate(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.config import load_config

    stages.ablate(
        load_config(options.config, options.set), options.dataset, options.output,
        vary=options.vary, full=options.full, seeds=options.seeds, quick=options.quick,
    )  # fmt: skip
