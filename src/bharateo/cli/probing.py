"""The options of evaluate for what a run's frozen features are worth."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group(
        "what the frozen features are worth",
        "Classify patches and chips of the test ground by probes of the run's features, for few\n"
        "labels and for many, beside the same probes of band statistics, random convolutions and\n"
        "the same encoder with random weights, a random forest and the majority class. Writes\n"
        "RUN/probes.json, which `bharateo report` shows.\n\n"
        "  bharateo evaluate runs/v0 --probe\n"
        "  bharateo evaluate runs/v0 --probe --levels patch --budgets 20 all\n"
        "  bharateo evaluate runs/v0 --probe --zones districts.geojson --zone-field name",
    )
    group.add_argument("--probe", action="store_true", help="this, instead of hidden patches")
    group.add_argument(
        "--levels", nargs="+", metavar="LEVEL", help="patch, chip or both (default: both)"
    )
    group.add_argument(
        "--budgets",
        nargs="+",
        metavar="N",
        help="labels a class, `all`: as many as there are (default: 5 20 100 all)",
    )
    group.add_argument(
        "--features",
        nargs="+",
        metavar="NAME",
        help="of encoder, random_encoder, band_statistics, band_statistics_context, "
        "random_convolutions (default: all)",
    )
    group.add_argument(
        "--zones",
        type=Path,
        metavar="FILE",
        help="polygons (GeoJSON, GeoPackage) to score one by one (default: the dataset's zones, "
        "else its regions, else its blocks)",
    )
    group.add_argument("--zone-field", metavar="COLUMN", help="the column with the zones' names")
    group.add_argument(
        "--seed", type=int, default=0, help="of the labels, filters and weights drawn (default: 0)"
    )


def evaluate_features(options: argparse.Namespace) -> None:
    """``bharateo evaluate RUN --probe``."""
    from bharateo import stages
    from bharateo.evaluation.probing import parse_budget

    budgets = [parse_budget(text) for text in options.budgets or ()]
    given = {"levels": options.levels, "budgets": budgets, "features": options.features}
    stages.probe(
        options.run,
        options.dataset,
        options.output,
        zones=options.zones,
        zone_field=options.zone_field,
        seed=options.seed,
        **{name: values for name, values in given.items() if values},
    )
