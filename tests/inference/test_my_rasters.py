"""Rasters as people have them: whatever their form, the same ground has the same vectors."""

import re

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

from bharateo.errors import ConfigError, ContractError, SourceError
from bharateo.inference.embed import Embedding, embed_raster
from bharateo.inference.inputs import open_alone, open_input
from bharateo.pixels.raster import doubled
from bharateo.reading import Reading
from bharateo.verbs.cli import main
from handover.tiny_run import tiny_run
from inference.small_rasters import write_raster

SHAPE = (96, 120)
NAMES = ("B1", "B2")


@pytest.fixture(scope="module")
def run(reflectance_dataset, tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run") / "run", reflectance_dataset)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One GeoTIFF of 10 m, uint16, 0 where there is nothing."""
    return write_raster(tmp_path_factory.mktemp("plain") / "plain.tif", *SHAPE)


@pytest.fixture(scope="module")
def stored(plain):
    with rasterio.open(plain) as file:
        return file.read()


@pytest.fixture(scope="module")
def expected(run, plain, tmp_path_factory):
    return vectors(run, plain, tmp_path_factory.mktemp("expected"))


def write(path, plain, values, corner=(0, 0), px=10, names=None, **changes):
    """Values on the grid of the plain raster, from a row and column of it on."""
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(plain) as file:
        profile, names = file.profile, names or file.descriptions
        affine = file.transform @ Affine.translation(corner[1], corner[0]) @ Affine.scale(px / 10)
    for key in ("tiled", "blockxsize", "blockysize"):
        profile.pop(key, None)
    profile |= {"count": len(values), "height": values.shape[1], "width": values.shape[2],
                "dtype": values.dtype, "transform": affine, **changes}  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        file.descriptions = [*names, *([None] * len(values))][: len(values)]
    return path


def vectors(run, location, folder, reading=None):
    source = open_input(str(location), run.contract, reading)
    output = folder / "vectors.tif"
    how = Embedding("float32")
    embed_raster(run, source, [output], how, lambda *_: None, lambda *_: None)
    with rasterio.open(output) as file:
        return file.read(), file.transform, file.tags()


def same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1]


def same_pixels(run, location, reading, other):
    """Vectors are made of nothing else."""
    found, expected = (
        open_input(str(path), run.contract, how)
        for path, how in ((location, reading), (other, None))
    )
    assert found.geobox == expected.geobox
    (values, valid), (others, known) = found.read(0, 0, *SHAPE), expected.read(0, 0, *SHAPE)
    np.testing.assert_array_equal(valid, known)
    np.testing.assert_array_equal(values[:, valid], others[:, known])


# Tiles


@pytest.fixture
def tiles(plain, stored, tmp_path):
    """Four that overlap by 16 px; where they do, those of the first row hold noise in the third,
    and the first one lacks a corner that the next has.
    """
    folder = tmp_path / "tiles"
    for name, rows, cols in (
        ("b", slice(0, 56), slice(52, 120)), ("a", slice(0, 56), slice(0, 68)),
        ("d", slice(40, 96), slice(52, 120)), ("c", slice(40, 96), slice(0, 68)),
    ):  # fmt: skip
        values = stored[:, rows, cols].copy()
        if name == "a":
            values[0, :30, -10:] = 0
        if name == "c":
            values[:, :16] += 999
        write(folder / f"{name}.tif", plain, values, (rows.start, cols.start))
    return folder


def test_tiles_are_one_raster_and_the_first_that_holds_a_pixel_counts(
    run, tiles, expected, tmp_path
):
    same(vectors(run, tiles, tmp_path), expected)
    source = open_input(str(tiles), run.contract)
    assert source.notes == ("tiles: 4 as one; where they overlap, the first by name counts",)
    assert source.made_of.model_dump()["tiles"] == 4
    # Whatever a window takes of them.
    values, valid = source.read(35, 45, 30, 40)
    whole, known = source.read(0, 0, *SHAPE)
    np.testing.assert_array_equal(values[:, valid], whole[:, 35:65, 45:85][:, valid])
    np.testing.assert_array_equal(valid, known[35:65, 45:85])


def test_a_list_of_tiles_has_its_own_order(run, tiles, tmp_path):
    (tmp_path / "list.txt").write_text("tiles/c.tif\n\ntiles/a.tif\n")
    source = open_input(str(tmp_path / "list.txt"), run.contract)
    assert source.shape == (96, 68)
    with rasterio.open(tiles / "c.tif") as file:
        values, valid = source.read(40, 0, 16, 68)
        assert valid.any()
        expected = file.read()[:, :16] * 1e-4 - 0.1  # as the run's sensor stores them
        np.testing.assert_allclose(values[:, valid], expected[:, valid], atol=1e-6)


def test_ground_between_tiles_is_missing(run, tiles):
    (tiles / "b.tif").unlink()
    _, valid = open_input(str(tiles), run.contract).read(0, 0, *SHAPE)
    assert not valid[:40, 70:].any()
    assert valid[60:, 70:].any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crs": "EPSG:32644"}, r"z\.tif has reference .*gdalwarp -t_srs EPSG:32643 -tr 10 10"),
        ({"px": 20}, r"z\.tif has pixel .*every tile there: gdalwarp .*-tap IN\.tif OUT\.tif"),
        ({"corner": (0.5, 0)}, r"z\.tif lie 0\.5 of a pixel aside .*every tile there: gdal"),
        ({"names": ("B2", "B1")}, r"z\.tif has bands .*B2.*list those to take"),
        ({"dtype": "float32"}, r"z\.tif has type float32"),
    ],
)  # fmt: skip
def test_tiles_that_do_not_fit_together_are_refused(change, said, run, plain, stored, tiles):
    values = stored.astype(change.pop("dtype", "uint16"))
    write(tiles / "z.tif", plain, values, **change)
    with pytest.raises(SourceError, match=said):
        open_input(str(tiles), run.contract)


def test_one_tile_alone_is_to_be_warped_where_that_lays_it_on_the_grid(
    run, plain, stored, tmp_path
):
    for name, px in (("a", 10), ("b", 20)):
        affine = Affine(px, 0, 400_000, 0, -px, 3_000_000)
        write(tmp_path / "t" / f"{name}.tif", plain, stored, transform=affine)
    with pytest.raises(SourceError, match=r"bring it there: gdalwarp .*-tap .*b\.tif NEW\.tif"):
        open_input(str(tmp_path / "t"), run.contract)


def test_a_black_edge_over_another_tile_is_refused_until_it_is_named(run, plain, stored, tmp_path):
    folder = tmp_path / "edges"
    for name, cols in (("1", slice(0, 70)), ("2", slice(50, 120))):
        values = stored[:, :, cols].copy()
        if name == "1":
            values[:, :, -8:] = 0
        write(folder / f"{name}.tif", plain, values, (0, cols.start), nodata=None)
    with pytest.raises(SourceError, match=r"edges has tiles .* 0 in all bands where .*2\.tif.*"
                       r"add --nodata 0 if it is an edge"):  # fmt: skip
        open_input(str(folder), run.contract)
    same_pixels(run, folder, Reading(nodata=0.0), plain)
    values, valid = open_alone(str(folder), Reading(nodata=float("nan"))).read(0, 62, 96, 8)
    assert valid.all()
    assert not values.any()


def test_where_there_is_no_tile_it_is_said(run, tmp_path):
    with pytest.raises(SourceError, match=r"holds no raster: a folder of tiles"):
        open_input(str(tmp_path), run.contract)
    (tmp_path / "a.txt").write_text("gone.tif\n")
    with pytest.raises(SourceError, match=r"gone\.tif does not exist"):
        open_input(str(tmp_path / "a.txt"), run.contract)


def test_no_product_is_written_among_the_tiles(run, tiles, capsys):
    words = ["embed", str(run.path), str(tiles), "--output", str(tiles / "v.tif")]
    assert main(words) == 1
    assert "would lie among the tiles" in capsys.readouterr().err


# Types


@pytest.mark.parametrize(
    ("dtype", "missing", "scale"),
    [
        ("int16", -9999, None), ("float32", float("nan"), 1.0), ("float32", -9999, None),
    ],
)  # fmt: skip
def test_the_same_ground_of_another_type_has_the_same_vectors(
    dtype, missing, scale, run, plain, stored, expected, tmp_path
):
    values = stored.astype(dtype)
    if scale:
        values = stored.astype(np.float32) * np.float32(1e-4) + np.float32(-0.1)
    values[stored == 0] = missing
    path = write(tmp_path / "a.tif", plain, values, nodata=missing)
    same(vectors(run, path, tmp_path, Reading(scale=scale)), expected)
    path = write(tmp_path / "a.tif", plain, values, nodata=None)
    if missing and not np.isnan(missing):
        same_pixels(run, path, Reading(scale=scale, nodata=missing), plain)


@pytest.mark.parametrize(("dtype", "fill"), [("int16", -9999), ("float32", -3.4028235e38)])
def test_a_fill_that_the_file_does_not_declare_is_refused(
    dtype, fill, run, plain, stored, tmp_path
):
    values = stored.astype(dtype)
    values[stored == 0] = fill
    path = str(write(tmp_path / "a.tif", plain, values, nodata=None))
    said = re.escape(f"{float(values.min()):.9g}")
    for opened in (
        lambda: open_input(path, run.contract),
        lambda: open_alone(path).read(0, 0, *SHAPE),
    ):
        with pytest.raises(SourceError, match=rf"^nodata: .*holds {said}.*--nodata {said} if it"):
            opened()
    _, valid = open_alone(path, Reading(nodata=float("nan"))).read(0, 0, *SHAPE)
    assert valid.all()


# Pixels of another size


def test_pixels_of_20_m_are_refused_and_resampled_by_name(run, plain, stored, tmp_path):
    small = stored[:, ::2, ::2]
    coarse = write(tmp_path / "20.tif", plain, small, px=20)
    with pytest.raises(ContractError, match=r"^resolution: .*--resample bilinear"):
        open_input(str(coarse), run.contract)
    reading = Reading(resample="nearest")
    by_hand = write(tmp_path / "nearest.tif", plain, small.repeat(2, 1).repeat(2, 2))
    found = vectors(run, coarse, tmp_path, reading)
    same(found, vectors(run, by_hand, tmp_path))
    source = open_input(str(coarse), run.contract, reading)
    assert source.notes == ("resample: 20 m to 10 m by nearest",)
    assert source.made_of.model_dump()["resampled"] == {"method": "nearest", "pixel": [10, -10]}


def test_bilinear_is_that_of_the_builds_in_every_window(run, plain, stored, tmp_path):
    small = np.where(stored, stored, 2000)[:, ::2, ::2]
    coarse = write(tmp_path / "20.tif", plain, small, px=20)
    by_hand = write(tmp_path / "bilinear.tif", plain, doubled(small))
    reading = Reading(resample="bilinear")
    same_pixels(run, coarse, reading, by_hand)
    source, other = open_alone(str(coarse), reading), open_alone(str(by_hand))
    for window in [(0, 0, 7, 9), (31, 40, 33, 41), (95, 119, 1, 1)]:
        np.testing.assert_array_equal(source.read(*window)[0], other.read(*window)[0])


def test_floats_are_resampled_with_what_is_missing_left_out(plain, stored, tmp_path):
    values = stored[:, ::3, ::3].astype(np.float32)
    values[:, 4:8, 4:8] = np.nan
    values[:, :4] = 7
    coarse = write(tmp_path / "30.tif", plain, values, px=30, nodata=None)
    source = open_alone(str(coarse), Reading(resample="bilinear"))
    assert source.shape == SHAPE
    found, valid = source.read(0, 0, *SHAPE)
    assert not valid[14:22, 14:22].any()
    assert (found[:, :10] == 7).all()


def test_pixels_that_are_of_the_size_already_stay_as_they_are(run, plain):
    reading = Reading(resample="bilinear")
    same_pixels(run, plain, reading, plain)
    assert open_alone(str(plain), reading).notes == ("resample: pixels of 10 m are taken for 10 m",)


# Masks


@pytest.fixture(scope="module")
def clear():
    """Ground that is no cloud, in squares of 20 m."""
    rng = np.random.default_rng(3)
    return (rng.random((SHAPE[0] // 8, SHAPE[1] // 8)) > 0.3).repeat(8, 0).repeat(8, 1)


@pytest.fixture
def without_clouds(plain, stored, clear, tmp_path):
    """A raster that holds nothing under the clouds."""
    return write(tmp_path / "cleared.tif", plain, np.where(clear, stored, 0))


def test_masks_inside_the_file_and_alpha_count_by_themselves(
    run, plain, stored, clear, without_clouds, tmp_path
):
    inside = write(tmp_path / "inside.tif", plain, stored)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(inside, "r+") as file:
        file.nodata = None
        file.write_mask(clear & (stored != 0).all(0))
    same(vectors(run, inside, tmp_path), vectors(run, without_clouds, tmp_path))
    layers = np.stack([*stored, (clear * 255).astype(np.uint16)])
    alpha = write(tmp_path / "alpha.tif", plain, layers)
    with rasterio.open(alpha, "r+") as file:
        file.colorinterp = (ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha)
    same_pixels(run, alpha, None, without_clouds)


def layer_of(rule, clear, seed=0):
    """A layer of quality by a rule, with the clouds where they are, and other numbers elsewhere."""
    rng = np.random.default_rng(seed)
    good, bad = {
        "scl": ([2, 4, 5, 6, 7, 11], [0, 1, 3, 8, 9, 10]),
        "bits=1,3": ([0, 1, 4, 5, 64], [2, 8, 10, 15]),
        "drop=2,3": ([0, 1, 4, 200], [2, 3]),
        "": ([1, 2, 255], [0]),
    }[rule]
    values = np.where(clear, rng.choice(good, clear.shape), rng.choice(bad, clear.shape))
    return values.astype(np.uint16)


@pytest.mark.parametrize("rule", ["scl", "bits=1,3", "drop=2,3", ""])
def test_a_band_or_a_file_masks_by_a_rule(
    rule, run, plain, stored, clear, without_clouds, tmp_path
):
    layer = layer_of(rule, clear)
    beside = write(tmp_path / "quality.tif", plain, layer[None, ::2, ::2], px=20, names=[None])
    # Of 20 m, on a grid of its own
    whole = layer[::2, ::2].repeat(2, 0).repeat(2, 1)
    with_band = write(
        tmp_path / "a.tif", plain, np.stack([*stored, whole]), names=(*NAMES, "quality")
    )
    with rasterio.open(plain) as file:
        names = file.descriptions
    with rasterio.open(with_band, "r+") as file:
        file.descriptions = (*names, "Quality")
    suffix = f":{rule}" if rule else ""
    same_pixels(run, plain, Reading(mask=f"{beside}{suffix}"), without_clouds)
    reading = Reading(mask=f"quality{suffix}")
    same_pixels(run, with_band, reading, without_clouds)
    alone = open_alone(str(with_band), reading)
    assert alone.sensor.band_names == names
    assert not (alone.read(0, 0, *SHAPE)[1] & ~clear).any()
    assert alone.notes[0].startswith(f"mask: quality{suffix}, ")


@pytest.mark.parametrize("rule", ["scl", "bits=1,3", "drop=2,3", ""])
def test_a_layer_of_floats_masks_like_one_of_integers(rule, run, plain, stored, clear, tmp_path):
    """As exports have it, whose bands are of one type."""
    layer = layer_of(rule, clear).astype(np.float32)
    layer[5, 5] = np.nan
    path = write(tmp_path / "q.tif", plain, layer[None], names=[None], nodata=None)
    source = open_input(str(plain), run.contract, Reading(mask=f"{path}:{rule}".rstrip(":")))
    expected = clear & (stored != 0).all(0)
    expected[5, 5] = False
    np.testing.assert_array_equal(source.read(0, 0, *SHAPE)[1], expected)


def test_a_band_called_scl_masks_by_itself_unless_told_otherwise(
    run, plain, stored, clear, without_clouds, tmp_path
):
    path = write(tmp_path / "a.tif", plain, np.stack([*stored, layer_of("scl", clear)]))
    with rasterio.open(path, "r+") as file:
        file.set_band_description(3, "SCL")
    same_pixels(run, path, None, without_clouds)
    same_pixels(run, path, Reading(mask="none"), plain)


def test_a_mask_belongs_to_its_tile_so_that_the_next_one_fills_clouds(
    run, plain, stored, clear, tmp_path
):
    folder = tmp_path / "dates"
    for name, where in (("1", clear), ("2", ~clear)):
        values = np.stack([*np.where(where, stored, 77), where.astype(np.uint16)])
        path = write(folder / f"{name}.tif", plain, values)
        with rasterio.open(path, "r+") as file:
            file.set_band_description(3, "clear")
    same_pixels(run, folder, Reading(mask="clear"), plain)


def test_what_lies_outside_of_a_masks_file_is_masked(run, plain, stored, tmp_path):
    half = np.zeros((1, 96, 60), np.uint8)
    path = write(tmp_path / "bits.tif", plain, half, nodata=None, names=[None])
    source = open_input(str(plain), run.contract, Reading(mask=f"{path}:bits=0"))
    _, valid = source.read(0, 0, *SHAPE)
    np.testing.assert_array_equal(valid[:, :60], (stored != 0).all(0)[:, :60])
    assert not valid[:, 60:].any()


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("clouds", r"--mask clouds: clouds is neither a file nor a band of .*\(B1, B2\)"),
        ("scl", r"--mask scl: scl is neither a file nor a band"),
        ("{plain}", r"has 2 bands, a mask has one: .*gdal_translate -b 1"),
        ("{floats}:bits=24", r"float32 has bits 0 to 23, no 24"),
        ("{bytes}:bits=8", r"uint8 has bits 0 to 7, no 8"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(mask, said, run, plain, stored, tmp_path):
    files = {"plain": plain}
    for name, dtype in (("floats", "float32"), ("bytes", "uint8")):
        files[name] = write(tmp_path / f"{name}.tif", plain, stored[:1].astype(dtype), names=[None])
    said = said.replace("B1, B2", r".*")
    with pytest.raises(ConfigError, match=said):
        open_input(str(plain), run.contract, Reading(mask=mask.format(**files)))


def test_a_mask_decides_what_an_input_is_told_from_another_by(run, plain, stored, tmp_path):
    path = write(tmp_path / "m.tif", plain, stored[:1], names=[None])
    readings = [Reading(), Reading(mask=str(path)), Reading(mask=f"{path}:bits=1")]
    found = {open_input(str(plain), run.contract, each).made_of.identity for each in readings}
    assert len(found) == 3


# Verbs


def test_the_verb_says_how_a_raster_is_read(run, tiles, capsys, tmp_path):
    output = tmp_path / "v.parquet"
    assert main(["embed", str(run.path), str(tiles), "--output", str(output)]) == 0
    assert "tiles: 4 as one" in capsys.readouterr().out
    assert len(geopandas.read_parquet(output)) > 0
