"""Maps of a person's own ground: map, probe."""

from __future__ import annotations

import argparse
from pathlib import Path

from bharateo.cli.verbs import ROOT_HELP, Verbs, add_reading_options, add_verb, reading_of

_AGAINST_HELP = (
    "labels to compare with, of which those that the map finds hard to believe are mapped as "
    "suspect: a raster of WorldCover codes, `worldcover` for the product itself, or "
    + ROOT_HELP.split(" (default")[0]
)


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    _add_map(verbs)
    _add_probe(verbs)


def _add_map(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        _map,
        "map",
        "a land-cover map of a raster of any size",
        "Map the classes of a raster (path or URL) or a STAC item, by the run's land-cover head\n"
        "or a probe on its features. Memory does not grow with the raster. Killed and run again,\n"
        "it goes on where it stopped.\n\n"
        "  bharateo map runs/v0 district.tif --output district-map.tif\n"
        "  bharateo map runs/v0 district.tif --output fine.tif --stride 4\n"
        "  bharateo map runs/v0 district.tif --output map.tif --probe wells/probe.safetensors\n"
        "  bharateo map runs/v0 district.tif --output map.tif --against worldcover\n\n"
        "MAP.tif holds the classes, with their colours and names. Beside it lie MAP.qml, which\n"
        "QGIS takes by itself, MAP-probabilities.tif, MAP-uncertainty.tif (entropy, and what is\n"
        "out of the domain: ground or numbers unlike all the run was trained on), MAP.json\n"
        "(areas, agreement, provenance) and, with --against, MAP-suspect.tif.",
    )
    _add_inputs(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="MAP.tif",
                        help="the map to write; its other files get their names")  # fmt: skip
    parser.add_argument("--probe", type=Path, metavar="PROBE",
                        help="a probe (.safetensors) to map with (default: the run's land-cover "
                        "head)")  # fmt: skip
    parser.add_argument("--against", metavar="LABELS", help=_AGAINST_HELP)
    _add_how(parser)


def _add_probe(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        _probe,
        "probe",
        "your points and classes into a map of your raster",
        "Fit a probe on a run's features at your own points, say how well it will do on other\n"
        "ground, map the raster with your classes, and name 20 places to label next. Five points\n"
        "a class are a start; spread them out, at least a chip (1.3 km at 10 m) apart.\n\n"
        "  bharateo probe runs/v0 district.tif --points wells.gpkg --output wells\n"
        "  bharateo probe runs/v0 district.tif --points crops.csv --class-field crop --output c\n"
        "  bharateo probe runs/v0 district.tif --points wells.gpkg \\\n"
        "      --points wells/label-next.geojson --output wells-2\n\n"
        "Points are a GeoPackage, GeoJSON, Shapefile or FlatGeobuf in any reference system, or a\n"
        ".csv with lon and lat. Open label-next.geojson in QGIS, fill in the field `class` of the\n"
        "places you know, and give it as one more --points. The score is balanced accuracy,\n"
        "cross-validated by location: points near each other are held out together.",
    )
    _add_inputs(parser)
    parser.add_argument("--points", type=Path, action="append", required=True, metavar="FILE",
                        help="points with their classes; repeat for several files")  # fmt: skip
    parser.add_argument("--class-field", metavar="NAME",
                        help="the field that holds the classes (default: class, label, name or the "
                        "like)")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="gets probe.safetensors, probe.json, map.tif with its other files, "
                        "label-next.geojson")  # fmt: skip
    _add_how(parser)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder made by pretrain")
    parser.add_argument("raster", metavar="RASTER", help="a raster (path or URL), or a STAC item")


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stride", type=int, metavar="PX",
                        help="side of a cell of the map in pixels, a divisor of the patch size "
                        "such as 8 or 4 (default: the patch size); time grows by (patch / PX) "
                        "squared")  # fmt: skip
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32",
                        help="of the model's arithmetic (default: fp32; auto: bf16 where the "
                        "processor has it)")  # fmt: skip
    add_reading_options(parser)


def _map(options: argparse.Namespace) -> None:
    from bharateo import stages

    stages.map_raster(
        options.run, options.raster, options.output, probe=options.probe, against=options.against,
        stride_px=options.stride, precision=options.precision, reading=reading_of(options),
    )  # fmt: skip


def _probe(options: argparse.Namespace) -> None:
    from bharateo import stages

    stages.probe_points(
        options.run, options.raster, options.points, options.output,
        class_field=options.class_field, stride_px=options.stride, precision=options.precision,
        reading=reading_of(options),
    )  # fmt: skip
