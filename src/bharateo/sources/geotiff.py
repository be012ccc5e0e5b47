"""A user's own pixels: GeoTIFF chips or large rasters of any sensor, by a map of their bands.

They lie on disk in one of three ways: ready-made chips, each a file and a square of its own
(``ChipFiles``); large rasters that hold all bands, or one raster for every band of one place,
brought to the grid of the finest (both ``LargeRasters``).
"""

from __future__ import annotations

import glob
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Float64
from odc.geo.geobox import GeoBox

from bharateo.config import DataConfig, GeotiffConfig
from bharateo.errors import ConfigError, CorruptRasterError, SourceError
from bharateo.landcover import BHARATEO_CLASSES, NUM_CLASSES
from bharateo.pixels.raster import Raster
from bharateo.regions import Region
from bharateo.sensor import Band, Composite, Sensor
from bharateo.sources import LabelSource, Recipe
from bharateo.sources.label_raster import LabelRaster
from bharateo.sources.raster_files import (
    SAME_PLACE_PX,
    Files,
    Part,
    as_integer,
    begins_at,
    corner_in,
    existing,
    nearest_square,
    same_pixels,
)
from bharateo.sources.worldcover import WorldCover

MOST_LOOKED_AT = 16
"""Windows looked at to find out how bright the pixels are."""

LOOK_PX = 256

_SHOWN = (0.02, 0.98)
_ENDINGS = (".tif", ".tiff")
_STORED_AS: Mapping[str, Literal["uint8", "uint16"]] = {
    "uint8": "uint8",
    "uint16": "uint16",
    "int16": "uint16",
}
"""What pixels of a file's type become; int16 must not be negative."""

# Sources


@dataclass
class ChipFiles:
    """Ready-made chips: a file is a square. ``squares``: grid, row and column -> file."""

    name: str
    attribution: tuple[str, ...]
    sensor: Sensor
    root: str
    files: Files
    indices: tuple[int, ...]
    """Where the bands lie in every file, from 0."""
    grids: tuple[GeoBox, ...]
    squares: Mapping[tuple[int, int, int], str]

    def read(self, geobox: GeoBox) -> Raster:
        """The chip whose square is nearest to ``geobox``, less than half a pixel off.

        It comes on the file's own grid. The provenance names the file as ``item``.

        Raises:
            SourceError: no file is there.
            CorruptRasterError: see ``Files.read_whole``.
        """
        file = self._file_at(geobox)
        part = Part(file, self.indices, tuple(range(len(self.indices))))
        values, valid, own = self.files.read_whole(part)
        if own.shape != geobox.shape:
            raise CorruptRasterError(
                f"{self.files.folder / file} is {own.shape[0]} x {own.shape[1]} px where "
                f"{geobox.shape[0]} x {geobox.shape[1]} was planned for: it changed meanwhile; "
                "build again into another folder"
            )
        return Raster(values, valid, own, {"root": self.root, "item": file})

    def _file_at(self, geobox: GeoBox) -> str:
        for index, grid in enumerate(self.grids):
            if same_pixels(grid, geobox):
                file = self.squares.get((index, *nearest_square(grid, geobox)))
                if file is not None:
                    return file
        raise SourceError(
            f"no file below {self.files.folder} lies at {geobox.boundingbox}: with plan.strategy "
            "'files' every file is one chip, and nothing is read between them"
        )


@dataclass(frozen=True)
class Stack:
    """All bands of one place: its name, its grid, and the parts of files they lie in."""

    name: str
    geobox: GeoBox
    parts: tuple[Part, ...]


@dataclass
class LargeRasters:
    """Rasters that chips are cut from, each with all bands, or one a band."""

    name: str
    attribution: tuple[str, ...]
    sensor: Sensor
    root: str
    files: Files
    stacks: tuple[Stack, ...]

    def read(self, geobox: GeoBox) -> Raster:
        """A window of a raster's own grid; bands of coarser files come by bilinear.

        A pixel is valid where every band holds a value. The provenance names the raster as
        ``item``.

        Raises:
            SourceError: it is a window of none.
            CorruptRasterError: see ``Files.read_whole``.
        """
        stack = self._stack_under(geobox)
        provenance: dict[str, Any] = {"root": self.root, "item": stack.name}
        if len(stack.parts) == 1:
            return Raster(*self.files.read_on(stack.parts[0], geobox), geobox, provenance)
        values = np.empty((self.sensor.num_bands, *geobox.shape), self.sensor.dtype)
        valid = np.ones(geobox.shape, bool)
        for part in stack.parts:
            values[list(part.places)], own = self.files.read_on(part, geobox)
            valid &= own
        provenance |= {"files": [part.file for part in stack.parts], "resampling": "bilinear"}
        return Raster(values, valid, geobox, provenance)

    def _stack_under(self, geobox: GeoBox) -> Stack:
        for stack in self.stacks:
            if corner_in(stack.geobox, geobox) is not None:
                return stack
        raise SourceError(
            f"no raster below {self.files.folder} has {geobox} as a window: only pixels of the "
            "rasters' own grids are read"
        )


# From a configuration to its files


@dataclass(frozen=True)
class Header:
    """What a file says of itself; ``name`` is its path below the folder.

    ``units``, scale and offset, are one a band.
    """

    name: str
    geobox: GeoBox
    num_bands: int
    has_alpha: bool
    dtype: str
    num_bytes: int
    units: tuple[tuple[float, float], ...]


def geotiff_recipe(data: DataConfig) -> Recipe:
    """A folder of rasters as regions, with WorldCover or a label raster on their grids.

    With ``plan.strategy`` ``files`` every file is one chip; files of one reference system and
    pixel size make one region. With any other strategy every raster is a region.

    Raises:
        ConfigError: a value contradicts another or the files.
        SourceError: a file cannot be read, does not say where it lies or holds other numbers.
    """
    config = data.geotiff
    _check_values(config)
    folder, names = _find(config.path)
    by_band = _files_by_band(config, folder, names)
    headers = [_header(folder, name) for name in dict.fromkeys(by_band or names)]
    _check_bands(config, folder, headers, by_band)
    dtype = _one_dtype(folder, headers)
    files = Files(folder.absolute(), dtype, _nodata(config, dtype))
    scale, offset = _unit(config, folder, headers, by_band)
    plain = _sensor(config, _STORED_AS[dtype], scale, offset)
    about = config.title, config.attribution, plain, str(folder), files
    image: ChipFiles | LargeRasters
    if data.plan.strategy == "files":
        regions, squares = _chip_regions(folder, headers, by_band, data.plan.size_px)
        indices = tuple(band.band - 1 for band in config.bands.values())
        image = ChipFiles(*about, indices, tuple(r.geobox for r in regions), squares)
    else:
        stacks = _stacks(config, folder, headers, by_band)
        _check_apart(stacks, data.plan.size_px)
        stems = [stack.name if by_band else Path(stack.name).stem for stack in stacks]
        regions = [
            Region(name, stack.geobox) for name, stack in zip(_names(stems), stacks, strict=True)
        ]
        image = LargeRasters(*about, tuple(stacks))
    settings = _settings(config, headers, (scale, offset))
    looked_at = _looked_at(regions, data.plan.size_px)
    image.sensor = replace(plain, composites=_composites(config, image, looked_at))
    return Recipe("geotiff", regions, image, _labels(data), settings)


def _check_values(config: GeotiffConfig) -> None:
    """Refuse what can be refused before a file is looked at."""
    if not config.path:
        raise ConfigError(
            "data.geotiff.path is empty: give a folder of GeoTIFFs, one file, or a pattern such as "
            "chips/*.tif"
        )
    if not config.bands:
        raise ConfigError(
            "data.geotiff.bands is empty: name every band and say where it lies, e.g. "
            "bands: {red: {band: 1}, green: {band: 2}}"
        )
    for name, band in config.bands.items():
        if band.band < 1 or not band.resolution_m > 0:
            raise ConfigError(
                f"data.geotiff.bands.{name}: band {band.band} and resolution_m "
                f"{band.resolution_m:g} must be at least 1 and above 0"
            )
    scale, offset = config.scale, config.offset
    if scale == 0 or not all(math.isfinite(each) for each in (scale, offset) if each is not None):
        raise ConfigError(
            f"data.geotiff.scale {scale} and offset {offset} make no physical "
            "values: give finite numbers, and a scale other than 0"
        )
    if len(config.composites) > 2:
        raise ConfigError(
            f"data.geotiff.composites has {len(config.composites)}, reports show two: leave out "
            "some"
        )
    for composite, bands in config.composites.items():
        for unknown in [band for band in bands if band not in config.bands]:
            raise ConfigError(
                f"data.geotiff.composites: {composite!r} shows band {unknown!r}, which is none of "
                f"{', '.join(config.bands)}: correct the name"
            )
    if config.display_range and not config.display_range[0] < config.display_range[1]:
        raise ConfigError(
            f"data.geotiff.display_range {list(config.display_range)}: give the lower value first"
        )
    for code, class_id in config.label_classes.items():
        if not (0 <= code <= 255 and 0 <= class_id < NUM_CLASSES):
            known = ", ".join(f"{c.id} {c.name}" for c in BHARATEO_CLASSES)
            raise ConfigError(
                f"data.geotiff.label_classes: {code}: {class_id} is no code from 0 to 255 with "
                f"the id of a class ({known})"
            )


def _find(path: str) -> tuple[Path, list[str]]:
    """The folder, and the paths below it of the rasters that are meant, sorted."""
    place = Path(path).expanduser()
    if place.is_dir():
        folder, found = place, [f for f in place.rglob("*") if f.suffix.lower() in _ENDINGS]
    elif place.is_file():
        folder, found = place.parent, [place]
    else:
        folder = next(each for each in (place, *place.parents) if not glob.has_magic(str(each)))
        found = _matching(folder, str(place.relative_to(folder)))
    names = [f.relative_to(folder).as_posix() for f in found if f.is_file()]
    names = sorted(name for name in names if not Path(name).name.startswith("."))
    if not names:
        what = "holds no *.tif" if place.is_dir() else "is no file, folder or pattern of files"
        raise ConfigError(
            f"data.geotiff.path {path!r} {what}: give a folder of GeoTIFFs, one file, or a "
            "pattern such as chips/*.tif"
        )
    return folder, names


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except (ValueError, IndexError, NotImplementedError):  # no pattern of paths below a folder
        return []


def _files_by_band(
    config: GeotiffConfig, folder: Path, names: Sequence[str]
) -> dict[str, list[str]]:
    """The bands in every file, where the bands name their files; else nothing."""
    named = {name: band.file for name, band in config.bands.items() if band.file is not None}
    if not named:
        return {}
    if len(named) < len(config.bands):
        other = next(name for name in config.bands if name not in named)
        raise ConfigError(
            f"data.geotiff.bands: {next(iter(named))} names its file and {other} does not: name "
            "the file of every band, or of none where every file holds all bands"
        )
    if not Path(config.path).expanduser().is_dir():
        raise ConfigError(
            f"data.geotiff.path {config.path!r} is no folder, but the bands name their files: "
            "give the folder they lie in"
        )
    files: dict[str, list[str]] = {}
    for band, pattern in named.items():
        files.setdefault(_one_file(folder, band, pattern, names), []).append(band)
    return files


def _one_file(folder: Path, band: str, pattern: str, names: Sequence[str]) -> str:
    literal = (folder / pattern).is_file() and not Path(pattern).is_absolute()
    matching = [folder / pattern] if literal else _matching(folder, pattern)
    found = [file.relative_to(folder).as_posix() for file in matching if file.is_file()]
    if len(found) == 1:
        return found[0]
    shown = ", ".join((found or list(names))[:5])
    raise ConfigError(
        f"data.geotiff.bands.{band}.file {pattern!r} matches {len(found)} files in {folder}, not "
        f"one: correct it ({'those' if found else 'there'} are {shown})"
    )


def _header(folder: Path, name: str) -> Header:
    """What a file says of itself; it is closed again.

    Raises:
        CorruptRasterError: it cannot be read, or does not say where it lies.
        SourceError: its grid or numbers are of a kind that is not taken.
    """
    with existing(folder / name) as file:
        affine: Affine = file.geobox.affine
        num_bytes = int(file.identity["size"])
        header = Header(
            name,
            file.geobox,
            file.num_bands,
            file.has_alpha,
            str(file.dtype),
            num_bytes,
            file.units,
        )
        _ = file.says_what_is_there  # one image, whose mask can be read
    if affine.b or affine.d or affine.a <= 0 or affine.e >= 0:
        how = "rotated (its transform has a shear)" if affine.b or affine.d else "upside down"
        raise SourceError(
            f"the grid of {folder / name} is {how}, chips have north up: bring it there with "
            "gdalwarp IN OUT"
        )
    if header.dtype not in _STORED_AS:
        raise SourceError(
            f"{folder / name} holds {header.dtype}, chips hold uint8 or uint16: convert it, e.g. "
            "gdal_translate -ot UInt16 -scale 0 1 0 10000 IN OUT, and set data.geotiff.scale (here "
            "0.0001) and offset so that they give the physical values back"
        )
    return header


def _check_bands(
    config: GeotiffConfig,
    folder: Path,
    headers: Sequence[Header],
    by_band: Mapping[str, Sequence[str]],
) -> None:
    for header in headers:
        for name in by_band.get(header.name, config.bands):
            number = config.bands[name].band
            if number > header.num_bands:
                alpha = number == header.num_bands + 1 and header.has_alpha
                raise ConfigError(
                    f"data.geotiff.bands.{name} is band {number} of {folder / header.name}, which "
                    + (
                        "is marked as alpha (where there are pixels), and is no band of an image: "
                        f"if it is one, run gdal_edit.py -colorinterp_{number} undefined on it"
                        if alpha
                        else f"has {header.num_bands}: correct the number, or leave the file out "
                        "with a pattern in data.geotiff.path"
                    )
                )


def _one_dtype(folder: Path, headers: Sequence[Header]) -> str:
    first = headers[0]
    for header in headers:
        if header.dtype != first.dtype:
            raise SourceError(
                f"{folder / header.name} holds {header.dtype} and {first.name} {first.dtype}: "
                "convert one kind (gdal_translate -ot), or leave it out with a pattern in "
                "data.geotiff.path"
            )
    return first.dtype


def _nodata(config: GeotiffConfig, dtype: str) -> float | Literal["declared"] | None:
    nodata = config.nodata
    if nodata is None or isinstance(nodata, str):
        return nodata
    if as_integer(nodata, np.dtype(dtype)) is None:
        raise ConfigError(
            f"data.geotiff.nodata {nodata:g} is no value of {dtype}, which the files hold: "
            "correct it, or leave it out for what the files say"
        )
    return nodata


# Ready-made chips


def _chip_regions(
    folder: Path,
    headers: Sequence[Header],
    by_band: Mapping[str, Sequence[str]],
    size_px: int,
) -> tuple[list[Region], dict[tuple[int, int, int], str]]:
    """A region for every reference system and pixel size, and what file is which square."""
    if by_band:
        raise ConfigError(
            "plan.strategy 'files' takes files that hold all bands, but data.geotiff.bands names a "
            "file for each: use strategy 'blocks' or 'grid'"
        )
    for header in headers:
        height, width = header.geobox.shape
        if (height, width) != (size_px, size_px):
            raise ConfigError(
                f"{folder / header.name} is {height} x {width} px, and with plan.strategy 'files' "
                f"every file is a chip of plan.size_px {size_px}: set that to the files' size, "
                "leave the file out, or use strategy 'blocks' or 'grid'"
            )
    groups = _groups(headers)
    regions = []
    squares: dict[tuple[int, int, int], str] = {}
    names = _names([folder.resolve().name] * len(groups))
    for index, (name, group) in enumerate(zip(names, groups, strict=True)):
        grid, corners = _bounding_grid([header.geobox for header in group], size_px)
        own = [(float(row), float(col)) for row, col in corners]
        for place, header in zip(own, group, strict=True):
            square = math.floor(place[0] + 0.5), math.floor(place[1] + 0.5)
            other = squares.setdefault((index, *square), header.name)
            if other != header.name:
                raise ConfigError(
                    f"{folder / header.name} and {other} lie at one place: leave one of them out "
                    "(two dates of a place are two datasets)"
                )
        regions.append(Region(name, grid, squares=tuple(own)))
    return regions, squares


def _groups(headers: Sequence[Header]) -> list[list[Header]]:
    """Files of one reference system and pixel size."""
    groups: list[list[Header]] = []
    for header in headers:
        own = (group for group in groups if same_pixels(group[0].geobox, header.geobox))
        group = next(own, None)
        if group is None:
            groups.append([header])
        else:
            group.append(header)
    return groups


def _bounding_grid(
    grids: Sequence[GeoBox], size_px: int
) -> tuple[GeoBox, Float64[np.ndarray, "square 2"]]:
    """The grid that holds some squares, in step with the first, and where in it they begin."""
    corners = np.array([begins_at(grids[0], grid) for grid in grids])
    nearest = np.floor(corners + 0.5)
    row, col = nearest.min(axis=0)
    height, width = (nearest - (row, col)).max(axis=0) + size_px
    affine = grids[0].affine @ Affine.translation(int(col), int(row))
    return GeoBox((int(height), int(width)), affine, grids[0].crs), corners - (row, col)


def _names(names: Iterable[str]) -> list[str]:
    """Names that files and table rows can bear; what comes again has a number after it."""
    taken: dict[str, None] = {}
    for name in names:
        safe = unique = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("._-") or "raster"
        number = 1
        while unique in taken:
            number += 1
            unique = f"{safe}-{number}"
        taken[unique] = None
    return list(taken)


# Large rasters


def _stacks(
    config: GeotiffConfig,
    folder: Path,
    headers: Sequence[Header],
    by_band: Mapping[str, Sequence[str]],
) -> list[Stack]:
    """Every raster with all bands; or the one place whose bands lie in several."""
    order = list(config.bands)
    parts = [
        Part(
            header.name,
            tuple(config.bands[name].band - 1 for name in by_band.get(header.name, order)),
            tuple(order.index(name) for name in by_band.get(header.name, order)),
        )
        for header in headers
    ]
    if not by_band:
        return [Stack(h.name, h.geobox, (p,)) for h, p in zip(headers, parts, strict=True)]
    finest = min(order, key=lambda name: config.bands[name].resolution_m)
    grid = next(h.geobox for h in headers if finest in by_band[h.name])
    for header in headers:
        if header.geobox.crs == grid.crs and header.geobox.affine.a < 0.9 * grid.affine.a:
            raise ConfigError(
                f"{folder / header.name} has finer pixels than band {finest}, whose "
                f"data.geotiff.bands.{finest}.resolution_m is the least: give every band the "
                "resolution its file has"
            )
    return [Stack(folder.resolve().name, grid, tuple(parts))]


def _check_apart(stacks: Sequence[Stack], size_px: int) -> None:
    """Refuse rasters that share a grid and ground: a place must say which raster is meant."""
    boxes = [shapely.box(*stack.geobox.boundingbox.bbox) for stack in stacks]
    pairs = shapely.STRtree(boxes).query(boxes, "intersects")
    for one, other in pairs[:, pairs[0] < pairs[1]].T:
        first, second = stacks[one].geobox, stacks[other].geobox
        if not same_pixels(first, second):
            continue
        place = begins_at(first, second)
        in_step = all(abs(number - round(number)) < SAME_PLACE_PX for number in place)
        shared = [
            min(size, number + length) - max(0.0, number)
            for number, size, length in zip(place, first.shape, second.shape, strict=True)
        ]
        if in_step and min(shared) > size_px - 0.5:
            raise ConfigError(
                f"{stacks[one].name} and {stacks[other].name} lie over each other on one grid, and "
                "the pixels of a place are taken from one raster: merge them (gdalbuildvrt "
                "ALL.vrt *.tif, and ALL.vrt as data.geotiff.path), or leave one out"
            )


# What the numbers mean


def _unit(
    config: GeotiffConfig,
    folder: Path,
    headers: Sequence[Header],
    by_band: Mapping[str, Sequence[str]],
) -> tuple[float, float]:
    """Scale and offset, as a pair: what the configuration says, else what the files say.

    Raises:
        SourceError: the files say different things, and the configuration nothing.
    """
    if config.scale is not None or config.offset is not None:
        return 1.0 if config.scale is None else config.scale, config.offset or 0.0
    first: tuple[str, tuple[float, float]] | None = None
    for header in headers:
        for name in by_band.get(header.name, config.bands):
            unit = header.units[config.bands[name].band - 1]
            first = first or (f"band {name} of {header.name}", unit)
            if unit != first[1]:
                raise SourceError(
                    f"{folder / header.name} says scale {unit[0]:g} and offset {unit[1]:g} of band "
                    f"{name}, and {first[0]} has {first[1][0]:g} and {first[1][1]:g}: a dataset "
                    "has one; bring the pixels to one with gdal_translate -unscale, or say which "
                    "holds for all of them in data.geotiff.scale and offset"
                )
    scale, offset = first[1] if first else (1.0, 0.0)
    if not (0 < scale < math.inf and math.isfinite(offset)):
        raise SourceError(
            f"{folder / headers[0].name} says scale {scale:g} and offset {offset:g}, which make no "
            "physical values: give others in data.geotiff.scale and offset"
        )
    return scale, offset


def _overridden(headers: Sequence[Header], unit: tuple[float, float]) -> dict[str, str]:
    """What files say of their scale and offset that the configuration says otherwise."""
    said = sorted({each for header in headers for each in header.units} - {(1.0, 0.0), unit})
    if not said:
        return {}
    theirs = ", ".join(f"{scale:g} and {offset:g}" for scale, offset in said)
    return {"scale and offset in files, overridden": theirs}


def _sensor(
    config: GeotiffConfig, dtype: Literal["uint8", "uint16"], scale: float, offset: float
) -> Sensor:
    """The sensor a configuration describes, as yet without composites."""
    return Sensor(
        name="geotiff",
        title=config.title,
        bands=tuple(
            Band(name, band.resolution_m, band.wavelength_nm) for name, band in config.bands.items()
        ),
        dtype=dtype,
        scale=scale,
        offset=offset,
        unit=config.unit,
        composites={},
        standardised=config.standardised,
    )


def _composites(
    config: GeotiffConfig, image: ChipFiles | LargeRasters, looked_at: Iterable[GeoBox]
) -> dict[str, Composite]:
    """The ways to show the bands, under the range given, or else under one that is looked up."""
    shown = dict(config.composites) or _first_bands(list(config.bands))
    if config.display_range:
        low, high = config.display_range
        return {name: Composite(bands, low, high) for name, bands in shown.items()}
    looks = [image.read(geobox) for geobox in looked_at]
    return {
        name: Composite(bands, *_range(looks, sorted({*bands}), image.sensor))
        for name, bands in shown.items()
    }


def _first_bands(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    if len(names) < 3:
        return {"first band, grey": (names[0], names[0], names[0])}
    return {f"bands {'-'.join(names[:3])}": (names[0], names[1], names[2])}


def _looked_at(regions: Sequence[Region], size_px: int) -> Iterator[GeoBox]:
    """Windows spread evenly over the squares or, for rasters, over the regions."""
    squares = [(region, square) for region in regions for square in region.squares]
    if squares:
        for index in _spread(len(squares)):
            region, place = squares[index]
            row, col = (math.floor(number + 0.5) for number in place)
            yield region.geobox[row : row + size_px, col : col + size_px]
        return
    chosen = _spread(len(regions))
    num = math.isqrt(MOST_LOOKED_AT // len(chosen))
    for index in chosen:
        geobox = regions[index].geobox
        rows, cols = (_windows(length, num) for length in geobox.shape)
        yield from (geobox[row, col] for row in rows for col in cols)


def _spread(length: int) -> list[int]:
    """At most ``MOST_LOOKED_AT`` of so many things, evenly."""
    return sorted({*np.linspace(0, length - 1, min(length, MOST_LOOKED_AT)).astype(int).tolist()})


def _windows(length: int, num: int) -> list[slice]:
    """So many windows along an axis, each in the middle of its part."""
    size = min(length, LOOK_PX)
    starts = ((2 * i + 1) * length // (2 * num) - size // 2 for i in range(num))
    starts = (min(max(start, 0), length - size) for start in starts)
    return [slice(start, start + size) for start in starts]


def _range(looks: Sequence[Raster], bands: Sequence[str], sensor: Sensor) -> tuple[float, float]:
    """From 2 % to 98 % of the physical values of some bands, to two digits."""
    places = [sensor.band_names.index(band) for band in bands]
    stored = np.concatenate([look.values[places][:, look.valid].reshape(-1) for look in looks])
    if not len(stored):
        stored = np.array([0, np.iinfo(sensor.dtype).max])
    physical = np.quantile(stored * sensor.scale + sensor.offset, _SHOWN)
    low, high = (float(f"{value:.2g}") for value in physical)
    if low < high:
        return low, high
    return low, low + max(abs(low), abs(sensor.scale))  # one colour: any range shows it


# Labels, and what tells builds apart


def _labels(data: DataConfig) -> LabelSource:
    config = data.geotiff
    if config.labels == "worldcover":
        if config.label_classes:
            raise ConfigError(
                "data.geotiff.label_classes says what the codes of a label raster mean, but labels "
                "is 'worldcover': leave one of them out"
            )
        return WorldCover(data.worldcover_root, data.worldcover_year)
    return LabelRaster(Path(config.labels).expanduser(), config.label_classes)


def _settings(
    config: GeotiffConfig, headers: Sequence[Header], unit: tuple[float, float]
) -> dict[str, Any]:
    listed = "".join(f"{header.num_bytes} {header.name}\n" for header in headers)
    return {
        "geotiff": {
            "path": config.path,
            "files": {
                "number": len(headers),
                "sha256 of names and sizes": hashlib.sha256(listed.encode()).hexdigest(),
            },
            "bands": {name: asdict(band) for name, band in config.bands.items()},
            "nodata": config.nodata,
            **_overridden(headers, unit),
            "labels": config.labels,
            "label_classes": {str(code): name for code, name in config.label_classes.items()},
        }
    }
