"""A sample is random, by stratum, the same for the same seed, blind, and never loses an answer."""

import json

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
from PIL import Image

from bharateo.errors import ConfigError, RegionError, SourceError
from bharateo.survey import ground
from bharateo.survey.sample import SamplePlan, random_keys, read_sample
from bharateo.verbs.cli import main
from bharateo.verbs.survey import sample
from survey.class_maps import (
    AFFINE,
    NAMES,
    answer,
    districts,
    write_classes,
    write_probabilities,
)


@pytest.fixture
def class_map(tmp_path, world):
    codes = world.mapped.copy()
    codes[:40, :60] = 255
    return write_classes(tmp_path / "map.tif", codes)


def read(points, layer="points"):
    return pyogrio.read_dataframe(points, layer=layer)


def test_every_stratum_gets_its_points_and_nodata_none(class_map, tmp_path, quiet):
    record = sample(class_map, tmp_path / "p.gpkg", total=400, display=quiet)
    with rasterio.open(class_map) as file:
        codes = file.read(1)
    row, col, stratum = np.array(record.points).T
    assert len({*zip(row, col, strict=True)}) == 400
    assert (codes[row, col] == np.array([each.code for each in record.strata])[stratum]).all()
    counts = np.bincount(stratum)
    assert counts.tolist() == [each.points for each in record.strata]
    assert counts.min() == 50
    assert [each.cells for each in record.strata] == [int((codes == n).sum()) for n in range(4)]
    hectares = sum(each.m2 for each in record.strata) / 1e4
    assert hectares == pytest.approx((codes != 255).sum() / 100, rel=1e-3)  # UTM's scale


def test_which_cells_are_drawn_depends_on_seed_row_and_column_alone(
    class_map, tmp_path, quiet, monkeypatch
):
    first = sample(class_map, tmp_path / "a.gpkg", per_class=30, display=quiet)
    monkeypatch.setattr(ground, "WINDOW_CELLS", 64)
    again = sample(class_map, tmp_path / "b.gpkg", per_class=30, display=quiet)
    other = sample(class_map, tmp_path / "c.gpkg", per_class=30, seed=1, display=quiet)
    assert again.points == first.points
    assert len({tuple(each) for each in other.points} & {tuple(e) for e in first.points}) < 20


def test_all_cells_are_drawn_alike():
    """Keys are uniform, and those of neighbours have nothing in common."""
    row, col = np.indices((256, 256))
    share = random_keys(7, row, col) / 2.0**64
    counts, _ = np.histogram(share, 16, (0, 1))
    assert abs(counts - 4096).max() < 5 * 64
    for axis in (0, 1):
        one = np.corrcoef(share.ravel(), np.roll(share, 1, axis).ravel())[0, 1]
        assert abs(one) < 0.02


def test_the_layer_does_not_say_what_the_map_says(class_map, tmp_path, quiet):
    points = tmp_path / "p.gpkg"
    record = sample(class_map, points, total=400, display=quiet)
    shown = gpd.read_file(points, layer="points")
    assert [*shown.columns] == ["id", "label", "note", "geometry"]
    assert shown["label"].isna().all()
    assert shown.crs.to_epsg() == 4326
    strata = np.array(record.points)[:, 2]
    assert abs(np.corrcoef(strata, np.arange(400))[0, 1]) < 0.2  # ids are in random order
    design = read(points, "design")
    assert design["inclusion_probability"].tolist() == pytest.approx(
        [record.strata[each].points / record.strata[each].cells for each in strata]
    )
    assert {*design["class"]} == {*NAMES}
    x, y = shown.to_crs("EPSG:32643").geometry.x, shown.to_crs("EPSG:32643").geometry.y
    col, row = ~AFFINE @ (x.to_numpy(), y.to_numpy())
    assert row == pytest.approx(design["row"] + 0.5, abs=1e-3)
    assert col == pytest.approx(design["col"] + 0.5, abs=1e-3)


def test_answers_are_never_lost(class_map, tmp_path, quiet, world, capsys):
    points = tmp_path / "p.gpkg"
    arguments = ["sample", str(class_map), "--output", str(points), "--per-class"]
    assert main([*arguments, "20"]) == 0
    before = points.read_bytes()
    assert main([*arguments, "25"]) == 0  # nobody has answered yet
    assert points.read_bytes() != before
    answer(points, world.truth)
    labelled = read(points)["label"].tolist()
    assert main([*arguments, "25"]) == 0
    assert "its answers are kept" in capsys.readouterr().out
    assert read(points)["label"].tolist() == labelled
    assert main([*arguments, "30"]) == 1
    assert "choose another --output" in capsys.readouterr().err
    assert read(points)["label"].tolist() == labelled
    points.with_suffix(".json").unlink()
    assert main([*arguments, "25"]) == 1
    assert read(points)["label"].tolist() == labelled


def test_strata_are_classes_by_zone(class_map, tmp_path, quiet):
    zones = districts(tmp_path / "zones.gpkg")
    record = sample(class_map, tmp_path / "p.gpkg", per_class=10, zones=zones, zone_field="name",
                    display=quiet)  # fmt: skip
    assert {(each.code, each.zone) for each in record.strata} == {
        (code, zone) for code in range(4) for zone in ("west", "east")
    }
    for row, col, stratum in record.points:
        assert record.strata[stratum].zone == ("west" if col < 200 else "east"), row
    with rasterio.open(class_map) as file:
        codes = file.read(1)
    cells = {(each.code, each.zone): each.cells for each in record.strata}
    assert cells[0, "east"] == (codes[:, 200:] == 0).sum()


def test_zones_that_overlap_or_lie_elsewhere_are_refused(class_map, tmp_path, quiet):
    both = gpd.read_file(districts(tmp_path / "zones.gpkg"))
    both.loc[1, "geometry"] = both.geometry[1].buffer(500)
    both.to_file(tmp_path / "overlapping.gpkg")
    both.set_geometry(both.translate(1e5, 0)).to_file(tmp_path / "far.gpkg")
    for name, said in (("overlapping.gpkg", "share ground"), ("far.gpkg", "no zone reaches")):
        with pytest.raises(RegionError, match=said):
            sample(class_map, tmp_path / "p.gpkg", per_class=9, zones=tmp_path / name,
                   display=quiet)  # fmt: skip


def test_a_total_is_shared_out_as_it_says():
    cells = np.array([1_000_000, 200_000, 20_000, 30])
    points, said = SamplePlan(total=800).points(cells, cells * 100.0, None)
    assert points.tolist()[2:] == [50, 30]  # the least, and all there are
    assert points.sum() == 800
    assert points[0] / points[1] == pytest.approx(5, rel=0.02)
    assert "by area" in said
    assert SamplePlan(total=400, allocation="equal").points(cells, cells * 1.0, None)[0].tolist() \
        == [124, 123, 123, 30]  # fmt: skip
    sure = np.array([0.99, 0.5, 0.9, 0.9])
    doubted = SamplePlan(total=800, allocation="neyman").points(cells, cells * 100.0, sure)[0]
    assert doubted[1] > points[1]
    with pytest.raises(ConfigError, match="give more"):
        SamplePlan(total=12).points(cells, cells * 100.0, None)


def test_neyman_reads_the_probabilities(class_map, tmp_path, quiet, world):
    with pytest.raises(ConfigError, match="no probabilities"):
        sample(class_map, tmp_path / "p.gpkg", total=400, allocation="neyman", display=quiet)
    shares = np.repeat(np.array([0.999, 0.6, 0.9, 0.9])[:, None], 300 * 400, 1)
    write_probabilities(tmp_path / "map-probabilities.tif", shares.reshape(4, 300, 400))
    drawn = sample(class_map, tmp_path / "p.gpkg", total=400, allocation="neyman", display=quiet)
    by_area = sample(class_map, tmp_path / "q.gpkg", total=400, display=quiet)
    assert drawn.strata[1].points > 1.5 * by_area.strata[1].points


def test_pictures_show_the_ground_with_a_cross(class_map, tmp_path, quiet):
    image = tmp_path / "image.tif"
    with rasterio.open(
        image, "w", driver="GTiff", crs="EPSG:32643", transform=AFFINE, width=400, height=300,
        count=3, dtype="uint16", nodata=0,
    ) as file:  # fmt: skip
        file.write(np.random.default_rng(0).integers(1, 3000, (3, 300, 400)).astype(np.uint16))
        file.descriptions = ("B04", "B03", "B02")
    points = tmp_path / "p.gpkg"
    sample(class_map, points, per_class=2, image=image, display=quiet)
    pictures = sorted((tmp_path / "p-pictures").iterdir())
    assert [each.name for each in pictures] == [f"{n:04}.png" for n in range(1, 9)]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (776, 384)
        assert (np.asarray(picture) == (255, 235, 59)).all(-1).any()
    sample(class_map, points, per_class=2, image=image, display=quiet)  # made again
    pictures[3].write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"0004\.png"):
        sample(class_map, points, per_class=2, image=image, display=quiet)


def test_what_is_no_map_of_classes_is_refused(tmp_path, quiet):
    path = tmp_path / "map.tif"
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32643", transform=AFFINE, width=8,
                       height=8, count=1, dtype="int16") as file:  # fmt: skip
        file.write(np.full((1, 8, 8), 300, np.int16))
    with pytest.raises(SourceError, match="holds 300"):
        sample(path, tmp_path / "p.gpkg", per_class=2, display=quiet)
    write_classes(path, np.full((8, 8), 255))
    with pytest.raises(SourceError, match="has no class anywhere"):
        sample(path, tmp_path / "p.gpkg", per_class=2, display=quiet)
    with pytest.raises(ConfigError, match="--total N or --per-class N"):
        sample(path, tmp_path / "p.gpkg", display=quiet)
    with pytest.raises(ConfigError, match="must end in"):
        sample(path, tmp_path / "p.csv", per_class=2, display=quiet)


def test_names_come_from_the_map_or_from_worldcover_or_are_the_codes(tmp_path, quiet):
    codes = np.where(np.indices((40, 40))[0] < 20, 10, 80)
    for name, expected in (
        ("ESA_WorldCover_x.tif", {"Tree cover", "Permanent water bodies"}),
        ("x.tif", {"10", "80"}),
    ):
        path = write_classes(tmp_path / name, codes, names=())
        points = tmp_path / f"{path.stem}.gpkg"
        sample(path, points, per_class=4, display=quiet)
        assert {*read(points, "design")["class"]} == expected


def test_a_plan_that_was_changed_is_refused(class_map, tmp_path, quiet):
    sample(class_map, tmp_path / "p.gpkg", per_class=5, display=quiet)
    beside = tmp_path / "p.json"
    plan = json.loads(beside.read_text())
    plan["strata"][0]["m2"] *= 2
    beside.write_text(json.dumps(plan))
    with pytest.raises(SourceError, match="was changed"):
        read_sample(beside)
