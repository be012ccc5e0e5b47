"""A Sentinel-2 product as ESA hands it out: a .SAFE folder, or the .zip of one.

Its metadata says of what level it is, which files hold its bands and what must be added to their
numbers; nothing is told from names or dates. Source of the elements' names: Sentinel-2 Products
Specification Document 14.9, sections 3 and 4.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from bharateo.errors import SourceError
from bharateo.files import open_file, read_bytes
from bharateo.pixels.formats import archive_of, read_in_archive
from bharateo.sensor import SENTINEL2_L1C, SENTINEL2_L2A, Sensor
from bharateo.sources.sentinel2 import FIRST_BASELINE_WITH_OFFSET, OFFSET_DN
from bharateo.sources.stac import Scene

SENSORS = {"MTD_MSIL2A.xml": SENTINEL2_L2A, "MTD_MSIL1C.xml": SENTINEL2_L1C}
"""What a product holds, by the name of its metadata."""

_METADATA_BYTES = 2**24

_BAND_IDS = {
    "B02": 1, "B03": 2, "B04": 3, "B05": 4, "B06": 5, "B07": 6, "B08": 7, "B8A": 8, "B11": 11,
    "B12": 12,
}  # fmt: skip
"""Of bands in the metadata. Source: Products Specification Document, ``band_id``."""

_QUANTIFICATION = 10_000


def metadata_of(location: str) -> Path | None:
    """The metadata of the product at a path: its folder, its .zip, or the metadata itself; None
    where the path is none of these.

    Raises:
        SourceError: a .zip cannot be read, or holds no product, or several.
    """
    path = Path(location)
    if path.name in SENSORS:
        return path if path.exists() or archive_of(path) else None
    if path.is_dir():
        return next((path / name for name in SENSORS if (path / name).exists()), None)
    if path.suffix.lower() != ".zip" or not path.exists():
        return None
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path} is no .zip that can be read ({error}): fetch it again"
        ) from error
    found = [name for name in names if name.name in SENSORS and len(name.parts) <= 2]
    if len(found) != 1:
        raise SourceError(
            f"{path} holds {len(found) or 'no'} Sentinel-2 product{'s' if found[1:] else ''} "
            f"({', '.join(SENSORS)}): unpack it, and give the folder or raster that is meant"
        )
    return path / found[0]


def product_scene(metadata: Path, sensor: Sensor) -> Scene:
    """The scene of a product: its files of the sensor's bands at their own resolution, those of
    level L2A with SCL, and the offset of their numbers.

    Raises:
        SourceError: the metadata cannot be read or does not say what it must, or a file is
            missing.
    """
    folder, root = metadata.parent, _parsed(metadata)

    def said(*names: str) -> list[ElementTree.Element]:
        return [each for each in root.iter() if each.tag.rpartition("}")[2] in names]

    def one(*names: str) -> str:
        texts = {(each.text or "").strip() for each in said(*names)}
        if len(texts) != 1:
            raise SourceError(
                f"{metadata} says {' and '.join(sorted(texts)) or 'nothing'} as {names[0]}: a "
                "product of one granule is read, of processing baseline 02.04 (2016) or later; "
                "download it anew"
            )
        return texts.pop()

    level, baseline = one("PROCESSING_LEVEL"), one("PROCESSING_BASELINE")
    if SENSORS[metadata.name] is SENTINEL2_L2A:
        offset_name, scale_name = "BOA_ADD_OFFSET", "BOA_QUANTIFICATION_VALUE"
        layers, right = {"SCL": "SCL_20m"}, level.startswith("Level-2A")
        layers |= {band.name: f"{band.name}_{band.resolution_m:g}m" for band in sensor.bands}
    else:
        offset_name, scale_name = "RADIO_ADD_OFFSET", "QUANTIFICATION_VALUE"
        layers, right = {band.name: band.name for band in sensor.bands}, level == "Level-1C"
    if not right:
        raise SourceError(f"{metadata} says that the product is {level}: download it anew")
    scale = one(scale_name, f"L2A_{scale_name}")
    if not scale.isdecimal() or int(scale) != _QUANTIFICATION:
        raise SourceError(
            f"{metadata} has {scale} as {scale_name}, Sentinel-2 has {_QUANTIFICATION}: it is "
            "another product"
        )
    offsets = {each.get("band_id", ""): (each.text or "").strip() for each in said(offset_name)}
    if offsets:
        wanted = {offsets.get(str(_BAND_IDS[band.name]), "none") for band in sensor.bands}
        if not wanted <= {"0", f"-{OFFSET_DN}"} or len(wanted) != 1:
            raise SourceError(
                f"{metadata} has {', '.join(sorted(wanted))} as {offset_name} of its bands, "
                f"Sentinel-2 has 0 or -{OFFSET_DN} of all: it is another product, or damaged"
            )
        dn = int(wanted.pop())
    elif _numbers(baseline, metadata) < FIRST_BASELINE_WITH_OFFSET:
        dn = 0  # there was none to be said
    else:
        raise SourceError(
            f"{metadata} does not say the {offset_name} of its bands, which baseline {baseline} "
            "has: download it anew"
        )
    images = [(each.text or "").strip() for each in said("IMAGE_FILE", "IMAGE_FILE_2A")]
    assets = {name: str(_file(metadata, images, layer)) for name, layer in layers.items()}
    return Scene(
        id=folder.name.removesuffix(".SAFE"),
        catalogue="product",
        rule="product",
        signed=False,
        datetime=one("PRODUCT_START_TIME"),
        cloud_cover=0.0,
        epsg=None,
        geometry={},
        assets=assets,
        baseline=baseline,
        flag=None,
        raster={"scale": 1 / _QUANTIFICATION, "offset": dn / _QUANTIFICATION},
    )


def _parsed(metadata: Path) -> ElementTree.Element:
    archive = archive_of(metadata)
    try:
        if archive is None:
            content = read_bytes(metadata, _METADATA_BYTES)
        else:
            name = metadata.relative_to(archive).as_posix()
            content, _ = read_in_archive(archive, name, _METADATA_BYTES)
        text = content.decode()
        if "<!" in text.replace("<!--", ""):  # entities may name files
            raise ValueError("it declares things of its own, <!...>")
        return ElementTree.fromstring(text)
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise SourceError(
            f"{metadata} is no metadata of a Sentinel-2 product ({error}): download it anew"
        ) from error


def _numbers(baseline: str, metadata: Path) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in baseline.split("."))
    except ValueError:
        raise SourceError(
            f"{metadata} has {baseline!r} as PROCESSING_BASELINE, which is two numbers such as "
            "04.00: download it anew"
        ) from None


def _file(metadata: Path, images: Sequence[str], layer: str) -> Path:
    """The file of a layer, of those that the metadata lists without their endings."""
    listed = sorted({image for image in images if image.endswith(f"_{layer}")})
    if len(listed) != 1:
        raise SourceError(
            f"{metadata} lists {len(listed) or 'no'} file{'s' if listed[1:] else ''} of {layer}: a "
            "product of one granule with all its bands is read; download it anew"
        )
    name = PurePosixPath(f"{listed[0]}.jp2")
    if name.is_absolute() or ".." in name.parts:
        raise SourceError(f"{metadata} names {listed[0]}, outside its folder: download it anew")
    file = metadata.parent / name
    archive = archive_of(metadata)
    if archive is not None:
        try:
            read_in_archive(archive, file.relative_to(archive).as_posix(), 0)
        except KeyError:
            raise _missing(metadata, listed[0]) from None
    elif not file.resolve().is_relative_to(metadata.parent.resolve()) or not file.exists():
        raise _missing(metadata, listed[0])
    return file


def _missing(metadata: Path, name: str) -> SourceError:
    return SourceError(
        f"{metadata} lists {name}.jp2, which is not below its folder: download the product anew"
    )
