"""A place and dates through a catalogue into a raster."""

import json
import warnings
from dataclasses import replace
from xml.etree import ElementTree

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from PIL import Image
from pystac.validation import validate_dict
from rio_cogeo.cogeo import cog_validate

from bharateo.pixels.picture import PICTURE_MARK
from composite.worlds import (
    BANDS,
    BOX,
    HOW,
    WEST_BOX,
    catalogue,
    expected,
    read,
    two_zone_days,
)
from sentinel2_rig import Acquisition, World
from small_datasets import contents


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return two_zone_days(tmp_path_factory.mktemp("days"))


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """The median of the place on both sides of 78 E: its file."""
    output = tmp_path_factory.mktemp("made") / "border.tif"
    with catalogue(world) as composite:
        assert composite(output) == 0
    return output


def beside(output):
    return output.with_name(f"{output.stem}-observations.tif")


def record_of(output):
    return json.loads(output.with_suffix(".json").read_text())


def check(output, world, **options):
    """Every pixel of a composite and of its observations is what the definition says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of pixels that no day shows
        values, about = expected(world, output, **options)
    np.testing.assert_array_equal(read(output), np.nan_to_num(values))
    np.testing.assert_array_equal(read(beside(output)), np.nan_to_num(about))


def one_zone(world, *days, **told):
    """The scenes of zone 43 on some days; of the last the item says something else."""
    scenes = [next(each for each in world.acquisitions if each.files.name == f"43RGM-{day}")
              for day in days]  # fmt: skip
    last = scenes.pop()
    changed = Acquisition(replace(last.files, **told), last.reflectance, last.scl)
    return World(world.folder, [*scenes, changed])


def refused(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


# What is made


def test_every_pixel_is_the_median_of_its_clear_days_over_two_zones_and_offsets(world, made):
    check(made, world)
    assert np.unique(read(beside(made))[0]).tolist() == [0, 1, 2, 3, 4]
    record = record_of(made)
    scenes = record["scenes"]
    assert {scene["id"] for scene in scenes} == {each.files.name for each in world.acquisitions}
    assert {scene["offset_dn"] for scene in scenes} == {0, -1000}
    assert {scene["pixels"] for scene in scenes} == {"agree"}
    assert "Copernicus" in record["attribution"][0]


def test_others_open_both_files_and_the_item_describes_them(made):
    for path, names in ((made, BANDS), (beside(made), None)):
        assert cog_validate(path, strict=True) == (True, [], [])
        with rasterio.open(path) as file:
            assert file.dtypes[0] == "uint16"
            assert file.nodata == 0
            assert file.crs.to_epsg() == 32643
            assert file.res == (10, 10)
            assert names is None or file.descriptions == names
            assert names is None or file.scales == (1e-4,) * len(names)
    stored = made.with_name("border.tif.stac.json")
    assert validate_dict(json.loads(stored.read_text()), extensions=[])  # STAC's own schemas
    item = pystac.Item.from_file(str(stored))
    assert [*item.assets] == ["composite", "observations", "style", "picture", "record"]
    assert all((made.parent / each.href).is_file() for each in item.assets.values())
    assert item.properties["start_datetime"] == "2021-11-01T00:00:00Z"
    assert item.properties["end_datetime"] == "2022-03-31T23:59:59Z"
    assert item.properties["proj:code"] == "EPSG:32643"
    assert "Copernicus" in item.properties["attribution"][0]
    assert shapely.geometry.shape(item.geometry).contains(shapely.box(*BOX))


def test_people_see_three_bands_each_from_its_own_black_to_its_white(made):
    with rasterio.open(made) as file:
        shown = [1, 2, 3]  # true colour where its bands are among them: they are not
        values = file.read(shown) * file.scales[0]
        known = (file.read(shown) != 0).all(0)
    limits = np.quantile(values[:, known], (0.02, 0.98), axis=1).T
    style = ElementTree.parse(made.with_suffix(".qml")).getroot().find("pipe/rasterrenderer")
    assert style.get("type") == "multibandcolor"
    for colour, band, ends in zip(("red", "green", "blue"), shown, limits, strict=True):
        assert style.get(f"{colour}Band") == str(band)
        said = style.find(f"{colour}ContrastEnhancement")
        assert [float(said.findtext(end)) for end in ("minValue", "maxValue")] == pytest.approx(
            ends, rel=1e-3
        )
    with Image.open(made.with_suffix(".png")) as picture:
        assert picture.text["Software"] == PICTURE_MARK
        drawn = np.asarray(picture)
    # The ground begins 24 pixels in; its middle is drawn between the limits.
    row, col = (side // 2 for side in known.shape)
    assert known[row, col]
    expected = (values[:, row, col] - limits[:, 0]) / (limits[:, 1] - limits[:, 0])
    times = max(700 / max(known.shape), 1)
    seen = drawn[24 + int((row + 0.5) * times), 24 + int((col + 0.5) * times)]
    assert seen == pytest.approx(255 * expected.clip(0, 1), abs=1)


def test_what_is_there_is_left_alone_and_what_is_not_ours_is_not_written_over(
    world, made, capsys, tmp_path
):
    before = contents(made.parent)
    with catalogue(world) as composite:
        url = record_of(made)["catalogue"]  # that of another server, which has gone
        assert composite(made, "--set", f"data.sentinel2.catalogue=earth-search={url}") == 0
        assert "is there already, made of the same" in capsys.readouterr().out
        assert contents(made.parent) == before
        made.with_suffix(".png").unlink()  # drawn again; a style of a person's own stays
        made.with_suffix(".qml").write_text("mine")
        assert composite(made, "--set", f"data.sentinel2.catalogue=earth-search={url}") == 0
        assert contents(made.parent) == before | {"border.qml": b"mine"}
        made.with_suffix(".qml").unlink()
        assert composite(made, "--set", f"data.sentinel2.catalogue=earth-search={url}") == 0
        assert contents(made.parent) == before
        (tmp_path / "mine.tif").write_bytes(b"mine")
        assert composite(tmp_path / "mine.tif") == 1
    assert "is not what `bharateo composite` makes" in refused(capsys)
    assert contents(tmp_path) == {"mine.tif": b"mine"}


def test_polygons_of_a_file_are_clipped_to_and_named(world, made, tmp_path, capsys):
    west, south, east, north = WEST_BOX
    frame = geopandas.GeoDataFrame(
        {"name": ["Left", "Right"]},
        geometry=[shapely.Polygon([(west, south), (east, south), (west, north)]),
                  shapely.box(east, south, east + 0.01, north)],
        crs=4326,
    )  # fmt: skip
    frame.to_file(tmp_path / "districts.gpkg")
    place = "--aoi", tmp_path / "districts.gpkg", "--zone-field", "name", "--zone"
    with catalogue(world) as composite:
        assert composite(tmp_path / "left.tif", *place, "Left", "--max-cloud", 20, box=None) == 0
        capsys.readouterr()
        assert composite(tmp_path / "x.tif", *place, "Top", box=None) == 1
    assert "--zone 'Top' is not in column 'name'" in refused(capsys)
    with rasterio.open(tmp_path / "left.tif") as part, rasterio.open(made) as whole:
        inside = rasterio.features.geometry_mask(
            frame.to_crs(part.crs).geometry[:1], part.shape, part.transform, invert=True
        )
        seen = read(beside(tmp_path / "left.tif"))[0]
        row, col = (round(each) for each in whole.index(*(part.transform @ (0.5, 0.5))))
    days = {scene["datetime"][:10] for scene in record_of(tmp_path / "left.tif")["scenes"]}
    assert days == {day for day, how in HOW.items() if how["cloud_cover"] <= 20}
    assert (seen[~inside] > 0).sum() < 10  # a straight line in degrees bends
    assert 0.45 < inside.mean() < 0.55
    three = read(beside(made))[:, row : row + seen.shape[0], col : col + seen.shape[1]]
    well_inside = rasterio.features.geometry_mask(
        frame.to_crs(part.crs).geometry[:1].buffer(-20), inside.shape, part.transform, invert=True
    )
    of_three = well_inside & (three[2] < 19056)  # the cloudy day shows nothing there
    np.testing.assert_array_equal(seen[of_three], three[0][of_three])
    assert of_three.mean() > 0.1


def test_a_dry_run_says_what_it_takes_and_reads_no_pixel(world, capsys):
    with catalogue(world) as composite:
        assert composite(None, "--dry-run") == 0
        assert composite.rig.files.gets == []
    said = capsys.readouterr().out
    for words in ("2021-12-05 to 2022-03-05", "requests", "download", "disk", "200 Mbit/s"):
        assert words in said


# Where flag and pixels disagree


def test_a_scene_that_its_pixels_contradict_is_dropped_and_said(world, tmp_path, capsys):
    days = "2021-12-05", "2022-01-14", "2022-02-03"
    wrong = one_zone(world, *days, flag=True)
    with catalogue(wrong) as composite:
        assert composite(tmp_path / "c.tif", box=WEST_BOX) == 0
    assert "scene 43RGM-2022-02-03 is dropped: taken as harmonised" in capsys.readouterr().out
    record = record_of(tmp_path / "c.tif")
    assert [each["id"] for each in record["left_out"]] == ["43RGM-2022-02-03"]
    assert [each["id"] for each in record["scenes"]] == [f"43RGM-{day}" for day in days[:2]]
    check(tmp_path / "c.tif", one_zone(world, *days[:2]), box=WEST_BOX)


def test_where_nothing_else_is_left_it_is_refused_with_the_setting_that_mends_it(
    world, tmp_path, capsys
):
    with catalogue(one_zone(world, "2022-02-03", flag=True)) as composite:
        assert composite(tmp_path / "c.tif", box=WEST_BOX) == 1
        error = refused(capsys)
        assert "BuildError: scene 43RGM-2022-02-03: taken as harmonised" in error
        assert "set data.sentinel2.offset to subtract" in error
        assert not (tmp_path / "c.tif").exists()
        mended = "--set", "data.sentinel2.offset=subtract"
        assert composite(tmp_path / "c.tif", *mended, box=WEST_BOX) == 0
    check(tmp_path / "c.tif", one_zone(world, "2022-02-03"), box=WEST_BOX)


def test_a_scene_with_a_file_that_is_not_there_is_left_out_and_said(world, tmp_path, capsys):
    days = "2021-12-05", "2022-01-14"
    broken = one_zone(world, *days, name="GONE", cloud_cover=1.0)
    (world.folder / "s2" / "GONE").mkdir(exist_ok=True)
    scl = world.folder / "s2" / "43RGM-2022-01-14" / "SCL.tif"
    (world.folder / "s2" / "GONE" / "SCL.tif").write_bytes(scl.read_bytes())
    with catalogue(broken) as composite:
        assert composite(tmp_path / "c.tif", box=WEST_BOX) == 0
    assert "scene GONE is left out: " in capsys.readouterr().out
    check(tmp_path / "c.tif", one_zone(world, days[0]), box=WEST_BOX)


# What is refused


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--output", "c.png"], "must end in .tif; give bharateo composite"),
        (["--max-dates", "0"], "at least 1 date"),
        (["--margin", "-1"], "a margin is 0 pixels or more"),
        (["--dates", "yesterday"], "FIRST/LAST"),
        (["--season", "spring"], "give rabi, summer, kharif"),
        (["--season", "kharif", "--dates", "2021-01-01/2021-03-01"], "has no day in"),
        (["--bands", "B99"], "B99"),
        (["--zone", "Pune"], "are of --aoi"),
        (["--aoi", "there.gpkg"], "give one place"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(more, said, capsys, tmp_path):
    from bharateo.verbs.cli import main

    words = {"--roi": "p=77.95,28.6,9", "--dates": "2021-01-01/2021-12-31",
             "--output": str(tmp_path / "c.tif"),
             **dict(zip(more[::2], more[1::2], strict=True))}  # fmt: skip
    line = ["composite", *(word for pair in words.items() for word in pair)]
    assert main([*line, "--set", "data.sentinel2.catalogue=http://127.0.0.1:1/"]) == 1
    assert said in refused(capsys)
    assert not any(tmp_path.iterdir())


def test_a_place_without_a_scene_is_refused(world, tmp_path, capsys):
    with catalogue(world) as composite:
        assert composite(tmp_path / "c.tif", box=(10, 50, 10.01, 50.01)) == 1
        assert "no scene in" in (said := refused(capsys))
        assert "give more days in --dates" in said
        assert composite(tmp_path / "c.tif", dates="2019-01-01/2019-02-01") == 1
    assert not (tmp_path / "c.tif").exists()
