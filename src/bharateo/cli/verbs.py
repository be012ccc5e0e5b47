"""What the verbs share: how one is declared, and the texts of options that several have."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

ROOT_HELP = (
    "where WorldCover tiles lie: a folder, an http(s) URL or an s3 URL that holds "
    "v200/2021/map/... (default: $BHARATEO_WORLDCOVER_ROOT, else the public bucket)"
)
ROI_HELP = (
    "a place to sample from, as NAME=LON,LAT[,SIZE_PX] or NAME=WEST,SOUTH,EAST,NORTH or a known "
    "name (delhi_ncr, shekhawati, mathura_belt); repeat for several"
)
SET_HELP = "override one key of the configuration, e.g. training.lr=0.001; repeat for several"

FIRST_RANK = os.environ.get("RANK", "0") == "0"
"""Under ``torchrun`` every rank runs the verb, and the first one speaks."""

CONTRACT_FIELDS = ("bands", "unit", "statistics", "resolution")
"""What ``--allow`` takes: the fields of a run's contract that a user may take on themselves."""

if TYPE_CHECKING:
    from bharateo.inference.inputs import Reading

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Verbs = argparse._SubParsersAction


def add_verb(
    verbs: Verbs,
    run: Callable[[argparse.Namespace], int | None],
    name: str,
    help_line: str,
    text: str,
) -> argparse.ArgumentParser:
    """A new verb; ``help_line`` is for the list of verbs, ``text`` for its own page.

    ``run`` returns the exit status, None for 0.
    """
    parser = verbs.add_parser(
        name, help=help_line, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(verb=run)
    return parser


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how the numbers of a raster are to be read, in a group of their own."""
    group = parser.add_argument_group(
        "how to read the raster",
        "A raster must hold the run's bands in the run's unit. Where the file does not say so\n"
        "itself (names of its bands, its scale and offset, its nodata value), say it here:\n\n"
        "  --bands B02,B03,B04,B08        all bands of the file, in its order\n"
        "  --bands B04=3,B03=2,B02=1      some of them, by their number in the file\n"
        "  --scale 0.0001 --offset -0.1   Sentinel-2 L2A as ESA stores it since baseline 04.00\n"
        "  --scale 0.001                  reflectance x 1000",
    )
    group.add_argument(
        "--bands",
        metavar="NAMES",
        help="names of the file's bands, in its order, separated by commas; or NAME=NUMBER for "
        "some of them, counted from 1 (default: what the file calls them)",
    )
    group.add_argument(
        "--scale",
        type=float,
        metavar="X",
        help="physical value = stored value x SCALE + OFFSET (default: the file's own scale, else "
        "that of the run's sensor, 0.0001 for Sentinel-2)",
    )
    group.add_argument(
        "--offset",
        type=float,
        metavar="X",
        help="see --scale, e.g. -0.1 (default: 0 with --scale, else as there)",
    )
    group.add_argument(
        "--nodata",
        type=float,
        metavar="X",
        help="stored value of a pixel without data (default: the file's own)",
    )
    group.add_argument(
        "--allow",
        action="append",
        choices=CONTRACT_FIELDS,
        default=[],
        help="go on although this field of the run's contract differs; what is made says so; "
        "repeat for several",
    )


def reading_of(options: argparse.Namespace) -> Reading:
    """What ``add_reading_options`` was told.

    Raises:
        ConfigError: the bands cannot be understood.
    """
    from bharateo.inference.inputs import Reading

    return Reading(
        bands=None if options.bands is None else _bands(options.bands),
        scale=options.scale,
        offset=options.offset,
        nodata=options.nodata,
        allow=frozenset(options.allow),
    )


def _bands(text: str) -> tuple[str, ...] | dict[str, int]:
    """``B02,B03`` as names in order, ``B04=3,B03=2`` as places counted from 1."""
    from bharateo.errors import ConfigError

    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts]
    if all(name and not equals for name, equals, _ in pairs):
        return tuple(parts)
    places = {name.strip(): int(place) for name, _, place in pairs if place.isdecimal()}
    if len(places) != len(pairs) or not all(places) or not all(places.values()):
        raise ConfigError(
            f"--bands {text!r} is neither names in the file's order (B02,B03,B04) nor each name "
            "with its number in the file, counted from 1 (B04=3,B03=2)"
        )
    return places
