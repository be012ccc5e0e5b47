import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from odc.geo.geobox import GeoBox

from bharateo.config import Sentinel2Config
from bharateo.errors import ConfigError, CorruptRasterError, SourceError, UnreachableError
from bharateo.sources import sentinel2
from bharateo.sources.catalogue import catalogue_of
from bharateo.sources.sentinel2 import (
    VALID_SCL,
    DarkGround,
    Offset,
    Sentinel2,
    contradiction,
    dark_ground,
    darkest,
    harmonised,
    offset_of,
)
from bharateo.sources.stac import Scene, scene_of
from l2a_scenes import BANDS, BANDS_20M, SceneFiles, made_up_scene, made_up_scl, write_scene
from range_server import Faults, RangeServer
from scripted_server import Reply, answering

# rasterio.warp.reproject is no friend of threads: see test_resample.py.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

# What is added to stored numbers.


def item(rule: str, baseline: str | None = "05.09", flag: bool | None = None, **raster: float):
    """A scene of a catalogue with a rule, of an old day."""
    return Scene(
        id="S2A_X", catalogue="http://c", rule=rule, signed=False, datetime="2019-07-01T05:00:00Z",
        cloud_cover=0.0, epsg=32643, geometry={}, assets={}, baseline=baseline, flag=flag,
        raster=raster,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scene", "dn", "evidence"),
    [
        (item("earth-search", flag=True), 0, "boa_offset_applied is true"),
        (item("earth-search", "03.01", True), 0, "boa_offset_applied is true"),
        (item("earth-search"), 0, "the item is silent"),
        (item("earth-search", None), 0, "the item is silent"),
        (item("earth-search", flag=False), -1000, "applied is false, baseline 05.09"),
        (item("earth-search", "03.01", False), 0, "applied is false, baseline 03.01"),
        (item("earth-search", flag=True, scale=1e-4, offset=-0.1), 0, "applied is true"),
        (item("by-baseline", "02.14"), 0, "as ESA made it, baseline 02.14"),
        (item("by-baseline", "03.99"), 0, "baseline 03.99"),
        (item("by-baseline", "04.00"), -1000, "baseline 04.00"),
        (item("by-baseline", "05.10"), -1000, "baseline 05.10"),
        (item("by-baseline", "99.99"), -1000, "baseline 99.99"),
        (item("by-baseline", "05.00", True), -1000, "baseline 05.00"),
        (item("by-item", "05.00", scale=1e-4, offset=0.0), 0, "raster:bands offset 0"),
        (item("by-item", "02.00", scale=1e-4, offset=-0.1), -1000, "raster:bands offset -0.1"),
        (item("by-item", "02.00", offset=-0.1), -1000, "raster:bands offset -0.1"),
        (item("by-item", "05.00"), -1000, "baseline 05.00"),
        (item("by-item", "03.00"), 0, "baseline 03.00"),
    ],
)
def test_a_catalogues_rule_says_what_to_add_and_why(scene, dn, evidence):
    offset = offset_of(scene)
    assert (offset.dn, offset.baseline) == (dn, scene.baseline)
    assert evidence in offset.evidence


@pytest.mark.parametrize("rule", ["earth-search", "by-baseline", "by-item"])
@pytest.mark.parametrize(("policy", "dn"), [("applied", 0), ("subtract", -1000)])
def test_what_is_known_better_overrules_every_rule(rule, policy, dn):
    for scene in (item(rule), item(rule, None, False), item(rule, scale=3.0, offset=7.0)):
        offset = offset_of(scene, policy)
        assert (offset.dn, offset.baseline) == (dn, scene.baseline)
        assert policy in offset.evidence


@pytest.mark.parametrize(
    "scene",
    [item("by-baseline", None), item("by-baseline", "collection 1"), item("by-item", None),
     item("earth-search", None, False)],
)  # fmt: skip
def test_an_item_without_a_baseline_is_refused_where_it_matters(scene):
    with pytest.raises(SourceError, match=r"item S2A_X of http://c does not say its.*data\.sentin"):
        offset_of(scene)


@pytest.mark.parametrize(
    "raster",
    [{"scale": 2.75e-5, "offset": -0.2}, {"scale": 1e-3, "offset": 0.0}, {"scale": 1.0},
     {"scale": 1e-4, "offset": -0.2}, {"scale": 1e-4, "offset": 0.1}],
)  # fmt: skip
def test_an_odd_scale_or_offset_is_another_product(raster):
    with pytest.raises(SourceError, match=r"item S2A_X gives its bands scale .* another product"):
        offset_of(item("by-item", **raster))


# Reflectance.

GROUND = arrays.arrays(np.uint16, (3, 5), elements=st.integers(0, 20_000))


@given(GROUND)
def test_the_same_ground_is_the_same_however_it_was_processed(ground):
    """Baseline before and since 04.00, offset removed by the catalogue or not."""
    before = np.where(ground, ground, 0).astype(np.uint16)
    since = np.where(ground, ground + 1000, 0).astype(np.uint16)
    cases = [
        (before, item("by-baseline", "03.01")),
        (before, item("earth-search", "03.01", False)),
        (before, item("earth-search", "03.01", True)),
        (since, item("by-baseline", "05.09")),
        (since, item("earth-search", "05.09", False)),
        (since, item("by-item", "05.09", scale=1e-4, offset=-0.1)),
        (before, item("earth-search", "05.09", True)),
        (before, item("by-item", "05.09", scale=1e-4, offset=0.0)),
    ]
    for stored, scene in cases:
        kept = stored.copy()
        reflectance = harmonised(stored, offset_of(scene))
        assert reflectance.dtype == np.uint16
        np.testing.assert_array_equal(reflectance, ground)
        np.testing.assert_array_equal(stored, kept)


def test_nodata_stays_0_and_darker_than_black_becomes_1():
    stored = np.array([0, 1, 400, 1000, 1001, 1002, 65535], np.uint16)
    subtracted = harmonised(stored, Offset(-1000, "05.09", ""))
    assert subtracted.tolist() == [0, 1, 1, 1, 1, 2, 64535]
    assert harmonised(stored, Offset(0, "05.09", "")).tolist() == stored.tolist()


# What the darkest pixels say.


PLAINS = DarkGround(20_000, 16_000, 9_000, 8_900)
"""Fields and water, harmonised; then with the offset in, and clear ground without a green leaf."""
PLAINS_WITH_OFFSET = DarkGround(20_000, 40, 9_000, 12)
SAND = DarkGround(20_000, 30, 120, 20)


@pytest.mark.parametrize(
    ("ground", "dn", "said"),
    [
        (PLAINS, 0, None),
        (PLAINS, -1000, "80.0% of its clear ground is below 900 in a visible band: the offset has"),
        (PLAINS_WITH_OFFSET, -1000, None),
        (PLAINS_WITH_OFFSET, 0, "99.9% of its plants and water are at 900 or more in every visibl"),
        (SAND, 0, None),
        (SAND, -1000, None),
        (SAND + PLAINS, -1000, "removed already; set data.sentinel2.offset to applied"),
        (SAND + PLAINS_WITH_OFFSET, 0, "still in; set data.sentinel2.offset to subtract"),
        (DarkGround(20_000, 300, 600, 590), -1000, "1000 is subtracted (why), but 1.5% of its"),
        (DarkGround(20_000, 300, 600, 30), 0, None),
        (DarkGround(20_000, 300, 600, 30), -1000, None),
        (DarkGround(400, 400, 400, 400), -1000, None),
        (DarkGround(400, 0, 400, 0), 0, None),
        (DarkGround(), 0, None),
        (DarkGround(), -1000, None),
    ],
)
def test_dark_ground_contradicts_an_offset_both_ways(ground, dn, said):
    found = contradiction(ground, Offset(dn, "05.09", "why"))
    assert found is None if said is None else said in found


def test_dark_ground_is_clear_and_dark_in_one_visible_band_at_least():
    """Every scene class in a strip of its own: shadow and cloud are no evidence."""
    classes = np.arange(12, dtype=np.uint8).repeat(40)[:, None].repeat(40, 1)
    valid = np.isin(classes, VALID_SCL)
    stored = np.full((3, *classes.shape), 2000, np.uint16)
    stored[1, :, 20:] = 899
    bands = ("B08", "B02", "B11")
    assert dark_ground(stored, bands, valid, classes) == DarkGround(500, 250, 200, 100)
    stored[2, :, :] = 100
    assert dark_ground(stored, bands, valid, classes) == DarkGround(500, 250, 200, 100)
    unseen = dark_ground(stored[[0, 2]], ("B08", "B11"), valid, classes)
    assert unseen == DarkGround(500, 500, 100, 100), "without a visible band water alone is green"


def test_the_darkest_is_of_valid_pixels_in_the_darkest_band():
    stored = np.full((2, 200, 200), 3000, np.uint16)
    stored[1] = 2000
    stored[1, ::4, :4] = 700
    stored[0, 100:, 100:] = 5
    valid = np.ones((200, 200), bool)
    valid[100:, 100:] = False
    assert darkest(stored, valid) == 700
    assert darkest(stored, np.zeros_like(valid)) is None
    few = stored.copy()
    few[1, ::4, :4] = 2000
    few[1, 0, 0] = 1  # one pixel of 1875 is no more than chance
    assert darkest(few, valid) == 2000


def real_sites() -> dict[str, np.ndarray]:
    """Stored numbers of five real sites in our ten bands; skips the test where there are none."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("BHARATEO_TEST_DATA", beside)) / "s2-multiband" / "global-12band"
    if not folder.is_dir():
        pytest.skip(f"no real pixels: {folder} does not exist (set BHARATEO_TEST_DATA)")
    sites = {}
    for path in sorted((folder / "S2L2A").glob("*.tif")):
        with rasterio.open(path) as dataset:  # B01 ... B12 without B10
            sites[path.stem] = dataset.read([2, 3, 4, 5, 6, 7, 8, 9, 11, 12]).astype(np.uint16)
    return sites


def classes_like(stored: np.ndarray, offset: int) -> np.ndarray:
    """Plants where reflectances have a vegetation index above 0.4, bare ground elsewhere."""
    red, nir = stored[2].astype(float) - offset, stored[6].astype(float) - offset
    return np.where(nir - red > 0.4 * (nir + red), 4, 5).astype(np.uint8)


def test_real_sites_are_told_apart_by_their_pixels_and_snow_says_nothing():
    shown = {}
    for name, stored in real_sites().items():
        valid = (stored != 0).all(axis=0)
        offset = 1000 if name == "433D_629L_3_1" else 0
        shown[name] = dark_ground(stored, BANDS, valid, classes_like(stored, offset)).offset_dn
    assert shown.pop("433D_629L_3_1") == -1000
    assert shown.pop("609U_541L_3_0") is None, "nine tenths of it are white"
    assert len(shown) == 3 and set(shown.values()) == {0}


# Scenes as files.

SHAPE = 200, 240
CORNER = 699_960.0, 3_200_040.0


def small_scene(folder: Path, name: str, **changes) -> tuple[SceneFiles, np.ndarray]:
    """A scene with a nodata corner, and its reflectance."""
    reflectance, codes = made_up_scene(SHAPE, nodata_corner_px=31)
    options = {
        "epsg": 32643, "corner": CORNER, "reflectance": reflectance,
        "scl": made_up_scl(reflectance, codes), "when": "2023-04-01T05:36:41.024Z",
        "baseline": "05.09", "dn_offset": 0, "cloud_cover": 3.5, "flag": True, "block_px": 128,
        **changes,
    }  # fmt: skip
    return write_scene(folder, name, **options), reflectance


@pytest.fixture(scope="module")
def harmonised_scene(tmp_path_factory):
    return small_scene(tmp_path_factory.mktemp("scenes"), "S2A_43RGM_20230401_0_L2A")


def opened(files: SceneFiles, bands=BANDS, base: str | None = None, **config):
    """The scene as a source, read from disk or from a server."""
    config = {"catalogue": f"{files.style}=http://127.0.0.1:1", "retries": 1, **config}
    source = Sentinel2(bands, Sentinel2Config(timeout_s=5.0, **config))
    item = files.item(base or str(files.folder))
    here = None if base else str(files.folder / "item.json")
    return source.at(scene_of(item, source.catalogue, bands, here))


def stored(files: SceneFiles, band: str) -> np.ndarray:
    with rasterio.open(files.path(band)) as dataset:
        return dataset.read(1)


def at_10m(files: SceneFiles, values: np.ndarray, method: str) -> np.ndarray:
    """A 20 m band on the whole 10 m grid, by GDAL."""
    out = np.zeros(files.geobox.shape, values.dtype)
    rasterio.warp.reproject(
        values, out, src_transform=files.geobox_20m.affine, src_crs=str(files.geobox.crs),
        src_nodata=0, dst_transform=files.geobox.affine, dst_crs=str(files.geobox.crs),
        dst_nodata=0, resampling=rasterio.warp.Resampling[method],
    )  # fmt: skip
    return out


def expected_reflectance(files: SceneFiles, dn_offset: int, bands=BANDS) -> np.ndarray:
    layers = []
    for band in bands:
        dn = stored(files, band)
        dn = at_10m(files, dn, "bilinear") if band in BANDS_20M else dn
        layers.append(np.where(dn == 0, 0, np.maximum(dn.astype(int) - dn_offset, 1)))
    return np.stack(layers).astype(np.uint16)


@pytest.mark.parametrize(
    ("style", "baseline", "dn_offset", "flag"),
    [
        ("earth-search", "05.09", 0, True),
        ("earth-search", "05.09", 1000, False),
        ("earth-search", "03.01", 0, False),
        ("planetary-computer", "05.09", 1000, None),
        ("planetary-computer", "02.14", 0, None),
    ],
)
def test_a_scene_is_read_as_reflectance_whatever_its_files_hold(
    tmp_path, style, baseline, dn_offset, flag
):
    files, reflectance = small_scene(
        tmp_path, "scene", style=style, baseline=baseline, dn_offset=dn_offset, flag=flag
    )
    raster = opened(files).read(files.geobox)
    assert (raster.values.shape, raster.values.dtype) == ((10, *SHAPE), np.uint16)
    np.testing.assert_array_equal(raster.values, expected_reflectance(files, dn_offset))
    for place, band in enumerate(BANDS):
        if band not in BANDS_20M:
            np.testing.assert_array_equal(raster.values[place], reflectance[place])
    expected = np.isin(at_10m(files, stored(files, "SCL"), "nearest"), VALID_SCL)
    np.testing.assert_array_equal(raster.valid, expected & (raster.values != 0).all(axis=0))
    assert not raster.valid[:30, :30].any() and raster.valid[40:, 40:].all()
    assert raster.geobox == files.geobox
    assert raster.provenance["offset"]["dn"] == -dn_offset
    assert raster.provenance["offset"]["baseline"] == baseline
    assert dn_offset < raster.provenance["dark_dn"] < dn_offset + 300
    assert "warning" not in raster.provenance
    assert raster.provenance["item"] == "scene"
    assert raster.provenance["datetime"] == "2023-04-01T05:36:41.024Z"


def test_bands_come_in_the_order_asked_for(harmonised_scene):
    files, reflectance = harmonised_scene
    source = opened(files, ("B11", "B04", "B02"))
    assert source.source.sensor.band_names == ("B11", "B04", "B02")
    values = source.read(files.geobox).values
    np.testing.assert_array_equal(values[1:], reflectance[[2, 0]])
    np.testing.assert_array_equal(values, expected_reflectance(files, 0, ("B11", "B04", "B02")))


def test_a_part_is_the_same_as_cut_from_the_whole(harmonised_scene):
    files, _ = harmonised_scene
    source = opened(files)
    whole = source.read(files.geobox)
    for window in ((slice(64, 128), slice(96, 224)), (slice(3, 40), slice(17, 60))):
        part = source.read(files.geobox[window])
        np.testing.assert_array_equal(part.values, whole.values[:, *window])
        np.testing.assert_array_equal(part.valid, whole.valid[window])


def test_beyond_the_scene_there_is_no_data(harmonised_scene):
    files, reflectance = harmonised_scene
    height, width = 80, 100
    shift = files.geobox.affine @ (SHAPE[1] - 40, SHAPE[0] - 30)
    here = GeoBox((height, width), Affine(10, 0, shift[0], 0, -10, shift[1]), "EPSG:32643")
    raster = opened(files, ("B02", "B05")).read(here)
    np.testing.assert_array_equal(raster.values[0, :30, :40], reflectance[0, -30:, -40:])
    assert not raster.values[:, 30:].any() and not raster.values[:, :, 40:].any()
    assert not raster.valid[30:].any() and not raster.valid[:, 40:].any()
    assert raster.valid[:30, :40].all()


def test_scene_classes_decide_what_is_valid(tmp_path):
    """0 nodata, 1 saturated, 3 shadow, 8 and 9 cloud, 10 cirrus are left out."""
    reflectance = np.full((10, 48, 48), 1200, np.uint16)
    reflectance[6, 40:, 40:] = 0
    scl = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 8, axis=0), 6, axis=1)
    files, _ = small_scene(tmp_path, "classes", reflectance=reflectance, scl=scl)
    valid = opened(files).read(files.geobox).valid
    found = {
        int(code): bool(valid[row * 16 + 2, col * 12 + 2])
        for (row, col), code in np.ndenumerate(np.arange(12).reshape(3, 4))
    }
    assert found == {
        0: False, 1: False, 2: True, 3: False, 4: True, 5: True, 6: True, 7: True, 8: False,
        9: False, 10: False, 11: True,
    }  # fmt: skip
    assert valid[32:, 36:40].all() and not valid[40:, 40:].any()


def test_a_flag_that_lies_is_caught_both_ways(tmp_path):
    lying, _ = small_scene(tmp_path, "still-in", dn_offset=1000, flag=True)
    warning = opened(lying).read(lying.geobox).provenance["warning"]
    assert "still-in" in warning and "earthsearch:boa_offset_applied is true" in warning
    assert "set data.sentinel2.offset to subtract" in warning
    mended = opened(lying, offset="subtract").read(lying.geobox)
    assert "warning" not in mended.provenance
    np.testing.assert_array_equal(mended.values, expected_reflectance(lying, 1000))
    lying, _ = small_scene(tmp_path, "removed", dn_offset=0, flag=False)
    warning = opened(lying).read(lying.geobox).provenance["warning"]
    assert "removed" in warning and "1000 is subtracted" in warning
    assert "set data.sentinel2.offset to applied" in warning
    mended = opened(lying, offset="applied").read(lying.geobox)
    assert "warning" not in mended.provenance


def test_a_window_without_a_valid_pixel_says_nothing_of_the_offset(harmonised_scene):
    files, _ = harmonised_scene
    raster = opened(files).read(files.geobox[:16, :16])
    assert not raster.valid.any()
    assert raster.provenance["dark_dn"] is None
    assert "warning" not in raster.provenance


# What goes wrong.


def with_asset(source, band: str, address: str):
    """The source with another file for a band."""
    assets = {**source.scene.assets, band: str(address)}
    return source.source.at(source.scene.model_copy(update={"assets": assets}))


def test_a_file_that_the_catalogue_lists_but_does_not_exist_is_named(harmonised_scene):
    files, _ = harmonised_scene
    source = with_asset(opened(files, ("B02", "B04")), "B04", "/nowhere/red.tif")
    with pytest.raises(
        CorruptRasterError,
        match=rf"/nowhere/red\.tif \(item {files.name}, band B04\) does not exist, though the cat",
    ):
        source.read(files.geobox)


def copy_of(files: SceneFiles, band: str, path: Path, dtype: str, crs: str | None) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", height=SHAPE[0], width=SHAPE[1], count=1, dtype=dtype, crs=crs,
        nodata=0, transform=files.geobox.affine,
    ) as dataset:  # fmt: skip
        dataset.write(stored(files, band).astype(dtype), 1)
    return path


def test_numbers_that_are_no_integers_are_another_product(harmonised_scene, tmp_path):
    files, _ = harmonised_scene
    path = copy_of(files, "B04", tmp_path / "reflectance.tif", "float32", "EPSG:32643")
    source = with_asset(opened(files, ("B02", "B04")), "B04", path)
    with pytest.raises(
        CorruptRasterError, match=rf"reflectance\.tif \(item {files.name}, band B04\) holds float32"
    ):
        source.read(files.geobox)


def test_signed_integers_are_read_as_the_same_numbers(harmonised_scene, tmp_path):
    files, reflectance = harmonised_scene
    path = copy_of(files, "B04", tmp_path / "signed.tif", "int16", "EPSG:32643")
    raster = with_asset(opened(files, ("B04",)), "B04", path).read(files.geobox)
    assert raster.values.dtype == np.uint16
    np.testing.assert_array_equal(raster.values[0], reflectance[2])


@pytest.mark.parametrize("method", ["B04", "B12"])
def test_negative_stored_numbers_never_become_large_ones(harmonised_scene, tmp_path, method):
    """Declared as nodata they are no data, also to what is resampled; else the file is refused."""
    files, _ = harmonised_scene
    path = copy_of(files, method, tmp_path / "signed.tif", "int16", "EPSG:32643")
    with rasterio.open(path, "r+") as file:
        values = file.read()
        values[:, :8, :8] = -999
        file.write(values)
        file.nodata = -999
    source = with_asset(opened(files, (method,)), method, path)
    raster = source.read(files.geobox)
    assert not raster.valid[:7, :7].any()
    assert raster.values.max() <= values.max()
    with rasterio.open(path, "r+") as file:
        file.nodata = 0
    source = with_asset(opened(files, (method,)), method, path)
    with pytest.raises(CorruptRasterError, match=r"signed\.tif .*holds -\d+, and stored numbers"):
        source.read(files.geobox)


def test_a_file_without_reference_system_is_named(harmonised_scene, tmp_path):
    files, _ = harmonised_scene
    path = copy_of(files, "B04", tmp_path / "nowhere.tif", "uint16", None)
    source = with_asset(opened(files, ("B02", "B04")), "B04", path)
    with pytest.raises(CorruptRasterError, match=r"nowhere\.tif has no coordinate reference"):
        source.read(files.geobox)


def test_after_a_failed_read_the_files_are_opened_anew(harmonised_scene):
    files, reflectance = harmonised_scene
    with RangeServer(files.folder) as server:
        source = opened(files, ("B02", "B04", "B12"), server.url, retries=0)
        source.read(files.geobox[:16, :16])
        server.faults = Faults(busy=1000)
        with pytest.raises(UnreachableError, match=rf"{server.url}/{files.name}/\w+\.tif"):
            source.read(files.geobox)
        server.faults = Faults()
        values = source.read(files.geobox).values
        np.testing.assert_array_equal(values[:2], reflectance[[0, 2]])


@pytest.mark.parametrize(
    ("bands", "config", "said"),
    [
        (("B99",), {}, "'B99' is unknown"),
        (("B02",), {"catalogue": "nasa"}, "catalogue 'nasa' is not known"),
        (("B02",), {"dates": "2021"}, "dates '2021' is not FIRST/LAST"),
        (("B02",), {"seasons": ("spring",)}, "'spring' is not known"),
    ],
)
def test_what_is_not_known_is_refused_at_once(bands, config, said):
    with pytest.raises(ConfigError, match=said):
        Sentinel2(bands, Sentinel2Config(**config))


def test_a_scene_must_be_chosen_before_reading():
    source = Sentinel2(("B02",), Sentinel2Config())
    with pytest.raises(TypeError, match=r"bind the source to a scene first"):
        source.read(GeoBox((4, 4), Affine(10, 0, 5e5, 0, -10, 3e6), "EPSG:32643"))


# What it costs, and where it travels.


def test_files_stay_open_between_reads_of_a_scene(harmonised_scene):
    files, _ = harmonised_scene
    with RangeServer(files.folder) as server:
        source = opened(files, ("B02", "B05"), server.url)
        source.read(files.geobox[:64, :64])
        first = len(server.gets)
        assert source.source.traffic.requests == first
        assert source.source.traffic.bytes == server.num_bytes
        server.forget()
        source.read(files.geobox[:64, :64])
        assert server.gets == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors by /proc")
def test_no_more_files_stay_open_than_a_few_scenes_have(harmonised_scene):
    files, _ = harmonised_scene
    source = opened(files)
    here = files.geobox[:16, :16]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        folder = f"{files.folder}/{'./' * number}{files.name}"
        assets = {band: f"{folder}/{band}.tif" for band in (*BANDS, "SCL")}
        source.source.at(source.scene.model_copy(update={"assets": assets})).read(here)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 26


def test_scenes_of_planetary_computer_are_unlocked_when_read(harmonised_scene, monkeypatch):
    files, reflectance = harmonised_scene
    unlocked = []
    monkeypatch.setattr(sentinel2, "unlock", lambda web, address, *_: unlocked.append(address))
    source = Sentinel2(("B04",), Sentinel2Config("planetary-computer"))
    scene = opened(files, ("B04",)).scene.model_copy(update={"signed": True})
    np.testing.assert_array_equal(source.at(scene).read(files.geobox).values[0], reflectance[2])
    assert sorted(unlocked) == sorted(scene.assets.values())
    unlocked.clear()
    opened(files, ("B04",)).read(files.geobox)
    assert unlocked == []


@pytest.mark.parametrize("reply", [Reply(404), Reply(body=b"<html>")], ids=["404", "a page"])
def test_trouble_with_a_signature_is_a_source_error(harmonised_scene, monkeypatch, reply):
    """A build counts those and goes on; anything else ends it."""
    from planetary_computer.settings import Settings

    files, _ = harmonised_scene
    address = "https://account.blob.core.windows.net/box/B04.tif"
    with answering(lambda _: reply) as tokens:
        monkeypatch.setenv("PC_SDK_SAS_URL", f"{tokens.url}/token")
        Settings.get.cache_clear()
        source = Sentinel2(("B04",), Sentinel2Config("planetary-computer", retries=0))
        assets = dict.fromkeys(("B04", "SCL"), address)
        scene = opened(files, ("B04",)).scene.model_copy(update={"signed": True, "assets": assets})
        with pytest.raises(SourceError, match="no token for account/box"):
            source.open(scene, "B04")
        assert [asked.target for asked in tokens.asked] == ["/token/account/box"]
    Settings.get.cache_clear()


def test_a_source_travels_to_other_processes(harmonised_scene):
    files, _ = harmonised_scene
    source = opened(files, ("B03", "B11"), offset="applied")
    before = source.read(files.geobox)
    travelled = pickle.loads(pickle.dumps(source))
    assert travelled.source.config == source.source.config
    assert travelled.source.sensor == source.source.sensor
    assert travelled.scene == source.scene
    after = travelled.read(files.geobox)
    np.testing.assert_array_equal(after.values, before.values)
    assert after.provenance == before.provenance


def test_catalogue_and_product_are_credited(harmonised_scene):
    files, _ = harmonised_scene
    (line,) = opened(files).attribution
    assert "modified Copernicus Sentinel data" in line
    assert catalogue_of("earth-search=http://127.0.0.1:1").url in line
