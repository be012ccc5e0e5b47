"""Embeddings from a raster or a dataset to files: values, places, crashes, memory."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from rio_cogeo.cogeo import cog_validate

from bharateo.errors import ConfigError, ContractError, EmptyRegionError
from bharateo.inference.embed import Embedding, embed_dataset, embed_raster
from bharateo.inference.encoder import FrozenEncoder, over_views
from bharateo.inference.inputs import RasterInput, open_input
from bharateo.inference.tiles import CellGrid, Tile
from bharateo.models.heads import build_heads
from bharateo.models.mae import build_model
from bharateo.training.data import physical_units
from bharateo.training.run import Run, make_contract, model_statistics, save_run
from bharateo.verbs.cli import main
from inference.small_rasters import small_grid, write_raster
from models.tiny_models import randomised
from small_datasets import contents, small_config

SHAPE = (203, 170)
PATCH = 8
KILLS = int(os.environ.get("BHARATEO_KILLS", "5")) // 2
HALF = 2.0**-11
"""Largest relative error of rounding to a half float."""


def quietly(*_):
    pass


@pytest.fixture(scope="module")
def run(reflectance_dataset, tmp_path_factory):
    """A run with random weights."""
    path, config = tmp_path_factory.mktemp("run") / "run", small_config()
    path.mkdir()
    torch.manual_seed(0)
    model = randomised(build_model(config.model, *model_statistics(reflectance_dataset)))
    modules = torch.nn.ModuleDict({"model": model, "heads": build_heads(config.heads, model)})
    contract = make_contract(config, reflectance_dataset, modules, path, 1)
    save_run(path, modules.state_dict(), contract)
    return Run.open(path)


@pytest.fixture(scope="module")
def raster(tmp_path_factory):
    return write_raster(tmp_path_factory.mktemp("raster") / "raster.tif", *SHAPE)


@pytest.fixture(scope="module")
def expected(run, raster):
    """Vectors of every patch, as the shared core predicts; and the raster they are of."""
    source = open_input(str(raster), run.contract)
    encoder = FrozenEncoder.of_run(run)
    grid = CellGrid(SHAPE, encoder.chip_px, encoder.patch_px, encoder.patch_px)
    tile = Tile(slice(0, grid.shape[0]), slice(0, grid.shape[1]))
    return grid.predict(source.read, encoder.features, tile)


def embedded(run, raster, *outputs, **options):
    source = open_input(str(raster), run.contract)
    embed_raster(run, source, outputs, Embedding(**options), quietly, quietly)


# Rasters.


def test_a_raster_becomes_a_valid_cog_of_its_vectors(run, raster, expected, tmp_path):
    path = tmp_path / "v.tif"
    embedded(run, raster, path)
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as file:
        values = np.moveaxis(file.read(), 0, 2)
        assert file.crs.to_epsg() == 32643
        assert file.descriptions == tuple(f"dim_{dim}" for dim in range(16))
        transform = file.transform
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    assert np.isnan(expected).any()
    np.testing.assert_allclose(values, expected, rtol=HALF, atol=1e-6)
    corner = ~small_grid(*SHAPE).affine @ transform
    np.testing.assert_allclose(corner[:6], (PATCH, 0, 0, 0, PATCH, 0), atol=1e-6)
    assert {each.name for each in tmp_path.iterdir()} == {"v.tif", "v.tif.stac.json"}


@pytest.mark.parametrize("stride", [4, 2])
def test_a_finer_grid_holds_the_same_vectors_at_the_same_places(
    run, raster, expected, tmp_path, stride
):
    embedded(run, raster, tmp_path / "v.tif", stride_px=stride, dtype="float32")
    with rasterio.open(tmp_path / "v.tif") as file:
        values, transform = np.moveaxis(file.read(), 0, 2), file.transform
    assert values.shape[:2] == tuple(-(-side // stride) for side in SHAPE)
    every = PATCH // stride
    np.testing.assert_allclose(values[::every, ::every], expected, atol=1e-5)
    row, col = 7, 5  # a cell's centre is that of its patch
    centre = ~small_grid(*SHAPE).affine @ (transform @ (col * every + 0.5, row * every + 0.5))
    np.testing.assert_allclose(centre, (PATCH * (col + 0.5), PATCH * (row + 0.5)), atol=1e-6)


def test_int8_is_off_by_half_a_step_at_most(run, raster, expected, tmp_path):
    embedded(run, raster, tmp_path / "v.tif", dtype="int8")
    with rasterio.open(tmp_path / "v.tif") as file:
        stored, scales, offsets = file.read(), np.array(file.scales), np.array(file.offsets)
        assert (file.dtypes[0], file.nodata) == ("int8", -128)
    values = np.moveaxis(stored, 0, 2) * scales + offsets
    valid = ~np.isnan(expected)
    np.testing.assert_array_equal(np.moveaxis(stored, 0, 2) != -128, valid)
    assert (np.abs(values - expected)[valid] <= (0.5001 * scales + 0 * expected)[valid]).all()
    assert (np.abs(stored[stored != -128].astype(int)) <= 127).all()
    span = np.nanmax(expected, (0, 1)) - np.nanmin(expected, (0, 1))
    np.testing.assert_allclose(scales * 254, span, rtol=1e-5)


def test_the_table_has_a_row_for_every_cell_with_a_valid_pixel(run, raster, expected, tmp_path):
    tif, table = tmp_path / "v.tif", tmp_path / "v.parquet"
    embedded(run, raster, tif, table)
    frame = geopandas.read_parquet(table)
    with rasterio.open(tif) as file:
        values = file.read()
        x, y = file.xy(frame["row"], frame["col"])
        assert frame.crs == file.crs
    assert len(frame) == (~np.isnan(expected[..., 0])).sum()
    np.testing.assert_array_equal(
        np.stack(frame["vector"]).T, values[:, frame["row"], frame["col"]]
    )
    centroids = frame.geometry.centroid
    np.testing.assert_allclose([centroids.x, centroids.y], [x, y], atol=1e-5)
    assert frame.geometry.area.round(3).unique().tolist() == [(10 * PATCH) ** 2]
    lonlat = centroids.to_crs(4326)
    np.testing.assert_allclose(frame[["lon", "lat"]].T, [lonlat.x, lonlat.y], atol=1e-9)


def test_files_say_what_they_were_made_of(run, raster, tmp_path):
    embedded(run, raster, tmp_path / "v.tif")
    with rasterio.open(tmp_path / "v.tif") as file:
        made_of = json.loads(file.tags()["BHARATEO"])
    assert made_of["run"]["name"] == run.path.name
    assert made_of["source"]["input"] == str(raster)
    assert made_of["source"]["overridden"] == {}
    assert made_of["options"]["dtype"] == "float16"


def test_what_is_there_is_left_alone_and_other_options_replace_it(run, raster, tmp_path):
    path = tmp_path / "v.tif"
    embedded(run, raster, path)
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    embedded(run, raster, path)
    assert path.stat().st_mtime_ns == written
    embedded(run, raster, path, dtype="int8")
    assert path.read_bytes() != before
    embedded(run, raster, path)
    assert path.read_bytes() == before


class Blind(RasterInput):
    """A raster without a valid pixel."""

    def read(self, *window):
        values, valid = super().read(*window)
        return values, valid & False


def test_a_raster_without_a_valid_pixel_is_all_nodata_and_no_table(run, raster, tmp_path):
    source = Blind(**vars(open_input(str(raster), run.contract)))
    for dtype in ("float16", "int8"):
        path = tmp_path / f"{dtype}.tif"
        embed_raster(run, source, [path], Embedding(dtype), quietly, quietly)
        with rasterio.open(path) as file:
            assert not file.dataset_mask().any()
    with pytest.raises(EmptyRegionError, match="no patch has a valid pixel"):
        embed_raster(run, source, [tmp_path / "v.parquet"], Embedding(), quietly, quietly)


# Datasets.


@pytest.mark.parametrize("readout", ["token", "views"])
def test_a_dataset_becomes_a_row_a_patch(run, reflectance_dataset, tmp_path, readout):
    path, dataset = tmp_path / "d.parquet", reflectance_dataset
    how = Embedding(dtype="float32", readout=readout)
    embed_dataset(run, dataset, [path], how, quietly, quietly)
    frame = geopandas.read_parquet(path)
    assert frame.crs.to_epsg() == 4326
    chip = dataset.num_chips - 1
    own = frame[frame["chip"] == chip]
    image = physical_units(torch.from_numpy(dataset.image(chip).copy()), dataset.sensor).numpy()
    valid = dataset.valid(chip)
    grid = CellGrid((48, 48), 32, PATCH, PATCH)

    def read(row, col, height, width):
        window = (slice(row, row + height), slice(col, col + width))
        return image[:, *window], valid[window]

    features = FrozenEncoder.of_run(run).features
    if readout == "views":
        features = over_views(features, PATCH)
    alone = grid.predict(read, features, Tile(slice(0, 6), slice(0, 6)))
    row, col = (own[name].to_numpy() - dataset.column(name)[chip] for name in ("row", "col"))
    assert len(own) == (~np.isnan(alone[..., 0])).sum()
    np.testing.assert_allclose(
        np.stack(own["vector"]), alone[row // PATCH, col // PATCH], atol=1e-5
    )
    assert {*own["split"]} == {dataset.column("split")[chip]}
    assert {*own["block"]} == {dataset.column("block")[chip]}
    chips = geopandas.read_parquet(dataset.path / "chips.parquet")
    assert own.geometry.within(chips.geometry[chip].buffer(1e-7)).all()


def test_a_chips_vector_is_the_mean_of_its_patches(run, reflectance_dataset, tmp_path):
    frames = {}
    for level in ("patch", "chip"):
        how = Embedding(dtype="float32", level=level)
        embed_dataset(
            run, reflectance_dataset, [tmp_path / f"{level}.parquet"], how, quietly, quietly
        )
        frames[level] = geopandas.read_parquet(tmp_path / f"{level}.parquet")
    patches, chips = frames["patch"], frames["chip"]
    for chip, vector in zip(chips["chip"][:5], chips["vector"], strict=False):
        mean = np.mean(np.stack(patches["vector"][patches["chip"] == chip]), 0)
        np.testing.assert_allclose(vector, mean, atol=1e-5)
    stored = geopandas.read_parquet(reflectance_dataset.path / "chips.parquet")
    assert len(chips) == reflectance_dataset.num_chips
    assert chips.geometry.geom_equals_exact(stored.geometry, 1e-9).all()


# What is refused.


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("v.png", {}, r"v\.png: the name must end in \.tif or \.parquet"),
        ("v.parquet", {"dtype": "int8"}, "--dtype int8 cannot be kept in"),
        ("v.tif", {"level": "chip"}, "--level chip: a raster has no chips"),
        ("v.tif", {"stride_px": 3}, "stride 3 does not divide"),
        ("v.tif", {"step": 5}, "step 5 "),
        ("v.tif", {"step": 0}, "step 0 "),
    ],
)
def test_what_cannot_be_made_of_a_raster_is_refused(run, raster, tmp_path, name, options, said):
    with pytest.raises(ConfigError, match=said):
        embedded(run, raster, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["d.tif"], {}, r"chips lie apart, so a dataset becomes one \.parquet"),
        (["d.parquet", "e.parquet"], {}, "becomes one"),
        (["d.parquet"], {"stride_px": 4}, "--stride 4 is for rasters"),
    ],
)
def test_what_cannot_be_made_of_a_dataset_is_refused(
    run, reflectance_dataset, tmp_path, names, options, said
):
    outputs = [tmp_path / name for name in names]
    with pytest.raises(ConfigError, match=said):
        embed_dataset(run, reflectance_dataset, outputs, Embedding(**options), quietly, quietly)


def test_a_dataset_of_other_pixels_is_refused(run, palette_dataset, tmp_path):
    with pytest.raises(ContractError, match="bands"):
        embed_dataset(run, palette_dataset, [tmp_path / "d.parquet"], Embedding(), quietly, quietly)


# The verb.


def test_the_verb_embeds_rasters_and_datasets(run, raster, reflectance_dataset, tmp_path, capsys):
    tif, table = tmp_path / "v.tif", tmp_path / "v.parquet"
    call = ["embed", str(run.path), str(raster), "--output", str(tif), "--output", str(table)]
    assert main([*call, "--precision", "bf16", "--stride", "4"]) == 0
    assert f"embedding: {tif}" in capsys.readouterr().out
    assert rasterio.open(tif).shape == (51, 43)
    dataset = str(reflectance_dataset.path)
    assert main(["embed", str(run.path), dataset, "--output", str(table), "--level", "chip"]) == 0
    assert len(geopandas.read_parquet(table)) == reflectance_dataset.num_chips
    assert main([*call[:2], "nowhere.tif", *call[3:5]]) == 1
    assert "nowhere.tif" in capsys.readouterr().err


def start(*arguments):
    call = [sys.executable, "-m", "bharateo", "embed", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL)


def killed_while_clearing(folder, remove=shutil.rmtree, **options):
    if folder.suffix == ".parts":
        raise KeyboardInterrupt
    remove(folder, **options)


def test_killed_after_the_last_file_it_leaves_nothing_behind_the_next_time(
    run, raster, tmp_path, monkeypatch
):
    source, outputs = open_input(str(raster), run.contract), [tmp_path / "v.tif"]
    with monkeypatch.context() as patch:
        patch.setattr("bharateo.files.shutil.rmtree", killed_while_clearing)
        with pytest.raises(KeyboardInterrupt):
            embed_raster(run, source, outputs, Embedding(), quietly, quietly)
    assert (tmp_path / ".v.tif.parts").is_dir()
    embed_raster(run, source, outputs, Embedding(), quietly, quietly)
    assert {*contents(tmp_path)} == {"v.tif", "v.tif.stac.json"}


@pytest.mark.slow
@pytest.mark.long
def test_killed_and_run_again_it_gives_the_same_bytes(run, tmp_path):
    raster = write_raster(tmp_path / "raster.tif", 2100, 1100, tile=(240, 240))

    def embed(folder):
        """Started, and waited for until it writes or has ended."""
        outputs = ("--output", folder / "v.tif", "--output", folder / "v.parquet")
        process = start(run.path, raster, "--step", 4, *outputs)
        while not any(folder.rglob("*.npy")) and process.poll() is None:
            time.sleep(0.01)
        return process

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    process, started = embed(whole), time.monotonic()
    assert process.wait() == 0
    work_s, moments, kills = time.monotonic() - started, random.Random(0), 0
    while kills < KILLS:
        process = embed(killed)
        time.sleep(moments.uniform(0, 0.5 * work_s))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL if kills % 2 else signal.SIGTERM)
        if process.wait() == 0:
            killed = killed.with_name(f"killed-{kills}")
            killed.mkdir(exist_ok=True)
        elif (killed / "v.tif").exists():
            assert (killed / "v.tif").read_bytes() == (whole / "v.tif").read_bytes()
    assert embed(killed).wait() == 0
    assert contents(killed) == contents(whole)


MEMORY = """
import sys
from pathlib import Path
from bharateo.verbs.cli import main
assert main(["embed", *sys.argv[1:]]) == 0
print("peak", Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.long
def test_memory_does_not_grow_with_the_raster(run, tmp_path):
    """Nine times the pixels, a fraction more memory."""

    def peak_kb(side):
        raster = write_raster(tmp_path / f"{side}.tif", side, side, tile=(240, 240))
        call = [
            sys.executable,
            "-c",
            MEMORY,
            run.path,
            raster,
            "--output",
            tmp_path / f"{side}v.tif",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            list(map(str, call)), env=environment, check=True, capture_output=True, text=True
        )
        return int(done.stdout.split("peak ")[1])

    assert peak_kb(3600) < 1.2 * peak_kb(1200)
