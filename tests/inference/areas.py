"""Embedded areas of made-up vectors, as the files that ``embed`` writes."""

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS

from bharateo.geography import to_lonlat
from bharateo.inference.embed import Embedding, EmbeddingRecord
from bharateo.inference.products import MadeBy, MadeOf
from bharateo.inference.table import Rows, corners, write_table
from bharateo.pixels.cog import Bands, write_cog

GRID = GeoBox((20, 30), Affine(160, 0, 700_000, 0, -160, 3_170_000), "EPSG:32643")
"""Cells of 160 m near Delhi."""


def plan_of(**source):
    """The plan of an embedding of a source."""
    return EmbeddingRecord(
        schema_version=1,
        product="embedding",
        code_version="0",
        run=MadeBy(name="v0", weights_sha256="0"),
        source=MadeOf(identity="0", **source),
        options=Embedding(),
    ).sealed()


PLAN = plan_of()


def vectors(seed=0, dims=6):
    """A vector a cell (row, col, dim), dimensions of different means and spreads."""
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.uniform(-2, 2, dims)
    return (rng.normal(size=(*GRID.shape, dims)) * spread + spread).astype(np.float32)


def centres(row, col):
    return to_lonlat(GRID, np.stack([np.asarray(col) + 0.5, np.asarray(row) + 0.5]))


def table(path, values, plan=PLAN, group_rows=7):
    """One row a cell that has a vector, in row groups of some rows of cells."""

    def groups():
        for first in range(0, len(values), group_rows):
            part = values[first : first + group_rows]
            row, col = np.nonzero(~np.isnan(part[..., 0]))
            cols, rows = corners(row + first, col, 1)
            a, b, c, d, e, f = GRID.affine[:6]
            outlines = np.stack([a * cols + b * rows + c, d * cols + e * rows + f])
            places = {"row": row + first, "col": col}
            yield Rows(places, centres(row + first, col), part[row, col], outlines)

    write_table(path, groups(), CRS(str(GRID.crs)), plan)
    return path


def cog(path, values, dtype="float32", nodata=float("nan"), scales=(), offsets=()):
    names = tuple(f"dim_{number}" for number in range(values.shape[2]))
    bands = Bands(dtype, names, nodata, scales, offsets)
    block = (0, 0, np.moveaxis(values, 2, 0))
    write_cog(path, GRID, bands, [block], PLAN.tags)
    return path
