"""Cloud-optimised GeoTIFFs as others open them."""

import resource
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from bharateo.errors import StorageError
from bharateo.pixels.cog import Bands, cog_tags, write_cog
from bharateo.pixels.raster import open_raster

GRID = GeoBox((700, 900), Affine(160, 0, 257_070.594833, 0, -160, 285_728.716706), "EPSG:27700")
NAMES = ("first", "second", "third")


def values(dtype="float32", num_bands=3, shape=GRID.shape, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=(num_bands, *shape)).astype(dtype)
    return rng.integers(0, 100, (num_bands, *shape)).astype(dtype)


def blocks_of(array, side=256):
    for row in range(0, array.shape[1], side):
        for col in range(0, array.shape[2], side):
            yield row, col, array[:, row : row + side, col : col + side]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "uint16"])
def test_values_and_places_come_back_as_they_were_written(tmp_path, dtype):
    path, array = tmp_path / "v.tif", values(dtype)
    tags = {"MADE_BY": '{"of": "numbers, ä"}'}
    write_cog(path, GRID, Bands(dtype, NAMES), blocks_of(array), tags)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), array)
        assert file.descriptions == NAMES
        assert file.crs.to_epsg() == 27700
        assert file.transform.almost_equals(GRID.affine, 1e-9)
    assert cog_tags(path).items() >= tags.items()
    assert cog_validate(path, strict=True) == (True, [], [])
    assert [each.name for each in tmp_path.iterdir()] == ["v.tif"]


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("float16", float("nan")), ("int8", -128), ("uint8", 255)]
)
def test_statistics_of_every_band_are_in_the_file(dtype, nodata, tmp_path):
    path, array = tmp_path / "v.tif", values(dtype)
    array[0, :350] = nodata
    array[2] = nodata
    write_cog(path, GRID, Bands(dtype, NAMES, nodata), blocks_of(array))
    with rasterio.open(path) as file:
        tags = [{k: float(v) for k, v in file.tags(band).items() if k.startswith("STATISTICS")}
                for band in (1, 2, 3)]  # fmt: skip
    for number, half in ((0, 50), (1, 100)):
        known = array[number][350:] if number == 0 else array[number]
        known = known.astype(np.float64)
        assert tags[number]["STATISTICS_MINIMUM"] == known.min()
        assert tags[number]["STATISTICS_MAXIMUM"] == known.max()
        assert tags[number]["STATISTICS_MEAN"] == pytest.approx(known.mean(), abs=1e-9)
        assert tags[number]["STATISTICS_STDDEV"] == pytest.approx(known.std())
        assert tags[number]["STATISTICS_VALID_PERCENT"] == half
    assert tags[2] == {}
    assert not path.with_name("v.tif.aux.xml").exists()


def test_half_floats_take_less_room(tmp_path):
    sizes = {}
    for dtype in ("float16", "float32"):
        write_cog(tmp_path / f"{dtype}.tif", GRID, Bands(dtype, NAMES), blocks_of(values(dtype)))
        sizes[dtype] = (tmp_path / f"{dtype}.tif").stat().st_size
    assert sizes["float16"] < 0.7 * sizes["float32"]


def test_overviews_are_means_of_what_is_there(tmp_path):
    array = values(num_bands=1)
    array[:, :350] = np.nan
    bands = Bands("float32", ("only",), nodata=float("nan"))
    write_cog(tmp_path / "v.tif", GRID, bands, blocks_of(array))
    with rasterio.open(tmp_path / "v.tif", overview_level=0) as file:
        half = file.read(1)
    assert np.isnan(half[:175]).all()
    mean = array[0, 350:].reshape(175, 2, 450, 2).mean((1, 3))
    np.testing.assert_allclose(half[175:], mean, atol=1e-6)


@pytest.mark.parametrize("num_bands", [1, 4, 32])
def test_a_tile_of_many_bands_is_small(tmp_path, num_bands):
    bands = Bands("float16", tuple(map(str, range(num_bands))))
    path, array = tmp_path / "v.tif", values("float16", num_bands, (300, 300))
    write_cog(path, GRID[:300, :300], bands, blocks_of(array))
    with rasterio.open(path) as file:
        side = file.block_shapes[0][0]
    assert side == {1: 512, 4: 512, 32: 128}[num_bands]
    assert side * side * num_bands * 4 <= 4 << 20


def test_the_same_pieces_give_the_same_bytes(tmp_path):
    array = values("int8")
    for name in ("a.tif", "b.tif"):
        write_cog(tmp_path / name, GRID, Bands("int8", NAMES, nodata=-128), blocks_of(array))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_integers_carry_their_scale_and_offset(tmp_path):
    bands = Bands("int8", NAMES, -128, (0.5, 1e-3, 2), (0, 7.25, -1))
    write_cog(tmp_path / "v.tif", GRID, bands, blocks_of(values("int8")))
    with rasterio.open(tmp_path / "v.tif") as file:
        assert (file.scales, file.offsets, file.nodata) == ((0.5, 1e-3, 2), (0, 7.25, -1), -128)


def test_four_bands_of_bytes_are_no_colours_with_opacity(tmp_path):
    path, written = tmp_path / "p.tif", values("uint8", 4)
    write_cog(path, GRID, Bands("uint8", ("a", "b", "c", "d"), 255), blocks_of(written))
    with open_raster(str(path)) as file:
        assert file.band_names == ("a", "b", "c", "d")
        assert (file.read_window(0, 0, *GRID.shape) == written).all()


def test_classes_carry_their_colours_and_names(tmp_path):
    path, array = tmp_path / "map.tif", values("uint8", 1) % 2
    colours = {0: (35, 132, 67), 1: (49, 130, 189)}
    bands = Bands("uint8", ("class",), 255, colours=colours, categories=("tree", "sea & <lake>"),
                  overviews="mode")  # fmt: skip
    write_cog(path, GRID, bands, blocks_of(array))
    with rasterio.open(path) as file:
        found = file.colormap(1)
        assert {value: found[value][:3] for value in colours} == colours
    assert cog_validate(path, strict=True)[0]
    names = ElementTree.parse(f"{path}.aux.xml").findall("PAMRasterBand/CategoryNames/Category")
    assert [name.text for name in names] == ["tree", "sea & <lake>"]


def test_what_was_noted_of_an_older_file_goes_with_it(tmp_path):
    path, notes = tmp_path / "v.tif", tmp_path / "v.tif.aux.xml"
    notes.write_text("<PAMDataset/>")  # GDAL's statistics of the old pixels
    write_cog(path, GRID, Bands("uint8", NAMES), blocks_of(values("uint8")))
    assert not notes.exists()


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "v.tif"
    write_cog(path, GRID, Bands("uint8", NAMES), blocks_of(values("uint8")))
    before = path.read_bytes()

    def failing():
        yield from list(blocks_of(values("uint8", seed=1)))[:5]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_cog(path, GRID, Bands("uint8", NAMES), failing())
    assert path.read_bytes() == before
    write_cog(path, GRID, Bands("uint8", NAMES), blocks_of(values("uint8", seed=1)))
    assert path.read_bytes() != before
    assert [each.name for each in tmp_path.iterdir()] == ["v.tif"]


@contextmanager
def files_of_at_most(num_bytes):
    """As on a disk that is nearly full."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("when", ["pieces", "finished file"])
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, monkeypatch, when):
    path, copy = tmp_path / "v.tif", rasterio.shutil.copy

    def copy_to_full_disk(*arguments, **options):
        with files_of_at_most(1 << 20):
            copy(*arguments, **options)

    path.write_bytes(b"old")
    if when == "finished file":
        monkeypatch.setattr(rasterio.shutil, "copy", copy_to_full_disk)
    with (
        files_of_at_most(1 << 20) if when == "pieces" else nullcontext(),
        pytest.raises(StorageError, match=r"cannot write .*v\.tif .*: free some space"),
    ):
        write_cog(path, GRID, Bands("float32", NAMES), blocks_of(values()))
    assert path.read_bytes() == b"old"


def test_there_are_no_tags_where_there_is_no_raster(tmp_path):
    (tmp_path / "text.tif").write_text("no raster")
    assert cog_tags(tmp_path / "text.tif") == {}
    assert cog_tags(tmp_path / "none.tif") == {}


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from bharateo.pixels import cog
from bharateo.pixels.cog import Bands, write_cog

cog._CACHE_BYTES = 8 << 20
side = int(sys.argv[2])
grid = GeoBox((side, side), Affine(10, 0, 0, 0, -10, 0), "EPSG:32643")
block = np.arange(32, dtype=np.float32)[:, None, None] + np.zeros((256, 256), np.float32)
blocks = ((r, c, block) for r in range(0, side, 256) for c in range(0, side, 256))
write_cog(Path(sys.argv[1]), grid, Bands("float32", tuple(map(str, range(32)))), blocks)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_bounded(tmp_path):
    """Of 75 MB of pixels a fraction is held at any time."""
    call = [sys.executable, "-c", MEMORY, str(tmp_path / "v.tif")]
    small, large = (
        int(subprocess.run([*call, side], check=True, capture_output=True, text=True).stdout)
        for side in ("256", "768")
    )
    assert large - small < 50_000
