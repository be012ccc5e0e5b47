"""A page to explore a run in a browser: explore."""

from __future__ import annotations

import argparse
from pathlib import Path

from bharateo.cli.verbs import Verbs, add_reading_options, add_verb, reading_of


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        _explore,
        "explore",
        "a page to explore a run in a browser, from disk or any web server",
        "Write a static page: the area with layers to switch and blend (true and false colour,\n"
        "labels, predicted class, uncertainty, suspect labels, reconstruction error), the twenty\n"
        "patches most like the one you click, and chips on which you paint a mask and see the\n"
        "model rebuild them at once. The model runs in the browser; nothing is fetched from\n"
        "elsewhere.\n\n"
        "  bharateo explore runs/v0 --output explorers/v0\n"
        "  bharateo explore runs/v0 --dataset datasets/jaipur --output explorers/jaipur\n"
        "  bharateo explore runs/pune-s2 --raster district.tif --output explorers/district\n\n"
        "Open DIR/index.html, or put the folder on any web server. It shows the dataset the run\n"
        "was trained on unless told otherwise; of large ground it shows a part, and says so.\n"
        "Killed and run again, it goes on where it stopped; the page is there once it is whole.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder made by pretrain")
    ground = parser.add_mutually_exclusive_group()
    ground.add_argument("--raster", metavar="TIF",
                        help="a raster (path or URL) or STAC item of the run's bands")  # fmt: skip
    ground.add_argument("--dataset", type=Path, metavar="DIR",
                        help="a dataset other than the run's own")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="the folder to write; a page that is there is replaced")  # fmt: skip
    parser.add_argument("--megabytes", type=float, metavar="N",
                        help="largest size of the folder (default: 25); a model too big for it "
                        "stays out, and with it the painting")  # fmt: skip
    add_reading_options(parser)


def _explore(options: argparse.Namespace) -> None:
    from bharateo import stages

    stages.explore(
        options.run, options.output, dataset=options.dataset, raster=options.raster,
        megabytes=options.megabytes, reading=reading_of(options),
    )  # fmt: skip
