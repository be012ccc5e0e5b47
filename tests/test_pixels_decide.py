"""What a catalogue says of a scene is checked by its pixels: unit, and whether there are any."""

import contextlib
import json
from dataclasses import replace

import pytest

from bharateo.chips import scratch
from bharateo.chips.store import Dataset
from l2a_scenes import made_up_scene
from sentinel2_rig import (
    WEST_ROI,
    Acquisition,
    World,
    acquire,
    check_chips,
    done,
    ground_with_holes,
    served,
)
from small_datasets import contents
from stac_server import StacServer

NO_SPLIT = {"data__plan__split": "{block_px: 256, buffer_px: 32, val: 0, test: 0}"}


@pytest.fixture(scope="module")
def ground():
    return ground_with_holes(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory, ground):
    """One ground as it is stored without and with the offset, by that."""
    folder = tmp_path_factory.mktemp("files")
    scenes = {dn: acquire(folder, f"DN-{dn}", ground, dn_offset=dn) for dn in (0, 1000)}
    World(folder, list(scenes.values())).write_labels(ground[1])
    return folder, scenes


def told(scene: Acquisition, **item) -> Acquisition:
    """A scene of which the item says something else."""
    return Acquisition(replace(scene.files, **item), scene.reflectance, scene.scl)


WRONG = [
    (1000, {"flag": True}, "taken as harmonised", "subtract"),
    (0, {"flag": False, "baseline": "05.09"}, "1000 is subtracted", "applied"),
]
"""Offset in the files, what the item says, what is noticed, and the setting that mends it."""


@pytest.mark.parametrize(("dn", "item", "said", "remedy"), WRONG)
def test_a_flag_that_the_pixels_contradict_stops_the_build_with_the_setting_to_give(
    files, tmp_path, capsys, dn, item, said, remedy
):
    folder, scenes = files
    with served(World(folder, [told(scenes[dn], **item)])) as rig:
        command = rig.build(tmp_path / "d", "--roi", WEST_ROI)
        assert not done(command)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith(f"bharateo: BuildError: scene DN-{dn}: {said}")
        assert f"set data.sentinel2.offset to {remedy}" in error
        assert not (tmp_path / "d" / "dataset.json").exists()
        assert done([*command, "--set", f"data.sentinel2.offset={remedy}"]), "in the same folder"
    built = Dataset.open(tmp_path / "d")
    check_chips(built, World(folder, [scenes[dn]]))
    assert set(built.chips.offset_pixels) == {"agree"}


@pytest.mark.parametrize(("dn", "item", "said", "remedy"), WRONG)
def test_a_scene_that_its_pixels_contradict_is_dropped_for_the_next_best(
    files, tmp_path, capsys, dn, item, said, remedy
):
    folder, scenes = files
    honest = {0: {"flag": True}, 1000: {"flag": False, "baseline": "05.09"}}[1000 - dn]
    world = World(folder, [
        told(scenes[dn], cloud_cover=1.0, **item),
        told(scenes[1000 - dn], cloud_cover=9.0, **honest),
    ])  # fmt: skip
    with served(world) as rig:
        assert done(rig.build(tmp_path / "d", "--roi", WEST_ROI))
        assert f"scene DN-{dn} is dropped: {said}" in capsys.readouterr().out
        items = f"data.sentinel2.items={tmp_path / 'd' / 'items.json'}"
        assert done(rig.build(tmp_path / "again", "--roi", WEST_ROI, "--set", items))
    dataset = Dataset.open(tmp_path / "d")
    assert set(dataset.chips.scene) == {f"DN-{1000 - dn}"}
    check_chips(dataset, world)
    listed = json.loads((dataset.path / "items.json").read_text())
    assert [scene["id"] for scene in listed["scenes"]] == [f"DN-{1000 - dn}"]
    (left_out,) = listed["left_out"]
    assert left_out["id"] == f"DN-{dn}" and remedy in left_out["reason"]
    recipe = ("recipe.yaml",)
    again = contents(tmp_path / "again", recipe)
    assert again == contents(dataset.path, recipe), "its list repeats the build"


@pytest.mark.slow
def test_a_build_killed_after_a_scene_was_dropped_ends_in_the_same_bytes(
    files, tmp_path, monkeypatch
):
    folder, scenes = files
    world = World(folder, [
        told(scenes[0], cloud_cover=1.0, flag=False, baseline="05.09"),
        told(scenes[1000], cloud_cover=9.0, flag=False, baseline="05.09"),
    ])  # fmt: skip
    blocks = {"data__plan__unit_blocks": "[1,1]"}
    with served(world, **blocks) as rig:
        assert done(rig.build(tmp_path / "whole", "--roi", WEST_ROI))
        keep = scratch.Scratch.keep
        for allowed in range(1, 16, 2):
            left = [allowed]

            def dies(*arguments, left=left, **named):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return keep(*arguments, **named)

            monkeypatch.setattr(scratch.Scratch, "keep", dies)
            output = tmp_path / f"killed-{allowed}"
            command = rig.build(output, "--roi", WEST_ROI)
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                done(command)
            monkeypatch.setattr(scratch.Scratch, "keep", keep)
            assert done(command)
            assert contents(output) == contents(tmp_path / "whole")


def test_a_catalogue_whose_scenes_are_wrong_again_and_again_is_not_believed(
    files, tmp_path, capsys
):
    folder, scenes = files
    wrong = [told(scenes[0], cloud_cover=1.0, flag=False, baseline="05.09")]
    for number in range(6):
        (folder / "s2" / f"COPY-{number}").symlink_to("DN-0")
        wrong.append(told(wrong[0], name=f"COPY-{number}", cloud_cover=2.0 + number))
    with served(World(folder, wrong)) as rig:
        assert not done(rig.build(tmp_path / "d", "--roi", WEST_ROI))
        read = {get.path.split("/")[2] for get in rig.files.gets}
    error = capsys.readouterr().err
    assert "set data.sentinel2.offset to applied" in error
    assert len(read) <= 4


def test_a_bright_desert_goes_by_the_flag_and_says_that_nothing_was_seen(tmp_path):
    """Sand without a leaf: 1000 more or less makes no other ground of it."""
    sand = made_up_scene((512, 1024), 3, classes=(60,))
    for dn, item in ((0, {"flag": True}), (1000, {"flag": False, "baseline": "05.09"})):
        folder = tmp_path / str(dn)
        world = World(folder, [acquire(folder, f"SAND-{dn}", sand, dn_offset=dn, **item)])
        world.write_labels(sand[1])
        with served(world, **NO_SPLIT, data__plan__min_classes=1) as rig:
            assert done(rig.build(folder / "d", "--roi", WEST_ROI))
        dataset = Dataset.open(folder / "d")
        assert set(dataset.chips.offset_pixels) == {"undecided"}
        assert set(dataset.chips.offset_dn) == {-dn}
        check_chips(dataset, world)


def test_what_leaves_nothing_of_the_ground_is_refused_whoever_says_it(files, tmp_path, capsys):
    folder, scenes = files
    with served(World(folder, [scenes[0]]), data__sentinel2__offset="subtract") as rig:
        assert not done(rig.build(tmp_path / "d", "--roi", WEST_ROI))
    error = capsys.readouterr().err
    assert "1000 is subtracted (data.sentinel2.offset: subtract)" in error
    assert "set data.sentinel2.offset to applied" in error


# Scenes that hold next to nothing.


@pytest.fixture(scope="module")
def empty_world(tmp_path_factory, ground):
    """A cloudless scene of a whole tile, says its item, that holds a corner; and an honest one."""
    folder = tmp_path_factory.mktemp("empty")
    nearly_empty = ground[0].copy()
    nearly_empty[:, 60:] = 0
    world = World(folder, [
        acquire(folder, "EMPTY", (nearly_empty, ground[1]), cloud_cover=0.0),
        acquire(folder, "FULL", ground, cloud_cover=15.0),
    ])  # fmt: skip
    world.write_labels(ground[1], ground[1])
    return world


def test_where_a_scene_holds_next_to_nothing_the_next_best_is_read(empty_world, tmp_path):
    with served(empty_world) as rig:
        assert done(rig.build(tmp_path / "d", "--roi", WEST_ROI))
        rig.catalogue.stop()
        items = f"data.sentinel2.items={tmp_path / 'd' / 'items.json'}"
        assert done(rig.build(tmp_path / "again", "--roi", WEST_ROI, "--set", items))
    dataset = Dataset.open(tmp_path / "d")
    assert set(dataset.chips.scene) == {"FULL"}
    assert dataset.num_chips > 12
    check_chips(dataset, empty_world)
    recipe = ("recipe.yaml",)
    assert contents(tmp_path / "again", recipe) == contents(dataset.path, recipe)


def test_of_scenes_that_all_hold_little_the_one_with_most_chips_is_kept(ground, tmp_path):
    parts = {"LITTLE": (180, 400), "LESS": (180, 300)}
    acquisitions = []
    for number, (name, (rows, cols)) in enumerate(parts.items()):
        reflectance = ground[0].copy()
        reflectance[:, rows:] = 0
        reflectance[:, :, cols:] = 0
        cloud = {"cloud_cover": float(number)}
        acquisitions.append(acquire(tmp_path, name, (reflectance, ground[1]), **cloud))
    world = World(tmp_path, acquisitions)
    world.write_labels(ground[1], ground[1])
    sparse = {"data__plan__chips_per_block": "null", "data__plan__min_valid_fraction": 0.3}
    with served(world, **NO_SPLIT, **sparse) as rig:
        assert done(rig.build(tmp_path / "d", "--roi", WEST_ROI))
        fetched = {get.path.split("/")[2] for get in rig.files.gets}
    assert fetched == {"LITTLE", "LESS"}
    dataset = Dataset.open(tmp_path / "d")
    assert set(dataset.chips.scene) == {"LITTLE"}
    assert dataset.num_chips > 1


def test_a_scene_that_will_do_is_the_only_one_fetched(files, tmp_path):
    folder, scenes = files
    second = told(scenes[0], name="SECOND", cloud_cover=9.0)
    with served(World(folder, [scenes[0], second])) as rig:
        assert done(rig.build(tmp_path / "d", "--roi", WEST_ROI))
        assert {get.path.split("/")[2] for get in rig.files.gets} == {"DN-0"}


def test_a_scene_that_says_it_is_nearly_empty_is_not_read_first(empty_world, tmp_path):
    with served(empty_world) as rig:
        honest = rig.world.items(f"{rig.files.url}/s2")
        # The outline is of ten kilometres; a tile that is all nodata but for a hundredth has one.
        assert honest[0]["id"] == "EMPTY"
        honest[0]["properties"]["s2:nodata_pixel_percentage"] = 99.99
        with StacServer(honest) as catalogue:
            url = f"earth-search={catalogue.url}"
            command = rig.build(tmp_path / "d", "--roi", WEST_ROI, data__sentinel2__catalogue=url)
            assert done(command)
        assert {get.path.split("/")[2] for get in rig.files.gets} == {"FULL"}
