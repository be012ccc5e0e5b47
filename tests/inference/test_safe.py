"""A .SAFE product or its .zip: the pixels of the same ground as one GeoTIFF."""

import re
import shutil

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.errors import ConfigError, ContractError, SourceError
from bharateo.inference.inputs import open_alone, open_input
from bharateo.inference.pixel_features import band_features, energy_features
from bharateo.inference.tiles import Tile
from bharateo.pixels.raster import open_raster, to_grid
from bharateo.reading import Reading
from bharateo.sensor import SENTINEL2_L1C, SENTINEL2_L2A
from bharateo.sources.sentinel2 import VALID_SCL
from inference.test_inputs import contract_for
from l2a_scenes import BANDS, BANDS_20M, at_20m, made_up_scene, made_up_scl
from safe_products import CORNER, write_product, zipped

SHAPE = (96, 128)
WINDOWS = [(0, 0, *SHAPE), (33, 57, 41, 62), (95, 127, 1, 1)]


def grid(px):
    return GeoBox((SHAPE[0] * 10 // px, SHAPE[1] * 10 // px),
                  Affine(px, 0, CORNER[0], 0, -px, CORNER[1]), "EPSG:32643")  # fmt: skip


@pytest.fixture(scope="module")
def ground():
    """Reflectance x 10000 at 10 m with a hole, and scene classes at 20 m with clouds."""
    reflectance, codes = made_up_scene(SHAPE, 1)
    reflectance[:, 40:52, 64:80] = 0
    scl = made_up_scl(reflectance, codes)
    scl[5:15, 10:30] = 9
    return reflectance, scl


@pytest.fixture(scope="module")
def product(ground, tmp_path_factory):
    return write_product(tmp_path_factory.mktemp("l2a"), *ground)


@pytest.fixture(scope="module")
def archive(product):
    return zipped(product)


@pytest.fixture(scope="module")
def plain(ground, tmp_path_factory):
    """One GeoTIFF of 10 m of the same ground, with nothing under clouds; and one with them."""
    reflectance, scl = ground
    values = np.stack([
        to_grid(at_20m(each)[None], grid(20), grid(10), "bilinear")[0]
        if name in BANDS_20M else each
        for name, each in zip(BANDS, reflectance, strict=True)
    ])  # fmt: skip
    values *= (values != 0).all(0)
    clear = np.isin(scl, VALID_SCL).repeat(2, 0).repeat(2, 1)
    paths = {}
    for name, kept in (("clear", values * clear), ("all", values)):
        paths[name] = tmp_path_factory.mktemp("plain") / f"{name}.tif"
        with rasterio.open(
            paths[name], "w", driver="GTiff", count=10, height=SHAPE[0], width=SHAPE[1],
            dtype="uint16", nodata=0, crs="EPSG:32643", transform=grid(10).affine,
        ) as file:  # fmt: skip
            file.write(kept)
            file.descriptions = BANDS
            file.scales = [1e-4] * 10
    return paths


@pytest.fixture(scope="module")
def contract(ground):
    bands = ("B04", "B11", "B8A")
    values = ground[0][[BANDS.index(name) for name in bands]].reshape(3, -1)
    return contract_for(values[:, values.all(0)] * 1e-4, bands)


def same(found, expected):
    assert (found.shape, found.geobox) == (expected.shape, expected.geobox)
    for window in WINDOWS:
        (values, valid), (others, known) = found.read(*window), expected.read(*window)
        np.testing.assert_array_equal(valid, known)
        np.testing.assert_array_equal(values[:, valid], others[:, known])


@pytest.mark.parametrize("form", ["folder", "zip", "metadata"])
def test_a_product_holds_the_pixels_of_one_geotiff(form, product, archive, plain, contract, ground):
    path = {"folder": product, "zip": archive, "metadata": product / "MTD_MSIL2A.xml"}[form]
    found = open_input(str(path), contract)
    same(found, open_input(str(plain["clear"]), contract))
    assert found.notes == (
        "offset: -1000 (the product's metadata, baseline 05.10)",
        "mask: SCL, which leaves land, water and snow",
    )
    made_of = found.made_of
    assert made_of.datetime == "2024-02-03T05:30:21.024Z"
    assert {*made_of.model_dump()["files"]} == {"B04", "B11", "B8A", "SCL"}


def test_what_is_learned_from_without_a_run_is_the_same(archive, plain):
    """Bands, indices and energies of every pixel, which ``teach`` tells classes apart by."""
    found, expected = open_alone(str(archive)), open_alone(str(plain["clear"]))
    same(found, expected)
    assert found.sensor == SENTINEL2_L2A
    box = Tile(slice(0, SHAPE[0]), slice(0, SHAPE[1]))
    for features in (band_features, energy_features):
        np.testing.assert_array_equal(features(found).of(box), features(expected).of(box))


def test_without_the_mask_clouds_are_ground(product, plain):
    found = open_alone(str(product), Reading(mask="none"))
    same(found, open_alone(str(plain["all"])))
    masked = open_alone(str(product))
    assert found.made_of.identity != masked.made_of.identity


@pytest.mark.parametrize(("baseline", "dn_offset"), [("02.14", None), ("04.00", 1000)])
def test_level_1c_has_no_scene_classes(baseline, dn_offset, ground, plain, tmp_path):
    product = write_product(tmp_path, ground[0], None, baseline, dn_offset)
    found = open_alone(str(zipped(product)))
    same(found, open_alone(str(plain["all"])))
    assert found.sensor == SENTINEL2_L1C
    assert found.made_of.model_dump()["harmonised"]["dn"] == -(dn_offset or 0)
    with pytest.raises(ConfigError, match=r"--mask scl: .*L1C scene; none, it has no"):
        open_alone(str(product), Reading(mask="scl"))


def test_a_run_of_another_level_refuses_a_product(product, contract):
    other = contract.model_copy(update={"sensor": SENTINEL2_L1C.with_bands(("B04", "B11", "B8A"))})
    with pytest.raises(ContractError, match=r"^level: .*SAFE holds surface reflectance.*top-of-"):
        open_input(str(product), other)


def test_options_that_a_product_answers_itself_are_refused(product, contract):
    for reading in (Reading(scale=1.0), Reading(nodata=0.0), Reading(resample="bilinear")):
        with pytest.raises(ConfigError, match=r"is for raster files.*leave it out"):
            open_input(str(product), contract, reading)
    with pytest.raises(ConfigError, match=r"--mask QA:bits=1: .*scl or none"):
        open_input(str(product), contract, Reading(mask="QA:bits=1"))


def replaced(old, new):
    def change(metadata):
        text = metadata.read_text()
        assert re.search(old, text)
        metadata.write_text(re.sub(old, new, text))

    return change


def removed(name):
    return lambda metadata: next(metadata.parent.rglob(f"*_{name}.jp2")).unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced("<BOA_ADD.*\n?", ""), r"does not say the BOA_ADD_OFFSET .* baseline 05\.10"),
        (replaced('"3">-1000', '"3">-900'), r"has -1000, -900 as BOA_ADD_OFFSET"),
        (replaced(">10000<", ">1000<"), r"has 1000 as BOA_QUANTIFICATION_VALUE"),
        (replaced("Level-2A<", "Level-1C<"), r"says that the product is Level-1C"),
        (replaced("<PROCESSING_BASELINE.*", ""), r"says nothing as PROCESSING_BASELINE"),
        (replaced("<IMAGE_FILE>.*_SCL_20m.*", ""), r"lists no file of SCL_20m"),
        (replaced("GRANULE/(.*_B02_10m)", r"../../\1"), r"names \.\./\.\./.*, outside its folder"),
        (replaced("<n1:General_Info>", "<!DOCTYPE a>"), r"is no metadata of a Sentinel-2 product"),
        (removed("B11_20m"), r"lists GRANULE/.*_B11_20m\.jp2, which is not below its folder"),
    ],
)
def test_a_product_that_is_damaged_or_does_not_say_its_unit_is_refused(
    change, said, product, tmp_path
):
    copied = tmp_path / product.name
    shutil.copytree(product, copied)
    change(copied / "MTD_MSIL2A.xml")
    for path in (copied, zipped(copied)):
        with pytest.raises(SourceError, match=said):
            open_alone(str(path))


def test_an_archive_of_something_else_or_none_is_refused(archive, tmp_path):
    (tmp_path / "a.txt").write_text("no raster")
    other = shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path, "a.txt")
    with pytest.raises(SourceError, match=r"holds no Sentinel-2 product .*unpack it"):
        open_alone(other)
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(SourceError, match=r"cut\.zip is no \.zip that can be read"):
        open_alone(str(cut))


def test_a_band_that_is_damaged_in_its_archive_is_an_error(archive, tmp_path):
    damaged = tmp_path / archive.name
    content = bytearray(archive.read_bytes())
    # The middle of the largest file
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    damaged.write_bytes(content)
    with pytest.raises(SourceError):
        open_alone(str(damaged)).read(0, 0, *SHAPE)


def test_one_raster_in_an_archive_is_read(archive, product):
    band = next(product.rglob("*_B04_10m.jp2"))
    inside = archive / band.relative_to(product.parent)
    there = open_raster(str(inside)).read_window(0, 0, *SHAPE)
    np.testing.assert_array_equal(there, open_raster(str(band)).read_window(0, 0, *SHAPE))
    assert open_raster(str(archive / "none.jp2")) is None
