"""A run's vectors of places: embed."""

from __future__ import annotations

import argparse
from pathlib import Path

from bharateo.cli.verbs import Verbs, add_reading_options, add_verb, reading_of


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        _embed,
        "embed",
        "a run's vectors of a raster of any size, or of a dataset",
        "Ask a run's frozen encoder for the vector of every patch of a raster (path or URL), a\n"
        "STAC item or a dataset. Windows overlap by half a chip and are blended: no seams. Memory\n"
        "does not grow with the raster. Killed and run again, it goes on where it stopped.\n\n"
        "  bharateo embed runs/v0 district.tif --output district-vectors.tif\n"
        "  bharateo embed runs/v0 district.tif --output vectors.tif --output vectors.parquet\n"
        "  bharateo embed runs/v0 district.tif --output fine.tif --stride 4 --dtype int8\n"
        "  bharateo embed runs/v0 datasets/v0 --output v0.parquet --level chip\n\n"
        ".tif is a cloud-optimised GeoTIFF in the raster's own reference system: a band for each\n"
        "dimension, a pixel for each patch, overviews. .parquet is GeoParquet: a row for each\n"
        "patch with its outline, its centre (lon, lat) and its vector. A patch without a valid\n"
        "pixel is nodata in the one and has no row in the other.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder made by pretrain")
    parser.add_argument("input", metavar="INPUT",
                        help="a raster, a STAC item (.json), or a dataset folder")  # fmt: skip
    parser.add_argument("--output", type=Path, action="append", required=True, metavar="FILE",
                        help="what to write, .tif or .parquet; repeat for both")  # fmt: skip
    parser.add_argument("--dtype", choices=("float16", "float32", "int8"), default="float16",
                        help="of a vector's numbers (default: float16; a .tif keeps them in "
                        "Float32, rounded to half floats, which compresses to the same size and "
                        "which every GDAL and QGIS opens); int8: .tif only, each band with its own "
                        "GDAL scale and offset")  # fmt: skip
    parser.add_argument("--stride", type=int, metavar="PX",
                        help="distance of vectors in pixels, a divisor of the patch size such as 8 "
                        "or 4 (default: the patch size). Each is of the whole patch around its "
                        "pixel's centre; time grows by (patch / PX) squared, and the grid begins "
                        "(patch - PX) / 2 pixels inside the raster")  # fmt: skip
    parser.add_argument("--step", type=int, metavar="TOKENS",
                        help="distance of windows in patches (default: half a chip's); smaller is "
                        "smoother and slower, a whole chip's leaves seams")  # fmt: skip
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32",
                        help="of the model's arithmetic (default: fp32; auto: bf16 where the "
                        "processor has it)")  # fmt: skip
    parser.add_argument("--level", choices=("patch", "chip"), default="patch",
                        help="of a dataset: one row a patch, or a chip with the mean of its "
                        "patches (default: patch)")  # fmt: skip
    add_reading_options(parser)


def _embed(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.inference.embed import Embedding

    how = Embedding(options.dtype, options.stride, options.step, options.precision, options.level)
    stages.embed(options.run, options.input, options.output, how=how, reading=reading_of(options))
