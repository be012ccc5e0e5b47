"""Sentinel-2 datasets through the command line, from a STAC API and files on loopback servers."""

import json
from dataclasses import replace

import geopandas
import numpy as np
import pyproj
import pytest
import shapely

from bharateo.chips.store import Dataset
from bharateo.sensor import BAND_SETS
from l2a_scenes import BANDS, EARTH_SEARCH_KEYS, made_up_scene, real_reflectance
from sentinel2_rig import (
    WEST_ROI,
    Acquisition,
    World,
    acquire,
    check_chips,
    check_labels,
    done,
    ground_with_holes,
    other,
    served,
    shards,
    two_zone_world,
)
from small_datasets import contents
from worldcover_tiles import real_mirror

SEASONS = {"data__sentinel2__seasons": "[rabi, kharif]"}


@pytest.fixture(scope="module")
def two_zones(tmp_path_factory):
    return two_zone_world(tmp_path_factory.mktemp("two-zones"))


# Two seasons on both sides of 78 E.


@pytest.fixture(scope="module")
def two_seasons(tmp_path_factory):
    """Two zones in two seasons: the scenes to take, and those to leave."""
    folder = tmp_path_factory.mktemp("two-seasons")
    west, east = ground_with_holes(1), ground_with_holes(2)
    west_later, east_later = ground_with_holes(3, west[1]), ground_with_holes(4, east[1])
    cloudy_unit = slice(512), slice(512)
    world = World(folder, [
        acquire(folder, "W-RABI", west, baseline="05.00", cloud_cover=2.0),
        acquire(folder, "E-RABI", east, epsg=32644, baseline="04.00", flag=False, dn_offset=1000,
                when="2021-11-20T05:30:00Z", cloud_cover=4.0),
        acquire(folder, "W-KHARIF", west_later, when="2021-08-05T05:30:00Z", cloud_cover=5.0,
                cloud_over=cloudy_unit, flag=None),
        acquire(folder, "E-KHARIF", east_later, epsg=32644, when="2021-10-31T05:30:00Z",
                flag=False, cloud_cover=0.5),
    ])  # fmt: skip
    world.write_labels(west[1], east[1])
    first = world.acquisitions[0].files
    world.unread = [
        other(first, "W-RABI-CLOUDIER", cloud_cover=8.0),
        other(first, "W-RABI-CLOUDED", cloud_cover=60.0),
        other(first, "W-RABI-OLDER", baseline="03.01"),
        other(first, "W-SUMMER", when=first.when.replace(month=5), cloud_cover=0.0),
        other(first, "W-LAST-YEAR", when=first.when.replace(year=2020), cloud_cover=0.0),
        other(world.scene("E-KHARIF").files, "E-KHARIF-CLOUDED", cloud_cover=35.0),
    ]
    return world


@pytest.fixture(scope="module")
def built(two_seasons, tmp_path_factory):
    """The dataset, and the command line that built it with its catalogue gone by now."""
    output = tmp_path_factory.mktemp("built") / "dataset"
    with served(two_seasons, **SEASONS) as rig:
        assert done(rig.build(output))
        rig.catalogue.stop()
        yield Dataset.open(output), rig


def test_the_clearest_scene_of_every_season_and_zone_is_taken(built):
    dataset, _ = built
    taken = dataset.chips.groupby(["region", "occasion"]).scene.unique()
    assert {key: list(names) for key, names in taken.items()} == {
        ("43RGM", "rabi"): ["W-RABI"],
        ("43RGM", "kharif"): ["W-KHARIF"],
        ("44RKS", "rabi"): ["E-RABI"],
        ("44RKS", "kharif"): ["E-KHARIF"],
    }


def test_chips_hold_the_reflectance_that_was_written(built, two_seasons):
    check_chips(built[0], two_seasons)


def test_chips_with_too_little_valid_ground_are_left_out(built, two_seasons, tmp_path):
    dataset, rig = built
    items = f"data.sentinel2.items={dataset.path / 'items.json'}"
    everything = rig.build(tmp_path / "all", "--set", items, data__plan__min_valid_fraction=0)
    assert done(everything)
    planned = Dataset.open(tmp_path / "all")
    valid = {each.files.name: each.expected(BANDS)[1] for each in two_seasons.acquisitions}
    clear = [
        (chip.scene, chip.x, chip.y)
        for chip in planned.chips.itertuples()
        if valid[chip.scene][two_seasons.scene(chip.scene).window(chip)].mean() >= 0.9
    ]
    got = list(dataset.chips[["scene", "x", "y"]].itertuples(index=False, name=None))
    assert sorted(got) == sorted(clear)
    assert len(clear) < 0.9 * planned.num_chips
    under_cloud = dataset.chips[(dataset.chips.scene == "W-KHARIF") & (dataset.chips.col < 512)]
    assert under_cloud.empty


def test_a_place_that_is_clear_in_both_seasons_gives_two_chips(built):
    dataset, _ = built
    of_place = dataset.chips.groupby(["region", "row", "col"])
    assert (of_place.split.nunique() == 1).all()
    assert (of_place.occasion.nunique() == of_place.size()).all()
    assert (of_place.size() == 2).sum() > 10


def test_labels_are_worldcovers_nearest_pixels_on_both_sides_of_78_degrees(built, two_seasons):
    dataset, _ = built
    check_labels(dataset, two_seasons.labels)
    tiles = [region["provenance"]["landcover"]["tiles"] for region in dataset.info["regions"]]
    assert [set(each) for each in tiles] == [{"N27E075"}, {"N27E078"}]


def test_labels_go_on_across_the_border_of_two_worldcover_tiles(tmp_path):
    ground = made_up_scene((512, 512), seed=6)
    world = World(tmp_path, [acquire(tmp_path, "30N", ground, corner=(505100, 3323220))])
    world.write_labels(ground[1])
    with served(world, data__plan__chips_per_block="null") as rig:
        assert done(rig.build(tmp_path / "dataset", "--roi", "north=75.056,29.9945,75.103,30.035"))
    dataset = Dataset.open(tmp_path / "dataset")
    check_labels(dataset, world.labels)
    footprints = geopandas.read_parquet(tmp_path / "dataset" / "chips.parquet").bounds
    assert ((footprints.miny < 29.999) & (footprints.maxy > 30.001)).any()


def test_every_chip_says_what_its_offset_was_and_why(built):
    dataset, _ = built
    names = ["datetime", "baseline", "offset_dn", "offset_evidence"]
    told = dataset.chips.groupby("scene")[names].agg(lambda values: values.unique().tolist())
    taken = {scene: [value for (value,) in row] for scene, *row in told.itertuples()}
    for row in taken.values():
        row[0] = f"{row[0]:%Y-%m-%dT%H:%M:%SZ}"
    assert taken == {
        "W-RABI": ["2021-02-03T05:30:00Z", "05.00", 0,
                   "earthsearch:boa_offset_applied is true"],
        "E-RABI": ["2021-11-20T05:30:00Z", "04.00", -1000,
                   "earthsearch:boa_offset_applied is false, baseline 04.00"],
        "W-KHARIF": ["2021-08-05T05:30:00Z", "03.01", 0,
                     "Earth Search harmonises; the item is silent"],
        "E-KHARIF": ["2021-10-31T05:30:00Z", "03.01", 0,
                     "earthsearch:boa_offset_applied is false, baseline 03.01"],
    }  # fmt: skip
    dark = dataset.chips.groupby("offset_dn").dark_dn
    assert (dark.min() >= -dark.min().index + 100).all()
    assert (dark.max() <= -dark.max().index + 300).all()
    assert dataset.info["warnings"] == []


def test_the_scenes_are_listed_beside_the_dataset(built):
    dataset, rig = built
    record = json.loads((dataset.path / "items.json").read_text())
    assert record["catalogue"] == rig.catalogue.url
    assert [scene["id"] for scene in record["scenes"]] == sorted(set(dataset.chips.scene))
    for scene in record["scenes"]:
        assert scene["assets"]["B8A"] == f"{rig.files.url}/s2/{scene['id']}/B8A.tif"


def test_statistics_are_those_of_valid_train_pixels(built):
    dataset, _ = built
    pixels = [dataset.image(i)[:, dataset.valid(i)] for i in dataset.indices("train")]
    reflectance = np.concatenate(pixels, axis=1) * 1e-4
    np.testing.assert_allclose(dataset.statistics.mean, reflectance.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(dataset.statistics.std, reflectance.std(axis=1), rtol=1e-9)
    assert dataset.statistics.num_pixels == reflectance.shape[1]


def test_no_two_splits_come_near_each_other_also_across_zones(built):
    chips = built[0].chips
    to_west = pyproj.Transformer.from_crs("EPSG:32644", "EPSG:32643", always_xy=True).transform
    x, y = chips.x.to_numpy(), chips.y.to_numpy()
    squares = shapely.box(x, y - 640, x + 640, y)
    east = (chips.region == "44RKS").to_numpy()
    squares[east] = shapely.transform(squares[east], to_west, interleaved=False)
    apart = shapely.distance(squares[:, None], squares)
    splits = chips.split.to_numpy()
    other_split = splits[:, None] != splits
    assert set(splits) == {"train", "val", "test"}
    assert apart[other_split].min() >= 320 - 0.5  # a metre in one zone is 1 +- 0.001 in the other
    assert apart[east][:, ~east].min() < 640, "chips lie close to 78 E on both sides"


def test_the_list_of_scenes_repeats_the_build_without_a_catalogue(built, tmp_path):
    dataset, rig = built
    items = f"data.sentinel2.items={dataset.path / 'items.json'}"
    assert done(rig.build(tmp_path / "again", "--set", items))
    first, again = (
        contents(folder, ("recipe.yaml",)) for folder in (dataset.path, tmp_path / "again")
    )
    assert first == again


def test_ground_that_no_scene_covers_is_left_out_and_said(two_zones, tmp_path, capsys):
    rois = ["--roi", WEST_ROI, "--roi", "far=81.0,28.55,81.02,28.58"]
    whole = {"data__plan__split": "{block_px: 256, buffer_px: 32, val: 0, test: 0}"}
    with served(two_zones, data__plan__min_classes=0, **whole) as rig:
        command = rig.build(tmp_path / "dataset", *rois)
        assert done(command)
        assert "no scene covers 2 of 4 reads: left out" in capsys.readouterr().out
        assert done(command), "the same command opens it"
    assert set(Dataset.open(tmp_path / "dataset").chips.region) == {"43RGM"}


# Real pixels.


def test_real_pixels_and_labels_come_through_in_two_zones(tmp_path):
    reflectance = real_reflectance((512, 1024))
    no_codes = np.zeros(reflectance.shape[1:], np.uint8)
    options = {"when": "2021-02-03T05:30:00Z"}
    delhi = acquire(tmp_path, "DELHI", (reflectance, no_codes), corner=(705080, 3169320),
                    **options)  # fmt: skip
    island = acquire(
        tmp_path, "SAO-TOME", (reflectance[:, ::-1, ::-1].copy(), no_codes), epsg=32632,
        corner=(230700, 28340), baseline="04.00", flag=False, dn_offset=1000, **options,
    )  # fmt: skip
    world = World(tmp_path, [delhi, island], labels=real_mirror())
    rois = ["--roi", "delhi=77.10,28.58,77.19,28.61", "--roi", "sao-tome=6.585,0.215,6.665,0.25"]
    with served(world) as rig:
        assert done(rig.build(tmp_path / "dataset", *rois))
    dataset = Dataset.open(tmp_path / "dataset")
    assert dataset.chips.groupby("zone").scene.unique().explode().to_dict() == {
        "delhi": "DELHI", "sao-tome": "SAO-TOME",
    }  # fmt: skip
    check_chips(dataset, world)
    check_labels(dataset, world.labels)
    assert dataset.info["warnings"] == []
    assert dataset.chips[dataset.chips.zone == "sao-tome"].fraction_tree.mean() > 0.5


# The offset.


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    """One ground as ESA stored it before and after baseline 04.00, by the offset in the files."""
    folder = tmp_path_factory.mktemp("offset")
    ground = ground_with_holes(1)
    scenes = {dn: acquire(folder, f"DN-{dn}", ground, dn_offset=dn) for dn in (0, 1000)}
    World(folder, list(scenes.values())).write_labels(ground[1])
    return folder, scenes


def build_one(two_files, output, dn, rule="earth-search", settings=(), **item):
    """Build the western part from the files with an offset that their item tells of in some way."""
    folder, scenes = two_files
    told = Acquisition(replace(scenes[dn].files, **item), scenes[dn].reflectance, scenes[dn].scl)
    with served(World(folder, [told]), rule=rule) as rig:
        assert done(rig.build(output, "--roi", WEST_ROI, *settings))
    return Dataset.open(output)


BY_KEYS = [
    "--set",
    "data.sentinel2.assets={" + ", ".join(
        f"{band}: {key}" for band, key in zip((*BANDS, "SCL"), EARTH_SEARCH_KEYS, strict=True)
    ) + "}",
]  # fmt: skip


def test_reflectances_do_not_depend_on_how_the_offset_is_stored_and_told(two_files, tmp_path):
    planetary = {"rule": "planetary-computer", "style": "planetary-computer", "flag": None}
    cases = {
        "harmonised": {"dn": 0, "baseline": "05.09", "flag": True},
        "not harmonised": {"dn": 1000, "baseline": "04.00", "flag": False},
        "old": {"dn": 0, "baseline": "03.01", **planetary},
        "new": {"dn": 1000, "baseline": "05.09", **planetary},
        "by the item": {
            "dn": 1000, "baseline": "05.09", "rule": "", "settings": BY_KEYS, "flag": None,
        },
    }  # fmt: skip
    found = {}
    for name, case in cases.items():
        dataset = build_one(two_files, tmp_path / name, **case)
        assert set(dataset.chips.offset_dn) == {-case["dn"]}
        assert dataset.info["warnings"] == []
        found[name] = shards(contents(dataset.path))
    for name in cases:
        assert found[name] == found["harmonised"], name


# Bands, and what is fetched.


@pytest.mark.parametrize("name", ["rgb", "rgbn"])
def test_only_the_files_of_the_bands_asked_for_are_fetched(two_zones, tmp_path, name):
    with served(two_zones, data__bands=f"[{name}]") as rig:
        assert done(rig.build(tmp_path / "dataset"))
        fetched = {request.path.rpartition("/")[2] for request in rig.files.gets}
    assert fetched == {f"{band}.tif" for band in (*BAND_SETS[name], "SCL")}
    dataset = Dataset.open(tmp_path / "dataset")
    assert dataset.sensor.band_names == BAND_SETS[name]
    check_chips(dataset, two_zones)


def test_a_dry_run_tells_the_cost_without_catalogue_or_scene(two_zones, tmp_path, capsys):
    with served(two_zones) as rig:
        assert done(rig.build(tmp_path / "everything", data__plan__min_valid_fraction=0))
        built = Dataset.open(tmp_path / "everything")
        rig.catalogue.stop()
        rig.files.forget()
        capsys.readouterr()
        assert done(rig.build(tmp_path / "dataset", "--dry-run", "--mbit", "100"))
        assert rig.files.gets == []
    assert not (tmp_path / "dataset").exists()
    printed = [row.split() for row in capsys.readouterr().out.splitlines() if row.strip()]
    rows = {row[0]: row for row in printed}
    assert rows["sites"][1:3] == [str(built.num_chips), "chips"]
    assert rows["scenes"][1] == "2"
    for name, unit in (("requests", "requests"), ("download", "bytes"), ("disk", "bytes"),
                       ("time", "seconds")):  # fmt: skip
        assert int(rows[name][1].replace(",", "")) > 0
        assert rows[name][2] == unit
    assert "100 Mbit/s" in " ".join(rows["time"])
    stored = sum(file.stat().st_size for file in built.path.glob("*-?????.npy"))
    assert int(rows["disk"][1].replace(",", "")) == pytest.approx(stored, rel=0.01)
