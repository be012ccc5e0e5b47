"""A user's own pixels: GeoTIFF chips or large rasters of any sensor, by a map of their bands.

They lie on disk in one of three ways: ready-made chips, each a file and a square of its own
(``ChipFiles``); large rasters that hold all bands, or one raster for every band of one place,
brought to the grid of the finest (both ``LargeRasters``). Labels may come from a raster as well
(``LabelRaster``).
"""

from __future__ import annotations

import glob
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Shaped
from odc.geo.geobox import GeoBox

from bharateo.config import DataConfig, GeotiffConfig
from bharateo.errors import ConfigError, CorruptRasterError, SourceError, UnknownCodeError
from bharateo.landcover import BHARATEO_CLASSES, NUM_CLASSES, WORLDCOVER, ClassScheme
from bharateo.pixels.raster import (
    SNAP_PX,
    OpenRasters,
    Raster,
    RasterFile,
    as_integer,
    begins_at,
    corner_in,
    existing,
    known_on,
    open_raster,
    same_pixels,
)
from bharateo.regions import Region
from bharateo.sensor import Band, Composite, Sensor
from bharateo.sources import ImageSource, LabelSource, Recipe
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

# Pixels


@dataclass(frozen=True)
class FileBands:
    """Bands of one file: their indices in it, from 0, and among all bands asked for."""

    file: str
    indices: tuple[int, ...]
    places: tuple[int, ...]


@dataclass
class OwnRasters(ImageSource):
    """The rasters below a folder, all of one type; those used last stay open.

    ``root`` is the folder as it was given, for records. ``nodata`` is the stored value of pixels
    without data; ``declared``: what each file says, and 0 in those that say nothing; None: what
    each file says, or none. Masks and alpha always hold.
    """

    name: str
    attribution: tuple[str, ...]
    sensor: Sensor
    root: str
    folder: Path
    dtype: str
    nodata: float | Literal["declared"] | None
    opened: OpenRasters = field(init=False, default_factory=OpenRasters, compare=False)

    def read_part(
        self, part: FileBands, geobox: GeoBox | None = None
    ) -> tuple[Shaped[np.ndarray, "band row col"], Bool[np.ndarray, "row col"], GeoBox]:
        """The stored values of bands of a file, unsigned and 0 where there is nothing; where all of
        them hold one; and their grid, which is the file's own unless another is given.

        Pixels of the file's own grid come as they are, others by bilinear.

        Raises:
            CorruptRasterError: the file is gone, damaged, of another type or negative.
        """

        def open_one() -> RasterFile:
            file = existing(self.folder / part.file)
            if file.dtype != self.dtype:
                raise CorruptRasterError(
                    f"{file.location} holds {file.dtype} where {self.dtype} was planned for: it "
                    "changed meanwhile; build again into another folder"
                )
            return file

        file = self.opened.get(part.file, open_one)
        nodata = self.nodata
        if nodata == "declared":
            nodata = None if file.says_what_is_there else 0
        geobox = geobox or file.geobox
        stored, there = known_on(file, geobox, part.indices, nodata, "bilinear")
        valid = np.all(there, axis=0)
        if stored.dtype != np.int16:
            return stored, valid, geobox
        lowest = stored.min(where=valid, initial=0)
        if lowest < 0:
            raise CorruptRasterError(
                f"{file.location} holds values down to {lowest}, chips hold 0 to 65535: if that "
                "stands for no data, give it in data.geotiff.nodata (the file's own is "
                f"{file.nodata[0]}); else shift the values with gdal_translate -ot UInt16 -scale "
                "and set data.geotiff.offset"
            )
        return np.where(valid, stored, 0).astype(np.uint16), valid, geobox

    def places(self, scene: Any = None) -> Sequence[str]:
        """The folder of the rasters."""
        return (self.root,)


@dataclass
class ChipFiles(OwnRasters):
    """Ready-made chips: a file is a square. ``squares``: grid, row and column -> file."""

    indices: tuple[int, ...]
    """Where the bands lie in every file, from 0."""
    grids: tuple[GeoBox, ...]
    squares: Mapping[tuple[int, int, int], str]

    def read(self, geobox: GeoBox) -> Raster:
        """The chip whose square is nearest to ``geobox``, less than half a pixel off.

        It comes on the file's own grid. The provenance names the file as ``item``.

        Raises:
            SourceError: no file is there.
            CorruptRasterError: see ``read_part``.
        """
        for index, grid in enumerate(self.grids):
            row, col = (math.floor(number + 0.5) for number in begins_at(grid, geobox))
            if same_pixels(grid, geobox) and (index, row, col) in self.squares:
                file = self.squares[index, row, col]
                break
        else:
            raise SourceError(
                f"no file below {self.folder} lies at {geobox.boundingbox}: with "
                "plan.strategy 'files' every file is one chip, and nothing is read between them"
            )
        part = FileBands(file, self.indices, tuple(range(len(self.indices))))
        values, valid, own = self.read_part(part)
        if own.shape != geobox.shape:
            raise CorruptRasterError(
                f"{self.folder / file} is {own.shape[0]} x {own.shape[1]} px where "
                f"{geobox.shape[0]} x {geobox.shape[1]} was planned for: it changed meanwhile; "
                "build again into another folder"
            )
        return Raster(values, valid, own, {"root": self.root, "item": file})


@dataclass(frozen=True)
class Stack:
    """All bands of one place: its name, its grid, and the parts of files they lie in."""

    name: str
    geobox: GeoBox
    parts: tuple[FileBands, ...]


@dataclass
class LargeRasters(OwnRasters):
    """Rasters that chips are cut from, each with all bands, or one a band."""

    stacks: tuple[Stack, ...]

    def read(self, geobox: GeoBox) -> Raster:
        """A window of a raster's own grid; bands of coarser files come by bilinear.

        A pixel is valid where every band holds a value. The provenance names the raster as
        ``item``.

        Raises:
            SourceError: it is a window of none.
            CorruptRasterError: see ``read_part``.
        """
        found = (each for each in self.stacks if corner_in(each.geobox, geobox) is not None)
        if (stack := next(found, None)) is None:
            raise SourceError(
                f"no raster below {self.folder} has {geobox} as a window: only pixels of the "
                "rasters' own grids are read"
            )
        provenance: dict[str, Any] = {"root": self.root, "item": stack.name}
        if len(stack.parts) == 1:
            return Raster(*self.read_part(stack.parts[0], geobox), provenance)
        values = np.empty((self.sensor.num_bands, *geobox.shape), self.sensor.dtype)
        valid = np.ones(geobox.shape, bool)
        for part in stack.parts:
            values[list(part.places)], own, _ = self.read_part(part, geobox)
            valid &= own
        provenance |= {"files": [part.file for part in stack.parts], "resampling": "bilinear"}
        return Raster(values, valid, geobox, provenance)


# Labels


class LabelRaster(LabelSource):
    """Land-cover codes from a raster of one band, brought to a grid by nearest neighbour.

    ``classes``: code -> class id 0..7; WorldCover's codes if empty. Nodata is what the file says,
    else 0, unless that is a class; ground that the raster does not reach, or that its mask or alpha
    band leaves out, has no label.

    Raises:
        ConfigError: the file does not exist, or a class contradicts its nodata.
        CorruptRasterError: it is no raster of one band of integers.
    """

    attribution: tuple[str, ...] = ()

    def __init__(self, path: Path, classes: Mapping[int, int]) -> None:
        self.path, self.classes = path, dict(classes)
        self.name = f"label raster {path.name}"
        self._opened = OpenRasters()
        file = self._file()
        self._nodata = as_integer(file.nodata[0], file.dtype)
        native = {
            code: (BHARATEO_CLASSES[class_id].name, class_id)
            for code, class_id in self.classes.items()
        } or WORLDCOVER.native
        if self._nodata in native:
            raise ConfigError(
                f"data.geotiff.label_classes makes code {self._nodata} a class, which is nodata in "
                f"{path}: leave it out, or run gdal_edit.py -unsetnodata on the file"
            )
        nodata = 0 if self._nodata is None else self._nodata
        if nodata in native or not 0 <= nodata <= 255:
            codes = range(min(int(np.iinfo(file.dtype).max), 255) + 1)
            nodata = max({*codes} - {*native})
        self.scheme = ClassScheme(self.name if classes else WORLDCOVER.name, native, nodata)

    def read(self, geobox: GeoBox) -> Raster:
        """Native codes on any grid, uint8 (1, row, col), the scheme's nodata where there is none.

        Raises:
            CorruptRasterError: the file is damaged.
            UnknownCodeError: a code is no number from 0 to 255.
        """
        fill = self.scheme.nodata if self._nodata is None else self._nodata
        file = self._file()
        codes = file.read_on(geobox, "nearest", fill, masked=True)[0]
        valid = codes != fill
        wrong = valid & ((codes < 0) | (codes > 255))
        if wrong.any():
            raise UnknownCodeError(
                f"code {codes[wrong].min()} in {self.path} is not one from 0 to 255: name it as "
                "the file's nodata (gdal_edit.py -a_nodata) or give the classes other codes"
            )
        native = np.where(valid, codes, self.scheme.nodata).astype(np.uint8)
        provenance = {"file": str(self.path), **file.identity, "resampling": "nearest neighbour"}
        return Raster(native[None], valid, geobox, provenance)

    def _file(self) -> RasterFile:
        def open_one() -> RasterFile:
            file = open_raster(str(self.path), vrt=True)
            if file is None:
                raise ConfigError(
                    f"data.geotiff.labels {str(self.path)!r} does not exist: give 'worldcover' or "
                    "a raster with one band of land-cover codes"
                )
            if file.num_bands != 1 or file.dtype.kind not in "ui":
                raise CorruptRasterError(
                    f"{self.path} has {file.num_bands} band(s) of {file.dtype}, labels are one "
                    "band of integers: take the band with gdal_translate -b N -ot Byte"
                )
            _ = file.geobox  # it must say where it lies
            return file

        return self._opened.get(str(self.path), open_one)


class NoLabels(LabelSource):
    """No land cover anywhere: chips to learn from without labels."""

    name = "no labels"
    attribution: tuple[str, ...] = ()
    scheme = ClassScheme("no labels", {})

    def read(self, geobox: GeoBox) -> Raster:
        """Nodata on any grid, uint8 (1, row, col)."""
        nothing = np.zeros(geobox.shape, np.uint8)
        return Raster(nothing[None], nothing > 0, geobox, {})


# From a configuration to its files


@dataclass(frozen=True)
class Header:
    """What a file says of itself; ``name`` is its path below the folder.

    ``bands`` are those of the configuration that lie in it; ``units``, scale and offset, are one
    for each band that it has.
    """

    name: str
    bands: tuple[str, ...]
    geobox: GeoBox
    dtype: str
    num_bytes: int
    units: tuple[tuple[float, float], ...]


def geotiff_recipe(data: DataConfig, say: Callable[[str], object] = lambda text: None) -> Recipe:
    """A folder of rasters as regions, with WorldCover or a label raster on their grids.

    With ``plan.strategy`` ``files`` every file is one chip; files of one reference system and
    pixel size make one region. With any other strategy every raster is a region.

    Raises:
        ConfigError: a value contradicts another or the files.
        SourceError: a file cannot be read, does not say where it lies or holds other numbers.
    """
    config, size_px = data.geotiff, data.plan.size_px
    _check_values(config, data.plan.min_classes)
    per_band = any(band.file is not None for band in config.bands.values())
    folder, bands_of = _find(config)
    headers = _headers(config, folder, bands_of)
    dtype, nodata = headers[0].dtype, config.nodata
    if isinstance(nodata, int | float) and as_integer(nodata, np.dtype(dtype)) is None:
        raise ConfigError(
            f"data.geotiff.nodata {nodata:g} is no value of {dtype}, which the files hold: "
            "correct it, or leave it out for what the files say"
        )
    scale, offset = _unit(config, folder, headers)
    sensor = Sensor(
        name="geotiff",
        title=config.title,
        bands=tuple(
            Band(name, band.resolution_m, band.wavelength_nm) for name, band in config.bands.items()
        ),
        dtype=_STORED_AS[dtype],
        scale=scale,
        offset=offset,
        unit=config.unit,
        composites={},  # they need a look at the pixels
        standardised=config.standardised,
    )
    about = (
        config.title,
        config.attribution,
        sensor,
        str(folder),
        folder.absolute(),
        dtype,
        nodata,
    )
    image: ChipFiles | LargeRasters
    if data.plan.strategy == "files":
        if per_band:
            raise ConfigError(
                "plan.strategy 'files' takes files that hold all bands, but data.geotiff.bands "
                "names a file for each: use strategy 'blocks' or 'grid'"
            )
        regions, squares = _chip_regions(folder, headers, size_px)
        indices = tuple(band.band - 1 for band in config.bands.values())
        image = ChipFiles(*about, indices, tuple(r.geobox for r in regions), squares)
    else:
        stacks = _stacks(config, folder, headers, size_px)
        names = _names(each.name if per_band else Path(each.name).stem for each in stacks)
        regions = [Region(name, each.geobox) for name, each in zip(names, stacks, strict=True)]
        image = LargeRasters(*about, tuple(stacks))
    image.sensor = replace(sensor, composites=_composites(config, image, regions, size_px))
    labels: LabelSource
    if config.labels == "none":
        labels = NoLabels()
    elif config.labels != "worldcover":
        labels = LabelRaster(Path(config.labels).expanduser(), config.label_classes)
    elif config.label_classes:
        raise ConfigError(
            "data.geotiff.label_classes says what the codes of a label raster mean, but labels is "
            "'worldcover': leave one of them out"
        )
    else:
        labels = WorldCover(data.worldcover_root, data.worldcover_year)
    listed = "".join(f"{header.num_bytes} {header.name}\n" for header in headers)
    # What files say of their scale and offset that the configuration says otherwise.
    units = {unit for header in headers for unit in header.units} - {(1.0, 0.0), (scale, offset)}
    theirs = ", ".join(f"{scale:g} and {offset:g}" for scale, offset in sorted(units))
    settings = {
        "path": config.path,
        "files": {
            "number": len(headers),
            "sha256 of names and sizes": hashlib.sha256(listed.encode()).hexdigest(),
        },
        "bands": {name: asdict(band) for name, band in config.bands.items()},
        "nodata": config.nodata,
        **({"scale and offset in files, overridden": theirs} if theirs else {}),
        "labels": config.labels,
        "label_classes": {str(code): name for code, name in config.label_classes.items()},
    }
    return Recipe("geotiff", regions, image, labels, {"geotiff": settings})


def _check_values(config: GeotiffConfig, min_classes: int) -> None:
    """Refuse what can be refused before a file is looked at."""
    if config.labels == "none" and (min_classes or config.label_classes):
        raise ConfigError(
            "data.geotiff.labels is 'none', and no chip has a class: set data.plan.min_classes to "
            "0 and leave data.geotiff.label_classes out"
        )
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


def _find(config: GeotiffConfig) -> tuple[Path, dict[str, list[str]]]:
    """The folder, and of the rasters below it that are meant the bands that lie in each.

    The rasters are sorted where each holds all bands, else in the order of the bands.
    """

    def matching(pattern: str) -> list[Path]:
        try:
            return sorted(folder.glob(pattern))
        except (ValueError, IndexError, NotImplementedError):  # no pattern of paths below a folder
            return []

    place = Path(config.path).expanduser()
    if place.is_dir():
        folder, found = place, [f for f in place.rglob("*") if f.suffix.lower() in _ENDINGS]
    elif place.is_file():
        folder, found = place.parent, [place]
    else:
        folder = next(each for each in (place, *place.parents) if not glob.has_magic(str(each)))
        found = matching(str(place.relative_to(folder)))
    names = [f.relative_to(folder).as_posix() for f in found if f.is_file()]
    names = sorted(name for name in names if not Path(name).name.startswith("."))
    if not names:
        what = "holds no *.tif" if place.is_dir() else "is no file, folder or pattern of files"
        raise ConfigError(
            f"data.geotiff.path {config.path!r} {what}: give a folder of GeoTIFFs, one file, or a "
            "pattern such as chips/*.tif"
        )
    patterns = {name: band.file for name, band in config.bands.items() if band.file is not None}
    if not patterns:
        return folder, {name: [*config.bands] for name in names}
    if other := next((name for name in config.bands if name not in patterns), None):
        raise ConfigError(
            f"data.geotiff.bands: {next(iter(patterns))} names its file and {other} does not: name "
            "the file of every band, or of none where every file holds all bands"
        )
    if not place.is_dir():
        raise ConfigError(
            f"data.geotiff.path {config.path!r} is no folder, but the bands name their files: "
            "give the folder they lie in"
        )
    bands_of: dict[str, list[str]] = {}
    for band, pattern in patterns.items():
        literal = (folder / pattern).is_file() and not Path(pattern).is_absolute()
        files = [file for file in ([folder / pattern] if literal else matching(pattern))
                 if file.is_file()]  # fmt: skip
        if len(files) != 1:
            shown = [file.relative_to(folder).as_posix() for file in files] or names
            raise ConfigError(
                f"data.geotiff.bands.{band}.file {pattern!r} matches {len(files)} files in "
                f"{folder}, not one: correct it ({'those' if files else 'there'} are "
                f"{', '.join(shown[:5])})"
            )
        bands_of.setdefault(files[0].relative_to(folder).as_posix(), []).append(band)
    return folder, bands_of


def _headers(
    config: GeotiffConfig, folder: Path, bands_of: Mapping[str, Sequence[str]]
) -> list[Header]:
    """What files say of themselves, of one kind and with all bands that are asked of them.

    Raises:
        CorruptRasterError: one cannot be read, or does not say where it lies.
        SourceError: its grid or numbers are of a kind that is not taken, or not the others'.
        ConfigError: it lacks a band.
    """
    headers: list[Header] = []
    for name, bands in bands_of.items():
        path = folder / name
        with existing(path) as file:
            affine: Affine = file.geobox.affine
            _ = file.says_what_is_there  # one image, whose mask can be read
        dtype = str(file.dtype)
        if affine.b or affine.d or affine.a <= 0 or affine.e >= 0:
            how = "rotated (its transform has a shear)" if affine.b or affine.d else "upside down"
            raise SourceError(
                f"the grid of {path} is {how}, chips have north up: bring it there with gdalwarp "
                "IN OUT"
            )
        if dtype not in _STORED_AS:
            raise SourceError(
                f"{path} holds {dtype}, chips hold uint8 or uint16: convert it, e.g. "
                "gdal_translate -ot UInt16 -scale 0 1 0 10000 IN OUT, and set data.geotiff.scale "
                "(here 0.0001) and offset so that they give the physical values back"
            )
        for band in bands:
            number = config.bands[band].band
            if number > file.num_bands:
                alpha = number == file.num_bands + 1 and file.has_alpha
                raise ConfigError(
                    f"data.geotiff.bands.{band} is band {number} of {path}, which "
                    + (
                        "is marked as alpha (where there are pixels), and is no band of an image: "
                        f"if it is one, run gdal_edit.py -colorinterp_{number} undefined on it"
                        if alpha
                        else f"has {file.num_bands}: correct the number, or leave the file out "
                        "with a pattern in data.geotiff.path"
                    )
                )
        if headers and dtype != headers[0].dtype:
            raise SourceError(
                f"{path} holds {dtype} and {headers[0].name} {headers[0].dtype}: convert one kind "
                "(gdal_translate -ot), or leave it out with a pattern in data.geotiff.path"
            )
        size = int(file.identity["size"])
        headers.append(Header(name, tuple(bands), file.geobox, dtype, size, file.units))
    return headers


# Ready-made chips


def _chip_regions(
    folder: Path, headers: Sequence[Header], size_px: int
) -> tuple[list[Region], dict[tuple[int, int, int], str]]:
    """A region for every reference system and pixel size, and what file is which square."""
    for header in headers:
        height, width = header.geobox.shape
        if (height, width) != (size_px, size_px):
            raise ConfigError(
                f"{folder / header.name} is {height} x {width} px, and with plan.strategy 'files' "
                f"every file is a chip of plan.size_px {size_px}: set that to the files' size, "
                "leave the file out, or use strategy 'blocks' or 'grid'"
            )
    groups: list[list[Header]] = []  # of one reference system and pixel size
    for header in headers:
        own = (group for group in groups if same_pixels(group[0].geobox, header.geobox))
        if group := next(own, None):
            group.append(header)
        else:
            groups.append([header])
    regions = []
    squares: dict[tuple[int, int, int], str] = {}
    names = _names([folder.resolve().name] * len(groups))
    for index, (name, group) in enumerate(zip(names, groups, strict=True)):
        # The grid that holds all squares, in step with the first.
        first = group[0].geobox
        corners = np.array([begins_at(first, header.geobox) for header in group])
        nearest = np.floor(corners + 0.5)
        row, col = nearest.min(axis=0).astype(int).tolist()
        height, width = (nearest.max(axis=0) - (row, col)).astype(int) + size_px
        affine = first.affine @ Affine.translation(col, row)
        places = [(y, x) for y, x in (corners - (row, col)).tolist()]
        for (y, x), header in zip(places, group, strict=True):
            square = math.floor(y + 0.5), math.floor(x + 0.5)
            other = squares.setdefault((index, *square), header.name)
            if other != header.name:
                raise ConfigError(
                    f"{folder / header.name} and {other} lie at one place: leave one of them out "
                    "(two dates of a place are two datasets)"
                )
        grid = GeoBox((int(height), int(width)), affine, first.crs)
        regions.append(Region(name, grid, squares=tuple(places)))
    return regions, squares


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
    config: GeotiffConfig, folder: Path, headers: Sequence[Header], size_px: int
) -> list[Stack]:
    """Every raster with all bands; or the one place whose bands lie in several.

    Rasters that share a grid and ground are refused: a place must say which raster is meant.
    """
    order = list(config.bands)
    parts = [
        FileBands(
            header.name,
            tuple(config.bands[name].band - 1 for name in header.bands),
            tuple(order.index(name) for name in header.bands),
        )
        for header in headers
    ]
    if config.bands[order[0]].file is not None:
        finest = min(order, key=lambda name: config.bands[name].resolution_m)
        grid = next(header.geobox for header in headers if finest in header.bands)
        for header in headers:
            if header.geobox.crs == grid.crs and header.geobox.affine.a < 0.9 * grid.affine.a:
                raise ConfigError(
                    f"{folder / header.name} has finer pixels than band {finest}, whose "
                    f"data.geotiff.bands.{finest}.resolution_m is the least: give every band the "
                    "resolution its file has"
                )
        return [Stack(folder.resolve().name, grid, tuple(parts))]
    stacks = [Stack(h.name, h.geobox, (p,)) for h, p in zip(headers, parts, strict=True)]
    boxes = [shapely.box(*stack.geobox.boundingbox.bbox) for stack in stacks]
    pairs = shapely.STRtree(boxes).query(boxes, "intersects")
    for one, other in pairs[:, pairs[0] < pairs[1]].T:
        first, second = stacks[one].geobox, stacks[other].geobox
        if not same_pixels(first, second):
            continue
        place = begins_at(first, second)
        in_step = all(abs(number - round(number)) < SNAP_PX for number in place)
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
    return stacks


# What the numbers mean


def _unit(config: GeotiffConfig, folder: Path, headers: Sequence[Header]) -> tuple[float, float]:
    """Scale and offset, as a pair: what the configuration says, else what the files say.

    Raises:
        SourceError: the files say different things, and the configuration nothing.
    """
    if config.scale is not None or config.offset is not None:
        return 1.0 if config.scale is None else config.scale, config.offset or 0.0
    first: tuple[str, tuple[float, float]] | None = None
    for header in headers:
        for name in header.bands:
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


def _composites(
    config: GeotiffConfig,
    image: ChipFiles | LargeRasters,
    regions: Sequence[Region],
    size_px: int,
) -> dict[str, Composite]:
    """The ways to show the bands, under the range given; else from 2 % to 98 % of the physical
    values of a few windows, to two digits.
    """
    names, sensor = list(config.bands), image.sensor
    first = (names[0], names[1], names[2]) if len(names) > 2 else (names[0],) * 3
    title = f"bands {'-'.join(first)}" if len(names) > 2 else "first band, grey"
    shown = dict(config.composites) or {title: first}
    if config.display_range:
        low, high = config.display_range
        return {name: Composite(bands, low, high) for name, bands in shown.items()}
    looks = [image.read(geobox) for geobox in _looked_at(regions, size_px)]
    composites = {}
    for name, bands in shown.items():
        places = sorted({names.index(band) for band in bands})
        stored = np.concatenate([look.values[places][:, look.valid].reshape(-1) for look in looks])
        if not len(stored):
            stored = np.array([0, np.iinfo(sensor.dtype).max])
        physical = np.quantile(stored * sensor.scale + sensor.offset, _SHOWN)
        low, high = (float(f"{value:.2g}") for value in physical)
        if low >= high:  # one colour: any range shows it
            high = low + max(abs(low), abs(sensor.scale))
        composites[name] = Composite(bands, low, high)
    return composites


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
        windows: list[list[slice]] = []
        for length in geobox.shape:
            size = min(length, LOOK_PX)
            # Each in the middle of its part of the axis.
            starts = ((2 * i + 1) * length // (2 * num) - size // 2 for i in range(num))
            starts = (min(max(start, 0), length - size) for start in starts)
            windows.append([slice(start, start + size) for start in starts])
        yield from (geobox[row, col] for row in windows[0] for col in windows[1])


def _spread(length: int) -> list[int]:
    """At most ``MOST_LOOKED_AT`` of so many things, evenly."""
    return sorted({*np.linspace(0, length - 1, min(length, MOST_LOOKED_AT)).astype(int).tolist()})
