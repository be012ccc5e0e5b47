"""Rasters damaged and odd: right pixels, or one line that says why not; never a crash or a hang.

``KINDS`` and what makes them are of the shape of those in ``test_fuzz``.
"""

import gc
import re
import struct
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.shutil import copy

from bharateo.errors import BharatEOError
from bharateo.pixels.cog import cog_tags
from bharateo.pixels.http import Web
from bharateo.pixels.raster import open_raster
from damage import HEAD, Counts, Kind, damaged_bytes, outcome_of, summary, survey
from range_server import RangeServer
from tiny_rasters import write_raster

SIDE = 64


def noise(bands=2, side=SIDE):
    return np.random.default_rng(0).integers(1, 250, (bands, side, side)).astype(np.uint8)


# Valid files


def strips(folder):
    return write_raster(folder / "x.tif", noise(), nodata=0, compress="deflate")


def tiles_with_mask(folder):
    """A COG with overviews and a mask, whose directory is at its start."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        plain = write_raster(folder / "plain.tif", noise(3, 300), tiled=True)
        with rasterio.open(plain, "r+") as file:
            file.write_mask(np.ones((300, 300), bool))
            file.update_tags(note="x")
            file.scales, file.offsets = (0.5,) * 3, (1.0,) * 3
        copy(plain, folder / "x.tif", driver="COG", blocksize=128)
    plain.unlink()
    return folder / "x.tif"


def jpeg2000(folder):
    values = write_raster(folder / "plain.tif", noise(1, 200))
    copy(values, folder / "x.jp2", driver="JP2OpenJPEG", blockxsize=64, blockysize=64)
    values.unlink()
    return folder / "x.jp2"


def vrt(folder):
    write_raster(folder / "a.tif", noise(1))
    path = folder / "x.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:32643</SRS>'
        "<GeoTransform>5.0e5, 10.0, 0, 3.0e6, 0, -10.0</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><NoDataValue>0</NoDataValue><ComplexSource>'
        '<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="{SIDE}" ySize="{SIDE}"/>'
        f'<DstRect xOff="0" yOff="0" xSize="{SIDE}" ySize="{SIDE}"/><NODATA>0</NODATA>'
        "</ComplexSource></VRTRasterBand></VRTDataset>"
    )
    return path


def said_beside(folder):
    write_raster(folder / "x.tif", noise())
    path = folder / "x.tif.aux.xml"
    path.write_text(
        "<PAMDataset><SRS>EPSG:32643</SRS><GeoTransform>5.0e5, 10.0, 0, 3.0e6, 0, -10.0"
        '</GeoTransform><Metadata><MDI key="a">b</MDI></Metadata><PAMRasterBand band="1">'
        "<Description>red</Description><NoDataValue>0</NoDataValue><Scale>0.5</Scale>"
        "<Offset>1</Offset></PAMRasterBand></PAMDataset>"
    )
    return path


def mask_beside(folder):
    write_raster(folder / "x.tif", noise())
    mask = np.full((1, SIDE, SIDE), 255, np.uint8)
    options = {"compress": "deflate", "transform": Affine(1, 0, 0, 0, -1, 0), "crs": None}
    return write_raster(folder / "m.tif", mask, **options).rename(folder / "x.tif.msk")


def world_file(folder):
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 8, "width": 8}
    with rasterio.open(folder / "x.tif", "w", crs="EPSG:32643", **profile) as file:
        file.write(np.ones((1, 8, 8), np.uint8))
    path = folder / "x.tfw"
    path.write_text("10\n0\n0\n-10\n500005\n2999995\n")
    return path


# Damage


def damaged_tags(rng, content):
    """Entries of a TIFF's directories changed in tag, type, count or value; or its bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, content)
    body, entries, place = bytearray(content), [], struct.unpack_from("<I", content, 4)[0]
    while 0 < place < len(content) - 2 and len(entries) < 200:
        (num,) = struct.unpack_from("<H", content, place)
        entries += [place + 2 + 12 * index for index in range(num)]
        (place,) = struct.unpack_from("<I", content, place + 2 + 12 * num)
    for _ in range(rng.choice((1, 1, 2, 4))):
        entry = rng.choice(entries)
        where, form = rng.choice(((0, "<H"), (2, "<H"), (4, "<I"), (8, "<I"), (8, "<I"), (8, "<I")))
        odd = (0, 1, 2, 3, 5, 8, 255, 256, 20_000, 65535, 2**31 - 1, 2**31, 2**32 - 1)
        number = rng.choice((*odd, rng.randrange(2**32), rng.randrange(70_000)))
        struct.pack_into(form, body, entry + where, number % 2 ** (8 * struct.calcsize(form)))
    return bytes(body)


def damaged_text(rng, content):
    """Words and numbers of a text changed; or its bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, content)
    text = content.decode()
    for _ in range(rng.choice((1, 1, 2, 3))):
        words = [word for word in re.split(r'[\s<>="/]+', text) if word]
        word = rng.choice(words)
        odd = ("", "nan", "inf", "-1", "1e400", "9" * 400, "/etc/passwd", "x" * 5000, "&a;", "<a/>",
               "<!DOCTYPE a>", '"', "\0", "CInt16", "\u202e", "EPSG:4978", "2" * 10)  # fmt: skip
        text = text.replace(word, rng.choice((*odd, rng.choice(words))), 1)
    return text.encode()


# Use


@cache
def _freeze():
    """What was there before is not looked at again when garbage is collected: it takes long."""
    gc.collect()
    gc.freeze()


def read(name, file, url=None):
    """All that the package asks of a raster, of the one called ``name`` beside the file."""
    _freeze()
    path = file.with_name(name)
    cog_tags(path)
    where = f"{url}/{name}" if url else str(path)
    web = Web(timeout_s=5, num_retries=0, backoff_s=0.01)
    raster = open_raster(where, web, vrt=True)
    if raster is None:
        return
    try:
        with raster:
            _ = raster.geobox, raster.says_what_is_there, raster.units, raster.band_names
            height, width = raster.shape
            raster.read_known(0, 0, min(height, 256), min(width, 256))
            raster.read_window(height - 1, width - 1, 1, 1)
            raster.read_on(raster.geobox[: min(height, 64), : min(width, 64)], "bilinear", 0)
            if height * width < 10**7:
                raster.read_thinned(4)
    finally:
        del raster
        gc.collect()


KINDS = {
    "GeoTIFF of strips": (strips, "x.tif", Kind(damaged_tags, read, 300, 0)),
    "COG with a mask": (tiles_with_mask, "x.tif", Kind(damaged_tags, read, 300, 0)),
    "JPEG 2000": (jpeg2000, "x.jp2", Kind(damaged_bytes, read, 200, 0)),
    "VRT": (vrt, "x.vrt", Kind(damaged_text, read, 300, 40)),
    ".aux.xml": (said_beside, "x.tif", Kind(damaged_text, read, 200, 40)),
    ".msk": (mask_beside, "x.tif", Kind(damaged_tags, read, 150, 40)),
    "world file": (world_file, "x.tif", Kind(damaged_text, read, 60, 20)),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning", "ignore::rasterio.errors.TransformWarning"
)


def surveyed(name, folder, url=None) -> Counts:
    make, raster, kind = KINDS[name]
    use = partial(read, raster, url=url)
    return survey(name, Kind(kind.damage, use, kind.num_cases, kind.pipes), make(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_raster_is_read_or_refused_in_one_line(name, tmp_path):
    counts = surveyed(name, tmp_path)
    print(f"{HEAD}\n{counts.row(name)}")
    assert not counts.wrong, summary(counts.wrong)
    assert counts.seconds < 120


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GeoTIFF of strips", "COG with a mask", "JPEG 2000"])
def test_a_damaged_raster_on_a_server_is_read_or_refused_in_one_line(name, tmp_path):
    with RangeServer(tmp_path) as server:
        counts = surveyed(name, tmp_path, server.url)
    print(f"{HEAD}\n{counts.row(f'{name}, served')}")
    assert not counts.wrong, summary(counts.wrong)
    assert counts.seconds < 120


# Odd, and valid


MOON = (
    'GEOGCS["Moon 2000",DATUM["D_Moon_2000",SPHEROID["Moon_2000_IAU_IAG",1737400.0,0.0]],'
    'PRIMEM["Greenwich",0],UNIT["Decimal_Degree",0.0174532925199433]]'
)
NAN, INF = float("nan"), float("inf")
NOWHERE = "does not say where its pixels lie"
ODD = {
    "a local reference system": ({"crs": 'LOCAL_CS["mine",UNIT["metre",1]]'}, "none of Earth's"),
    "the Moon": (
        {"crs": MOON, "transform": Affine(0.1, 0, 10, 0, -0.1, 10)},
        "none of Earth's surface",
    ),
    "geocentric": ({"crs": "EPSG:4978"}, "none of Earth's surface"),
    "complex": ({"dtype": "complex64"}, "complex numbers"),
    "a transform of no numbers": ({"transform": Affine(NAN, 0, 0, 0, -10, 0)}, NOWHERE),
    "an infinite pixel": ({"transform": Affine(INF, 0, 0, 0, -10, 0)}, NOWHERE),
    "pixels of no size": ({"transform": Affine(0, 0, 5e5, 0, 0, 3e6)}, NOWHERE),
    "no transform": ({"transform": Affine.identity()}, NOWHERE),
    "far away": ({"transform": Affine(10, 0, 1e30, 0, -10, 3e6)}, "lies off the Earth"),
    "beyond the pole": (
        {"crs": "EPSG:4326", "transform": Affine(0.1, 0, 10, 0, -0.1, 200)},
        "lies off the Earth",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_rasters_are_refused_with_a_remedy(name, tmp_path):
    options, match = ODD[name]
    path = write_raster(tmp_path / "x.tif", noise(), **options)
    outcome, text = outcome_of(lambda: read("x.tif", path))
    assert outcome == "refused", text
    assert match in text
    assert str(path) in text


def test_complex_integers_are_refused(tmp_path):
    """What GDAL calls CInt32 rasterio has no name for."""
    for bits in (32, 64):
        path = write_raster(tmp_path / "x.tif", noise(1).astype(f"uint{bits}"))
        content = bytearray(path.read_bytes())
        (first,) = struct.unpack_from("<I", content, 4)
        (num,) = struct.unpack_from("<H", content, first)
        for entry in range(first + 2, first + 2 + 12 * num, 12):
            if struct.unpack_from("<H", content, entry)[0] == 339:  # SampleFormat
                struct.pack_into("<H", content, entry + 8, 5)  # complex integers
                path.write_bytes(content)
        outcome, text = outcome_of(lambda path=path: read("x.tif", path))
        assert outcome == "refused", text


def test_a_file_of_several_images_is_refused(tmp_path):
    write_raster(tmp_path / "x.tif", noise())
    write_raster(tmp_path / "a.tif", noise(side=32))
    copy(tmp_path / "a.tif", tmp_path / "x.tif", driver="GTiff", append_subdataset=True)
    outcome, text = outcome_of(lambda: read("x.tif", tmp_path / "x.tif"))
    assert outcome == "refused", text
    assert "holds 2 images" in text


def sparse(path, side, block):
    with rasterio.open(
        path, "w", driver="GTiff", count=1, dtype="uint8", width=side, height=side, tiled=True,
        blockxsize=block, blockysize=block, sparse_ok=True, bigtiff="YES", crs="EPSG:32643",
        transform=Affine(1, 0, 5e5, 0, -1, 3e6),
    ):  # fmt: skip
        pass
    return path


def test_blocks_that_fill_the_memory_are_refused_at_once(tmp_path):
    start = time.monotonic()
    outcome, text = outcome_of(lambda: read("x.tif", sparse(tmp_path / "x.tif", 40_000, 20_000)))
    assert outcome == "refused"
    assert "blocks of 20000 x 20000 px" in text
    assert "-co TILED=YES" in text
    assert time.monotonic() - start < 5


def test_a_huge_raster_that_is_nearly_empty_is_read_by_windows(tmp_path):
    start = time.monotonic()
    path = sparse(tmp_path / "x.tif", 1_000_000, 4096)
    with open_raster(str(path)) as file:
        assert not file.read_window(500_000, 500_000, 256, 256).any()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("dtype", "options"),
    [("uint8", {"nbits": 1}), ("float32", {"nbits": 16}), ("int8", {}), ("int64", {}),
     ("uint8", {"transform": Affine(10, 3, 5e5, 2, -10, 3e6)})],
)  # fmt: skip
def test_odd_and_valid_rasters_are_read_rightly(dtype, options, tmp_path):
    values = (noise() % 2).astype(dtype)
    path = write_raster(tmp_path / "x.tif", values, **options)
    with open_raster(str(path)) as file:
        stored, known = file.read_known(0, 0, SIDE, SIDE)
        np.testing.assert_array_equal(stored, values)
        assert known.all()
        assert file.geobox.affine == options.get("transform", file.geobox.affine)


def test_a_raster_that_cannot_be_made_sense_of_does_not_end_the_interpreter(tmp_path):
    """GDAL closes a file later than rasterio lets go of what it is read through."""
    content = write_raster(tmp_path / "x.tif", noise(), dtype="complex64").read_bytes()
    with RangeServer(tmp_path) as server:
        for _ in range(5):
            (tmp_path / "x.tif").write_bytes(content)
            with pytest.raises(BharatEOError):
                open_raster(f"{server.url}/x.tif")
            Path(tmp_path / "x.tif.aux.xml").write_text("<PAMDataset><SRS>http://a</SRS>")
            with pytest.raises(BharatEOError):
                open_raster(str(tmp_path / "x.tif"))
            gc.collect()
