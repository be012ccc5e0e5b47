"""Vector files: those of a person, read as data and nothing else; GeoPackages of ours, written.

GDAL tells a format by a file's content, and some formats are descriptions of other files, of
queries or of servers. So only the formats named here are opened, each by its own signature, and
GDAL is given a copy of its bytes, never a name. GeoJSON, a text that may be anything else as well,
is parsed here; the others begin with bytes that no such description can begin with. GDAL's own
list of formats is one for the whole program, and is not touched.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import re
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError

from bharateo.artefacts import parse_json, shortened
from bharateo.errors import BharatEOError
from bharateo.files import read_bytes, write_atomically
from bharateo.outputs import Own

if TYPE_CHECKING:
    import geopandas as gpd

FORMATS = "GeoJSON (.geojson, .json), GeoPackage (.gpkg), Shapefile (.shp) or FlatGeobuf (.fgb)"

MOST_BYTES = 2**28
MOST_VERTICES = 200_000
"""Of all geometries of a file: a large country's outline, every 200 m."""

MOST_CROSSINGS = 20_000
"""Of an outline with itself: seconds to mend."""

_SQLITE, _SHAPEFILE, _FLATGEOBUF = b"SQLite format 3\0", b"\0\0\x27\x0a", b"fgb\x03fgb"
_SIDES = (".shx", ".dbf", ".prj", ".cpg")
"""Of a Shapefile, the files that are read with it."""

_CRS_NAME = re.compile(r"(?:urn:ogc:def:crs:)?(EPSG|OGC):[\d.]*:?(\d+|CRS84)", re.ASCII)
"""How GeoJSON of before RFC 7946 names a reference system."""

_STEPS = 10_000_000
"""Instructions of SQLite that a look at a GeoPackage's tables may take: seconds."""


def read_features(
    path: Path, what: str, error: type[BharatEOError], name: str | None = None
) -> gpd.GeoDataFrame:
    """The features of a vector file, their geometries flat (x, y) and finite; nulls stay.

    Of a GeoPackage the first layer with geometries. The reference system is None where the file
    does not say it. ``what`` the file should hold and its ``name`` stand in errors.

    Raises:
        BharatEOError: of class ``error``: it is no ordinary file in one of ``FORMATS``, is
            damaged, too large, or holds coordinates that are no numbers.
    """
    name = name or str(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise error(f"{name} cannot be read as {what}: give {FORMATS}")
    try:
        frame = reader(path, read_bytes(path, MOST_BYTES))
    except _Damaged as trouble:
        reason = shortened(str(trouble))
        raise error(f"{name} cannot be read as {what}: it {reason}; give {FORMATS}") from trouble
    except OSError as trouble:
        reason = shortened(trouble.strerror or str(trouble))
        raise error(f"{name} cannot be read as {what}: {reason}; give {FORMATS}") from trouble
    frame = frame.set_geometry(shapely.force_2d(frame.geometry.to_numpy()), crs=frame.crs)
    geometries = frame.geometry.to_numpy()
    num_vertices = int(shapely.get_num_coordinates(geometries).sum())
    if num_vertices > MOST_VERTICES:
        raise error(
            f"{name} has {num_vertices:,} vertices, more than {MOST_VERTICES:,}: simplify its "
            "shapes, or give a part of them"
        )
    coordinates, feature = shapely.get_coordinates(geometries, return_index=True)
    wrong = ~np.isfinite(coordinates).all(1)
    if wrong.any():
        raise error(
            f"{name}, feature {int(feature[wrong.argmax()]) + 1}: a coordinate is no finite "
            "number: mend or delete the shape"
        )
    return frame


def mended(name: str, outline: shapely.Geometry, error: type[BharatEOError]) -> shapely.Geometry:
    """An outline without the crossings of itself; what is left of it where it is no area is empty.

    Raises:
        BharatEOError: of class ``error``: it crosses itself so often that mending takes minutes.
    """
    if shapely.is_valid(outline):
        return outline
    if _num_crossings(outline) > MOST_CROSSINGS:
        raise error(
            f"{name} crosses itself in more than {MOST_CROSSINGS:,} places: mend it first, e.g. "
            "with Fix Geometries of QGIS"
        )
    return shapely.make_valid(outline, method="structure", keep_collapsed=False)


def _num_crossings(outline: shapely.Geometry) -> int:
    """Pairs of sides that cross or touch, beside those that follow each other; the count may end
    soon after ``MOST_CROSSINGS``.
    """
    rings = [
        ring.coords
        for part in shapely.get_parts(outline)
        for ring in (part.exterior, *part.interiors)
    ]
    corners = [np.asarray(ring) for ring in rings]
    sides = shapely.linestrings(
        np.concatenate([np.stack([each[:-1], each[1:]], 1) for each in corners])
    )
    tree, step = shapely.STRtree(sides), max(1, 200_000 // len(sides))
    found = -3 * len(sides)  # itself, and its neighbours
    for first in range(0, len(sides), step):
        found += tree.query(sides[first : first + step], predicate="intersects").shape[1]
        if found > 2 * MOST_CROSSINGS:
            break
    return max(found, 0) // 2


class _Damaged(Exception):
    """What is wrong with a file, to follow its name."""


# Written

_WRITTEN = "2000-01-01T00:00:00.000Z"
"""When our GeoPackages say that they were changed: the same layer gives the same bytes, and one
that somebody has edited says another time."""


def write_geopackage(path: Path, layer: str, frames: Iterable[gpd.GeoDataFrame], mark: str) -> None:
    """Write a GeoPackage of one layer, its rows in parts as they come, atomically.

    Raises:
        StorageError: the disk is full or refuses; an old file is untouched.
    """
    import pyogrio

    def write(file: IO[bytes]) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder, "layer.gpkg")
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _WRITTEN})
            try:
                for number, frame in enumerate(frames):
                    pyogrio.write_dataframe(
                        frame, made, layer=layer, driver="GPKG", append=number > 0,
                        layer_options={} if number else {"DESCRIPTION": mark},
                    )  # fmt: skip
            except pyogrio.errors.DataSourceError as error:
                raise OSError(errno.EIO, str(error)) from error
            finally:
                pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
            with made.open("rb") as content:
                shutil.copyfileobj(content, file)

    write_atomically(path, write)


def unedited(mark: str) -> Own:
    """The mark of a GeoPackage: what its layer says of itself, and that nobody has edited it."""

    def own(path: Path) -> bool:
        content = read_bytes(path)
        if not content.startswith(_SQLITE):
            return False
        with contextlib.closing(sqlite3.connect(":memory:")) as base:
            try:
                base.deserialize(content)
                base.set_progress_handler(lambda: 1, _STEPS)
                told = base.execute("SELECT description, last_change FROM gpkg_contents")
                return bool(told.fetchall() == [(mark, _WRITTEN)])
            except (sqlite3.Error, UnicodeError):
                return False

    return own


# GeoJSON


def _read_geojson(path: Path, content: bytes) -> gpd.GeoDataFrame:
    import geopandas as gpd
    import pandas as pd

    record = parse_json(content.removeprefix(b"\xef\xbb\xbf"), "it", _DamagedJson, "")
    if not isinstance(record, dict):
        raise _Damaged("is no GeoJSON: it is no object")
    kind = record.get("type")
    features: Any = [record] if kind == "Feature" else [{"geometry": record}]
    if kind == "FeatureCollection":
        features = record.get("features")
        if not isinstance(features, list) or not all(isinstance(each, dict) for each in features):
            raise _Damaged("is no GeoJSON: its features are no list of features")
    columns, geometries = [], []
    for number, feature in enumerate(features, 1):
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            raise _Damaged("is no GeoJSON: the properties of a feature are no object")
        own = {"id": feature["id"]} if "id" in feature else {}  # as GDAL has it
        columns.append({**own, **{n: value for n, value in properties.items() if n != "geometry"}})
        geometry = feature.get("geometry")
        try:
            text = json.dumps(geometry, allow_nan=False)
            geometries.append(None if geometry is None else shapely.from_geojson(text))
        except (shapely.GEOSException, ValueError, RecursionError) as trouble:
            raise _Damaged(f"is damaged: geometry of feature {number}: {trouble}") from trouble
    crs = _crs_of_geojson(record.get("crs"))
    return gpd.GeoDataFrame(pd.DataFrame(columns), geometry=geometries, crs=crs)


class _DamagedJson(_Damaged, BharatEOError):
    def __init__(self, message: str) -> None:
        super().__init__(message.removesuffix("; ").removeprefix("it "))


def _crs_of_geojson(said: Any) -> str:
    """Longitude and latitude, unless the file says otherwise.

    Source: RFC 7946, section 4; The GeoJSON Format Specification (2008), section 3.
    """
    if said is None:
        return "EPSG:4326"
    try:
        found = _CRS_NAME.fullmatch(said["properties"]["name"])
    except (KeyError, TypeError):
        found = None
    if found is None:
        raise _Damaged("names no reference system by its EPSG number in its key crs")
    name = "EPSG:4326" if found[2] == "CRS84" else f"EPSG:{found[2]}"
    try:
        CRS.from_user_input(name)
    except CRSError as trouble:
        raise _Damaged(f"has a reference system that nobody knows, {name}") from trouble
    return name


# Formats that GDAL reads


def _read_geopackage(path: Path, content: bytes) -> gpd.GeoDataFrame:
    if not content.startswith(_SQLITE):
        raise _Damaged("is no GeoPackage")
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise _Damaged(
            f"has changes in {log.name} that are not in it yet; close it elsewhere first"
        )
    plain = bytearray(content)
    plain[18:20] = b"\1\1"  # read and written without such a log, which a copy cannot have
    layer = _layer(bytes(plain))
    with tempfile.TemporaryDirectory() as folder:  # in memory its name would lack the ending
        copy = Path(folder, "layer.gpkg")
        copy.write_bytes(plain)
        return _through_gdal(copy, layer)


def _layer(content: bytes) -> str:
    """The first layer with geometries, made sure to be a table: a view is a program."""
    with sqlite3.connect(":memory:") as base:
        try:
            base.deserialize(content)
            base.set_progress_handler(lambda: 1, _STEPS)
            listed = base.execute("SELECT name, type, sql FROM sqlite_master").fetchall()
            programs = {
                name for name, kind, sql in listed
                if kind == "view" or (kind == "table" and not _is_plain(str(sql)))
            }  # fmt: skip
            if metadata := sorted(name for name in programs if name.startswith("gpkg_")):
                raise _Damaged(f"is no GeoPackage: its {metadata[0]} is no table")
            layers = base.execute(
                "SELECT table_name FROM gpkg_geometry_columns ORDER BY rowid"
            ).fetchall()
        except (sqlite3.Error, UnicodeError) as trouble:
            raise _Damaged(f"is no GeoPackage, or damaged ({trouble})") from trouble
        finally:
            base.set_progress_handler(None, 0)
    names = [str(name) for (name,) in layers]
    if not names:
        raise _Damaged("has no layer with geometries")
    if views := [name for name in names if name in programs]:
        raise _Damaged(f"has a layer {views[0]} that is no table of its own; export it as one")
    return names[0]


def _is_plain(sql: str) -> bool:
    """Whether a table holds nothing but what was put into it."""
    return not re.match(r"\s*CREATE\s+VIRTUAL", sql, re.IGNORECASE) and not re.search(
        r"\bAS\s*\(", sql, re.IGNORECASE
    )


def _read_shapefile(path: Path, content: bytes) -> gpd.GeoDataFrame:
    if not content.startswith(_SHAPEFILE):
        raise _Damaged("is no Shapefile")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("layer.shp", content)
        for ending in _SIDES:
            for side in (path.with_suffix(ending), path.with_suffix(ending.upper())):
                if side.exists():
                    files.writestr(f"layer{ending}", read_bytes(side, MOST_BYTES))
                    break
    return _through_gdal(archive.getvalue())


def _read_flatgeobuf(path: Path, content: bytes) -> gpd.GeoDataFrame:
    if not content.startswith(_FLATGEOBUF):
        raise _Damaged("is no FlatGeobuf")
    return _through_gdal(content)


def _through_gdal(source: bytes | Path, layer: str | None = None) -> gpd.GeoDataFrame:
    import geopandas as gpd
    import pyogrio

    try:
        frame = pyogrio.read_dataframe(source, layer=layer)
    except Exception as trouble:  # what is damaged may break it anywhere
        raise _Damaged(f"is damaged ({trouble})") from trouble
    if not isinstance(frame, gpd.GeoDataFrame):
        raise _Damaged("holds no geometries")
    return frame


_READERS: Mapping[str, Callable[[Path, bytes], Any]] = {
    ".geojson": _read_geojson,
    ".json": _read_geojson,
    ".gpkg": _read_geopackage,
    ".shp": _read_shapefile,
    ".fgb": _read_flatgeobuf,
}
