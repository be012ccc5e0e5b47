"""A run of ten bands on rasters that hold fewer, through every verb that takes one."""

import json
import shlex
import shutil
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from ground import AFFINE, class_codes, grid_of
from rasterio.transform import xy

from bharateo.config import to_yaml
from bharateo.errors import ContractError
from bharateo.inference.domain import domain_of, load_domain
from bharateo.inference.encoder import FrozenEncoder
from bharateo.inference.inputs import open_input
from bharateo.reading import Reading
from bharateo.training.loop import pretrain
from bharateo.training.run import Run
from bharateo.verbs.cli import main
from small_datasets import Pixels, many_bands, small_config, small_dataset

NUM_BANDS = 10
NAMES = many_bands(NUM_BANDS).band_names  # B01 ... B10
SETS = {"rgb": ("B04", "B03", "B02"), "nir": ("B03", "B04", "B08"), "rgbn": ("rgbn",)}
SHAPE = (90, 110)


def silent(*_):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any-bands")


@pytest.fixture(scope="module")
def run(folder):
    """By the command line, as somebody would."""
    small_dataset(folder / "dataset", many_bands(NUM_BANDS))
    config = small_config(target="mode", epochs=20)
    config = replace(config, model=replace(config.model, embedding="energies", band_sets=SETS))
    (folder / "config.yaml").write_text(to_yaml(config))
    words = ["--dataset", folder / "dataset", "--output", folder / "run"]
    assert main(["pretrain", str(folder / "config.yaml"), *map(str, words)]) == 0
    return Run.open(folder / "run")


def write(path, bands, names=True, shape=SHAPE):
    """Reflectance of some bands, in a file that names them."""
    made = Pixels(many_bands(NUM_BANDS)).read(grid_of(*shape))
    values = np.where(made.valid, made.values, 0).astype(np.uint16)
    values = values[[NAMES.index(band) for band in bands]]
    profile = {"driver": "GTiff", "height": shape[0], "width": shape[1], "count": len(bands),
               "nodata": 0, "dtype": "uint16", "crs": "EPSG:32643",
               "transform": AFFINE}  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        if names:
            file.descriptions = bands
        file.write(values)
    return path


@pytest.fixture(scope="module")
def rgb(folder):
    return write(folder / "rgb.tif", ("B02", "B03", "B04"))


def pixels_of(path):
    with rasterio.open(path) as file:
        return file.read()


TWO_BANDS = (
    r"bands: .*a.tif holds of the run's bands B03, B04 \(B03, B04\), and the run takes B01, B02, .*"
    r"B10, or of these alone rgb \(B04, B03, B02\) or nir \(B03, B04, B08\) or rgbn \(.*\): give "
    r"a raster that holds one of these whole, name its bands with --bands, or pretrain a run with "
    r"model.band_sets of those that are there"
)


# Which set a raster is read in.


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (NAMES, None),
        (NAMES[::-1], None),
        (("B02", "B03", "B04"), "rgb"),
        (("B08", "B04", "B03", "B10"), "nir"),
        (("B10", "B02", "B03", "B04", "B08"), "rgbn"),
        (NAMES[1:], "rgbn"),
    ],
)
def test_a_raster_is_read_in_all_bands_or_the_largest_set_it_holds(run, tmp_path, held, expected):
    source = open_input(str(write(tmp_path / "a.tif", held)), run.contract)
    assert source.band_set == expected
    assert source.sensor.band_names == run.of_set(expected).sensor.band_names
    whole = open_input(str(write(tmp_path / "all.tif", NAMES)), run.contract)
    values, valid = source.read(3, 5, 40, 50)
    every, known = whole.read(3, 5, 40, 50)
    chosen = [NAMES.index(name) for name in source.sensor.band_names]
    assert np.array_equal(values, every[chosen])
    assert np.array_equal(valid, known)


def test_names_given_decide_as_those_in_the_file_do(run, tmp_path):
    path = str(write(tmp_path / "a.tif", NAMES, names=False))
    places = {name: NAMES.index(name) + 1 for name in ("B02", "B03", "B04")}
    source = open_input(path, run.contract, Reading(places))
    assert source.band_set == "rgb"
    assert source.made_of.bands_in_file == [4, 3, 2]


@pytest.mark.parametrize(
    ("held", "named", "said"),
    [
        (("B03", "B04"), True, TWO_BANDS),
        (("B09",), True, r"holds of the run's bands B09 \(B09\), and the run takes"),
        (("B02", "B03", "B04"), False, r"3 bands and does not say which is which, and the run tak"),
    ],
)  # fmt: skip
def test_other_bands_are_refused_with_the_sets_by_name(run, tmp_path, held, named, said):
    path = str(write(tmp_path / "a.tif", held, named))
    for reading in (None, Reading(allow=frozenset({"bands"}))):
        with pytest.raises(ContractError, match=said):
            open_input(path, run.contract, reading)


def test_a_band_that_is_there_twice_is_refused(run, tmp_path):
    path = str(write(tmp_path / "a.tif", ("B02", "B03", "B04", "B04")))
    with pytest.raises(ContractError, match="bands: B04 is named twice"):
        open_input(path, run.contract)


def test_unit_and_statistics_are_those_of_the_bands(run, tmp_path):
    path = write(tmp_path / "a.tif", ("B04", "B03", "B02"))
    with rasterio.open(path, "r+") as file:
        file.write((file.read() // 10).astype(np.uint16))
    with pytest.raises(ContractError, match=r"^(unit|statistics): "):
        open_input(str(path), run.contract)


# What the verbs make of it.


def test_vectors_of_a_raster_are_those_of_the_set(run, rgb, tmp_path, capsys):
    assert main(["embed", str(run.path), str(rgb), "--output", str(tmp_path / "v.tif"),
                 "--dtype", "float32"]) == 0  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "is read in the set rgb (B04, B03, B02) of the run's 10 bands" in said
    source = open_input(str(rgb), run.contract)
    image, valid = (torch.from_numpy(each)[None] for each in source.read(0, 0, 32, 32))
    expected = FrozenEncoder.of_run(run.of_set("rgb")).features(image, valid)[0, 0]
    corner = pixels_of(tmp_path / "v.tif")[:, 0, 0]  # one window alone holds it
    np.testing.assert_allclose(corner, expected, rtol=1e-3, atol=1e-4)


def test_other_bands_in_the_file_change_no_byte(run, tmp_path):
    made = []
    for name, bands in (("few", ("B04", "B03", "B02")), ("more", ("B04", "B03", "B02", "B10"))):
        raster = write(tmp_path / f"{name}.tif", bands)
        output = tmp_path / f"v-{name}.tif"
        assert main(["embed", str(run.path), str(raster), "--output", str(output)]) == 0
        made.append(pixels_of(output))
    assert np.array_equal(*made, equal_nan=True)


def test_the_map_of_a_raster_in_three_of_ten_bands_is_mostly_right(run, rgb, tmp_path):
    assert main(["map", str(run.path), str(rgb), "--output", str(tmp_path / "map.tif")]) == 0
    record = json.loads((tmp_path / "map.json").read_text())
    assert record["source"]["bands"] == ["B04", "B03", "B02"]
    assert record["out_of_domain"]["share"] < 0.3
    (classes,) = pixels_of(tmp_path / "map.tif")
    truth = class_codes(grid_of(*SHAPE))[4::8, 4::8]
    classes = classes[: truth.shape[0], : truth.shape[1]]
    ids = {10: 0, 40: 1, 20: 2, 50: 3, 80: 5}
    right = [classes[truth == code] == number for code, number in ids.items()]
    assert np.concatenate(right).mean() > 0.5


def test_every_set_has_a_domain_of_its_own(run):
    whole, some = (domain_of(each, silent) for each in (run, run.of_set("rgb")))
    assert len(whole.pixels.mean) == 3 * NUM_BANDS
    assert len(some.pixels.mean) == 3 * 3
    assert (run.path / "domain-rgb.safetensors").exists()
    for each, domain in ((run, whole), (run.of_set("rgb"), some)):
        assert torch.equal(load_domain(each).pixels.mean, domain.pixels.mean)


def test_noise_in_a_set_is_out_of_its_domain_and_refused(run, tmp_path, capsys):
    path = write(tmp_path / "noise.tif", ("B04", "B03", "B02"))
    with rasterio.open(path, "r+") as file:
        values = file.read().reshape(3, -1)
        mixed = np.random.default_rng(0).permuted(values, axis=1)
        file.write(mixed.reshape(3, *SHAPE))
    words = ["map", str(run.path), str(path), "--output", str(tmp_path / "map.tif")]
    assert main(words) == 1
    assert not (tmp_path / "map.json").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "domain: " in said
    again = said[said.index("go on with ") + len("go on with ") :]
    assert again == shlex.join(["bharateo", *words, "--allow", "domain"])
    assert main(shlex.split(again)[1:]) == 0
    assert json.loads((tmp_path / "map.json").read_text())["out_of_domain"]["share"] > 0.9


@pytest.mark.slow
def test_a_probe_of_own_points_maps_rasters_of_its_set_alone(run, rgb, tmp_path, capsys):
    centres = class_codes(grid_of(*SHAPE))[4::8, 4::8]  # of cells: no two points lie in one
    classes = {10: "forest", 40: "fields"}
    places = [(row, col) for code in classes for row, col in np.argwhere(centres == code)[::5][:5]]
    x, y = xy(AFFINE, *zip(*[(8 * row + 4, 8 * col + 4) for row, col in places], strict=True))
    points = gpd.GeoDataFrame(
        {"class": [classes[centres[place]] for place in places]},
        geometry=gpd.points_from_xy(x, y),
        crs="EPSG:32643",
    )
    points.to_file(tmp_path / "points.gpkg")
    assert main(["teach", str(run.path), str(rgb), "--points", str(tmp_path / "points.gpkg"),
                 "--output", str(tmp_path / "own")]) == 0  # fmt: skip
    probe = ["--probe", str(tmp_path / "own" / "probe.safetensors")]
    output = ["--output", str(tmp_path / "again.tif")]
    assert main(["map", str(run.path), str(rgb), *output, *probe]) == 0
    with rasterio.open(tmp_path / "again.tif") as file:
        mapped = file.read(1)
    right = [int(mapped[place]) == sorted(classes.values()).index(classes[centres[place]])
             for place in places]  # fmt: skip
    assert np.mean(right) > 0.8
    whole = write(tmp_path / "all.tif", NAMES)
    capsys.readouterr()
    assert main(["map", str(run.path), str(whole), "--output", str(tmp_path / "b.tif"), *probe])
    said = " ".join(capsys.readouterr().err.split())
    assert "fitted on the features of rgb, the raster is read in all bands" in said


def test_places_alike_are_found_and_drawn(run, rgb, tmp_path, capsys):
    x, y = AFFINE @ (44, 44)  # amid a patch
    (place,) = gpd.GeoSeries.from_xy([x], [y], crs="EPSG:32643").to_crs(4326)
    words = ["--like", f"{place.x},{place.y}", "--output", str(tmp_path), "--count", "3"]
    assert main(["search", str(run.path), str(rgb), *words]) == 0
    assert "is read in the set rgb" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "sheet.png").exists()


def test_a_page_to_explore_is_refused(run, rgb, tmp_path, capsys):
    words = ["--raster", str(rgb), "--output", str(tmp_path / "page")]
    assert main(["explore", str(run.path), *words]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "a page to explore needs all" in said


# Datasets.


def test_a_dataset_of_a_set_is_embedded(run, tmp_path, capsys):
    small_dataset(tmp_path / "two", many_bands(4), regions=("west",))  # B01 to B04
    words = ["embed", str(run.path), str(tmp_path / "two"), "--output", str(tmp_path / "v.parquet")]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "is read in the set rgb (B04, B03, B02) of the run's 10 bands" in said
    few = gpd.read_parquet(tmp_path / "v.parquet")
    assert len(few["vector"].iloc[0]) == 16


def test_probes_are_scored_on_a_set(run, tmp_path, capsys):
    output = tmp_path / "rgb.json"
    few = ["--levels", "patch", "--budgets", "all", "--features", "encoder", "random_encoder",
           "band_statistics", "random_convolutions"]  # fmt: skip
    assert main(["probe", str(run.path), "--bands", "rgb", "--output", str(output), *few]) == 0
    assert json.loads(output.read_text())["dataset"]["bands"] == ["B04", "B03", "B02"]
    assert not (run.path / "probes.json").exists()
    capsys.readouterr()
    assert main(["probe", str(run.path), "--bands", "rgb"]) == 1
    assert "needs a file to write, so that the figures" in " ".join(capsys.readouterr().err.split())
    assert main(["probe", str(run.path), "--bands", "liss", "--output", str(output)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "was trained on no set 'liss' of bands; it takes B01, B02" in said


def test_scores_of_hidden_patches_are_of_all_bands(run, tmp_path, capsys):
    assert main(["evaluate", str(run.path)]) == 0
    small_dataset(tmp_path / "two", many_bands(4), regions=("west",))
    words = ["--dataset", str(tmp_path / "two"), "--output", str(tmp_path / "e.json")]
    capsys.readouterr()
    assert main(["evaluate", str(run.path), *words]) == 1
    assert "bands: the run" in " ".join(capsys.readouterr().err.split())


# A run without sets.


def test_without_sets_missing_bands_are_refused_as_ever(folder, run, rgb, tmp_path):
    config = small_config(epochs=1)
    plain = pretrain(run.own_dataset(), config, tmp_path / "plain")
    with pytest.raises(ContractError, match=r"bands: B01 is missing in .*rgb.tif"):
        open_input(str(rgb), plain.contract)
    shutil.rmtree(tmp_path / "plain")
