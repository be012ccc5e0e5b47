"""Finding places alike: search."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from bharateo.cli.verbs import Verbs, add_reading_options, add_verb, reading_of


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        _search,
        "search",
        "places like a given one: GeoJSON and a contact sheet",
        "Find the patches of an embedded area that are most like the one at a point, by the angle\n"
        "between their vectors. Every vector is compared; memory does not grow with their size.\n"
        "Writes DIR/found.geojson (rank 0 is the place asked for), and DIR/sheet.png where the\n"
        "area's pixels are still where they were.\n\n"
        "  bharateo search vectors.parquet --like 77.2536,28.6607 --output yamuna\n"
        "  bharateo search runs/v0 district.tif --like 77.25,28.66 --like 77.30,28.55 --output r\n"
        "  bharateo search runs/v0 datasets/v0 --score --output scores\n\n"
        "The first form takes what `bharateo embed` wrote (.parquet or .tif); the second embeds a\n"
        "dataset or raster first, into DIR. The third scores search on held-out ground: of the\n"
        "patches found for patches of every class, how many are of that class, beside the same\n"
        "search with band statistics, random filters and an untrained encoder.",
    )
    # West and south are negative: "-4.05,52.41" is a value, not an option.
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    parser.add_argument("paths", nargs="+", metavar="EMBEDDING | RUN INPUT",
                        help="vectors made by embed; or a run and a dataset or raster")  # fmt: skip
    parser.add_argument("--like", action="append", default=[], metavar="LON,LAT",
                        help="a point in degrees, such as 77.2536,28.6607; repeat for the mean of "
                        "several")  # fmt: skip
    parser.add_argument("--count", type=int, default=20, metavar="N",
                        help="places to find (default: 20)")  # fmt: skip
    parser.add_argument("--away", type=float, metavar="METRES",
                        help="least distance of every place found from those asked for and from "
                        "better ones (default: two sides of a patch)")  # fmt: skip
    parser.add_argument("--score", action="store_true",
                        help="score search on the test split of a dataset instead")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="the folder to write into")  # fmt: skip
    add_reading_options(parser)


def _search(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.display import Display
    from bharateo.errors import ConfigError

    paths, display = options.paths, Display()
    if len(paths) > 2:
        raise ConfigError(f"search takes an EMBEDDING, or RUN INPUT, not {len(paths)} paths")
    if options.count < 1:
        raise ConfigError(f"--count {options.count}: ask for one place at least")
    if options.score:
        if len(paths) < 2 or options.like:
            raise ConfigError("--score needs RUN DATASET, and no --like: it asks by itself")
        run, dataset = map(Path, paths)
        stages.score_search(run, dataset, options.output, options.count, display)
        return
    if not options.like:
        raise ConfigError("search needs --like LON,LAT, a point inside the area, or --score")
    like = [_lonlat(text) for text in options.like]
    embedding = Path(paths[-1])
    if len(paths) == 2:
        embedding = stages.embed_for_search(
            paths[0], paths[1], options.output, reading=reading_of(options), display=display
        )
    stages.search(
        embedding, like, options.output, count=options.count, away_m=options.away, display=display
    )


def _lonlat(text: str) -> tuple[float, float]:
    from bharateo.errors import ConfigError

    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError:
        lon = lat = float("nan")
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise ConfigError(
            f"--like {text!r} is no longitude, latitude in degrees, such as 77.2536,28.6607"
        )
    return lon, lat
