"""Wrong input through the command line: told clearly, nothing lost, and mended it completes."""

import errno
import os
import shutil
from functools import partial

import pytest

from bharateo.pixels.http import Web
from bharateo.sources import worldcover
from bharateo.verbs.cli import main
from range_server import RangeServer
from small_datasets import contents, many_bands, small_dataset
from tiny_mirror import CODES, CONFIG, write_config, write_mirror


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A mirror, a configuration, and what build, pretrain and evaluate make of them."""
    folder = tmp_path_factory.mktemp("whole")
    write_mirror(folder / "mirror")
    config = str(write_config(folder))
    dataset, run = str(folder / "dataset"), str(folder / "run")
    root = ["--worldcover-root", str(folder / "mirror")]
    assert main(["build", config, "--output", dataset, *root]) == 0
    assert main(["pretrain", config, "--dataset", dataset, "--output", run]) == 0
    assert main(["evaluate", run]) == 0
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it all, to spoil."""
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture
def refused(capsys):
    """``refused(*arguments)``: the one line that a refused call prints."""

    def call(*arguments):
        assert main([str(argument) for argument in arguments]) == 1
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert text.startswith("bharateo: ")
        assert "Traceback" not in text
        return text

    return call


def build(folder, *more, output="new", root="mirror"):
    config, output = folder / "tiny.yaml", folder / output
    return ["build", config, "--output", output, "--worldcover-root", folder / root, *more]


def done(arguments):
    return main([str(argument) for argument in arguments]) == 0


def same_dataset(folder, output):
    """Whether a dataset holds the chips that it should, wherever they were read from."""
    expected, got = (contents(folder / name) for name in ("dataset", output))
    assert expected.keys() == got.keys()
    of_the_call = ("dataset.json", "recipe.yaml")
    return all(got[name] == expected[name] for name in got if name not in of_the_call)


# The configuration and the place.


def test_an_unknown_key_is_named_with_the_nearest(folder, refused):
    text = CONFIG.replace("epochs: 1", "epoch: 1")
    (folder / "tiny.yaml").write_text(text)
    before = contents(folder)
    for call in (
        build(folder),
        ["pretrain", folder / "tiny.yaml", "--dataset", folder / "dataset",
         "--output", folder / "run-2"],
    ):  # fmt: skip
        said = refused(*call)
        assert f"ConfigError: {folder / 'tiny.yaml'}: unknown key 'epoch'" in said
        assert "section 'training': did you mean 'epochs'?" in said
    assert contents(folder) == before
    write_config(folder)
    assert done(build(folder))


def test_a_misspelt_place_is_named_with_the_nearest(folder, refused):
    before = contents(folder)
    said = refused(*build(folder, "--roi", "delhi_nrc"))
    assert "RegionError: ROI 'delhi_nrc' is not known: did you mean 'delhi_ncr'?" in said
    assert contents(folder) == before


def test_coordinates_the_wrong_way_round_are_told(folder, refused):
    said = refused(*build(folder, "--roi", "x=28.6,97.2"))
    assert "is it LAT,LON instead of LON,LAT?" in said
    assert said.rstrip().endswith("--roi x=97.2,28.6") and "x=28.6" not in said.split("Then")[1]


def test_a_place_at_sea_whose_mirror_image_is_land_is_told_so(folder, refused):
    said = refused(*build(folder, "--roi", "home=28.61,77.23,240")).rstrip()
    assert "holds no valid pixel" in said
    assert "the other way round there is ground: bharateo build" in said
    assert said.endswith("--roi home=77.23,28.61,240") and "home=28.61" not in said


def test_a_place_over_the_open_ocean_is_told(folder, refused):
    said = refused(*build(folder, "--roi", "pacific=-139.9,0.5,240"))
    assert "EmptyRegionError: ROI 'pacific' (centre LON,LAT -139.9000,0.5000)" in said
    assert "holds no valid pixel" in said
    assert "open ocean" in said
    assert "choose another place" in said
    assert not (folder / "new" / "dataset.json").exists()
    assert done(build(folder)), "the mended call has the folder to itself"
    assert same_dataset(folder, "new")


def test_a_place_beside_the_mirrors_tiles_is_told(folder, refused):
    said = refused(*build(folder, "--roi", "far=80.5,28.5,240"))
    assert "EmptyRegionError: ROI 'far'" in said
    assert str(folder / "mirror") in said
    assert "--worldcover-root" in said


def test_a_root_that_is_not_there_is_told(folder, refused):
    said = refused(*build(folder, root="gone"))
    assert f"UnreachableError: WorldCover root {folder / 'gone'} is not a folder" in said
    assert "data.source: sample" in said


# Tiles.


def test_a_code_that_does_not_exist_is_told_and_a_clean_tile_completes_the_build(folder, refused):
    tile = write_mirror(folder / "mirror", (37, *CODES))
    said = refused(*build(folder))
    assert f"UnknownCodeError: code 37 in {tile}" in said
    assert "fetch it again" in said
    assert not (folder / "new" / "dataset.json").exists()
    write_mirror(folder / "mirror")
    assert done(build(folder))
    assert same_dataset(folder, "new")


# What GDAL says of a header cut short, before the error.
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("left", [0.0, 0.1, 0.3])
def test_a_truncated_tile_is_told_and_a_whole_one_completes_the_build(folder, refused, left):
    (tile,) = (folder / "mirror").rglob("*.tif")
    good = tile.read_bytes()
    tile.write_bytes(good[: int(left * len(good))])
    said = refused(*build(folder))
    assert "CorruptRasterError" in said
    assert tile.name in said
    assert "again" in said
    assert not (folder / "new" / "dataset.json").exists()
    tile.write_bytes(good)
    assert done(build(folder))
    assert same_dataset(folder, "new")


def test_a_tile_that_is_no_tile_is_told(folder, refused):
    (tile,) = (folder / "mirror").rglob("*.tif")
    tile.write_text("<html>sign in first</html>")
    said = refused(*build(folder))
    assert "CorruptRasterError" in said
    assert tile.name in said


@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_truncated_cache_is_fetched_again(folder, monkeypatch, left):
    monkeypatch.setenv("BHARATEO_CACHE", str(folder / "cache"))

    def build_from(url, output):
        return ["build", folder / "tiny.yaml", "--output", folder / output,
                "--worldcover-root", url]  # fmt: skip

    with RangeServer(folder / "mirror") as server:
        assert done(build_from(server.url, "first"))
        (kept,) = (folder / "cache").rglob("*.npz")
        good = kept.read_bytes()
        kept.write_bytes(good[: int(left * len(good))])
        server.forget()
        assert done(build_from(server.url, "second"))
        assert server.num_bytes > 10_000
        assert kept.read_bytes() == good
        server.forget()
        assert done(build_from(server.url, "third"))
        assert server.num_bytes < 100_000
    for output in ("first", "second", "third"):
        assert same_dataset(folder, output)


def test_without_a_network_and_with_a_truncated_cache_the_remedy_is_told(
    folder, refused, monkeypatch
):
    monkeypatch.setenv("BHARATEO_CACHE", str(folder / "cache"))
    monkeypatch.setattr(worldcover, "Web", partial(Web, num_retries=1, backoff_s=0.01))
    call = ["build", folder / "tiny.yaml", "--output", folder / "new", "--worldcover-root"]
    with RangeServer(folder / "mirror", missing_status=404) as server:
        url = server.url
        assert done([*call, url])
    (kept,) = (folder / "cache").rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    shutil.rmtree(folder / "new")
    said = refused(*call, url)
    assert f"UnreachableError: {url}" in said
    assert "local copy" in said


# Other datasets.


def test_a_run_refuses_a_dataset_of_other_bands(folder, refused):
    small_dataset(folder / "other", many_bands(4))
    before = contents(folder)
    said = refused(
        "evaluate", folder / "run", "--dataset", folder / "other", "--output", folder / "e.json"
    )
    assert "ContractError: bands: " in said
    assert "red, green, blue" in said
    assert "B01, B02, B03, B04" in said
    assert str(folder / "other") in said
    assert contents(folder) == before


def test_a_run_is_not_gone_on_with_on_another_dataset(folder, refused):
    small_dataset(folder / "other")
    before = contents(folder)
    said = refused(
        "pretrain", folder / "tiny.yaml", "--dataset", folder / "other", "--output", folder / "run"
    )
    assert "RunError: " in said
    assert "the dataset is another one" in said
    assert contents(folder) == before


@pytest.mark.parametrize("part", ["dataset.json", "image-00000.npy"])
def test_a_dataset_cut_short_is_named(folder, refused, part):
    spoilt = folder / "dataset" / part
    good = spoilt.read_bytes()
    spoilt.write_bytes(good[: len(good) // 2])
    for call in (
        ["evaluate", folder / "run"],
        ["pretrain", folder / "tiny.yaml", "--dataset", folder / "dataset",
         "--output", folder / "run-2"],
    ):  # fmt: skip
        said = refused(*call)
        assert "DatasetError" in said
        assert part in said
        assert "again" in said
    spoilt.write_bytes(good)
    before = contents(folder)
    assert done(["evaluate", folder / "run"])
    assert contents(folder).keys() == before.keys()


@pytest.mark.parametrize("verb", ["evaluate", "report", "tokens"])
def test_an_unfinished_run_is_refused(folder, refused, verb):
    (folder / "run" / "contract.json").unlink()
    (folder / "run" / "evaluation.json").unlink()
    said = refused(verb, folder / "run")
    assert f"RunError: {folder / 'run'} holds no contract.json" in said
    assert "run the same pretrain command again" in said


def test_a_damaged_checkpoint_is_named_and_without_it_the_run_completes(folder, refused):
    for name in ("contract.json", "model.safetensors"):
        (folder / "run" / name).unlink()
    checkpoint = folder / "run" / "checkpoints" / "last.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    call = ["pretrain", folder / "tiny.yaml", "--dataset", folder / "dataset"]
    call += ["--output", folder / "run"]
    said = refused(*call)
    assert f"RunError: {checkpoint} is damaged" in said
    assert "delete it" in said
    checkpoint.unlink()
    assert done(call)


# The disk.


def full_disk(monkeypatch, number):
    """The disk takes so many more files."""
    left = [number]
    sync = os.fsync

    def fsync(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(("verb", "number"), [("build", 0), ("build", 3), ("build", 7),
                                              ("pretrain", 0), ("pretrain", 1), ("pretrain", 3),
                                              ("evaluate", 0)])  # fmt: skip
def test_on_a_full_disk_nothing_is_lost_and_a_rerun_completes(
    folder, refused, monkeypatch, verb, number
):
    call = {
        "build": build(folder),
        "pretrain": ["pretrain", folder / "tiny.yaml", "--dataset", folder / "dataset",
                     "--output", folder / "run-2"],
        "evaluate": ["evaluate", folder / "run"],
    }[verb]  # fmt: skip
    before = contents(folder)
    with monkeypatch.context() as patch:
        full_disk(patch, number)
        said = refused(*call)
    assert "StorageError: cannot write " in said
    assert str(folder) in said
    assert os.strerror(errno.ENOSPC) in said
    assert "free some space" in said
    after = contents(folder)
    assert all(after[name] == content for name, content in before.items())
    assert not list(folder.rglob("*.partial"))
    assert done(call)
    if verb == "build":
        assert same_dataset(folder, "new")
    if verb == "pretrain":
        again, first = (folder / run / "model.safetensors" for run in ("run-2", "run"))
        assert again.read_bytes() == first.read_bytes()
    if verb == "evaluate":
        assert (folder / "run" / "evaluation.json").exists()


@pytest.mark.parametrize("verb", ["build", "pretrain"])
def test_a_file_where_the_output_folder_should_be_is_told(folder, refused, verb):
    (folder / "taken").write_text("mine")
    call = {
        "build": build(folder, output="taken"),
        "pretrain": ["pretrain", folder / "tiny.yaml", "--dataset", folder / "dataset",
                     "--output", folder / "taken"],
    }[verb]  # fmt: skip
    said = refused(*call)
    assert str(folder / "taken") in said
    assert "choose" in said and "--output" in said
    assert (folder / "taken").read_text() == "mine"
