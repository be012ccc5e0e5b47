"""Many labels into a dense head: trained, killed and run again, scored, and mapped with."""

import json
import shutil

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from ground import write_labels
from odc.geo.geobox import GeoBox
from sklearn.metrics import jaccard_score

from bharateo.errors import ConfigError, DatasetError
from bharateo.evaluation.finetune import FOREST, LABELS, MAJORITY, UNET, Asked, finetune_run
from bharateo.evaluation.scores import mean_iou
from bharateo.inference.chip_labels import chip_labels
from bharateo.inference.dense import HEAD
from bharateo.inference.embed import Embedding, embed_raster
from bharateo.inference.inputs import open_input
from bharateo.inference.pixel_features import SCALES_PX, surroundings
from bharateo.landcover import BHARATEO_CLASSES, IGNORE
from bharateo.models.dense import DenseNet
from bharateo.training.run import Run
from bharateo.verbs.cli import main
from small_datasets import class_codes

NAMES = {10: "tree", 40: "cropland", 20: "grass_shrub", 50: "built_up", 80: "water"}
STEPS = 20


def silent(*_):
    pass


def finetuned(run, output, **options):
    asked = Asked(**{"labels": "worldcover", "steps": STEPS, "baselines": False, **options})
    return finetune_run(run, asked, output, silent, silent)


@pytest.fixture(scope="module")
def made(map_run, tmp_path_factory):
    """All of it, from the command line."""
    output = tmp_path_factory.mktemp("dense") / "head"
    words = ["--labels", "worldcover", "--steps", str(STEPS), "--output", str(output)]
    assert main(["finetune", str(map_run.path), *words]) == 0
    return output, json.loads((output / "finetune.json").read_text())


@pytest.fixture
def dataset(reflectance_dataset):
    return reflectance_dataset


def labels_of(dataset, path, folder, classes=(), field=None):
    return chip_labels(dataset, str(path), classes, field, folder / "kept", silent)


def write_codes(path, grid, change=lambda codes: codes):
    """The codes of the made-up ground, on any grid near its first region."""
    rows, cols = np.indices(grid.shape) + 0.5
    x, y = grid.affine * (cols, rows)
    east, north = rasterio.warp.transform(grid.crs, "EPSG:32643", x.ravel(), y.ravel())
    whole = class_codes(GeoBox((240, 240), Affine(10, 0, 400_000, 0, -10, 3_000_000), "EPSG:32643"))
    col = np.floor((np.array(east) - 400_000) / 10).astype(int)
    row = np.floor((3_000_000 - np.array(north)) / 10).astype(int)
    inside = (row >= 0) & (row < 240) & (col >= 0) & (col < 240)
    codes = np.zeros(len(row), np.uint8)
    codes[inside] = whole[row[inside], col[inside]]
    with rasterio.open(
        path, "w", driver="GTiff", height=grid.shape[0], width=grid.shape[1], count=1, nodata=0,
        dtype="uint8", crs=str(grid.crs), transform=grid.affine,
    ) as file:  # fmt: skip
        file.write(change(codes.reshape(grid.shape))[None])
    return path


# What it makes


def test_it_tells_pixels_better_than_the_commonest_class(made):
    _, record = made
    assert {*record["scores"]} == {HEAD, UNET, FOREST, MAJORITY}
    value = {name: each["accuracy"]["mean"] for name, each in record["scores"].items()}
    assert value[HEAD] > value[MAJORITY] + 0.2
    assert record["against"][MAJORITY]["accuracy"]["mean"] == pytest.approx(
        value[HEAD] - value[MAJORITY]
    )
    for scores in record["scores"].values():
        cells = np.array(scores["confusion"])
        assert np.trace(cells) / cells.sum() == pytest.approx(scores["accuracy"]["mean"])
    test = {name: np.array(each["confusion"]).sum(1) for name, each in record["scores"].items()}
    assert all((counts == test[HEAD]).all() for counts in test.values())
    assert test[HEAD].tolist() == [
        record["splits"]["test"]["pixels"][each["name"]] for each in record["classes"]
    ]
    least = record["training"][HEAD]["seconds"]
    assert record["training"][UNET]["steps"] >= STEPS
    assert least > 0


def test_killed_and_run_again_it_ends_with_the_same_bytes(made, map_run, tmp_path, monkeypatch):
    output, record = made
    steps = []

    def killed(done, total, note):
        steps.append(note)
        if f"step 13/{STEPS}" in note:
            raise KeyboardInterrupt

    asked = Asked(labels="worldcover", steps=STEPS, baselines=False)
    with pytest.raises(KeyboardInterrupt):
        finetune_run(map_run, asked, tmp_path / "head", killed, silent)
    assert not (tmp_path / "head" / "finetune.json").exists()
    steps.clear()
    again = finetune_run(
        map_run, asked, tmp_path / "head", lambda *said: steps.append(said[2]), silent
    )
    assert not any(f"step 12/{STEPS}" in note for note in steps)
    for name in ("dense.safetensors", "model.safetensors"):
        assert (tmp_path / "head" / name).read_bytes() == (output / name).read_bytes()
    assert again.scores[HEAD].model_dump(mode="json") == record["scores"][HEAD]
    assert not (tmp_path / "head" / ".finetune").exists()
    said = []
    assert finetune_run(map_run, asked, tmp_path / "head", silent, said.append) == again
    assert "already" in said[0]
    with pytest.raises(ConfigError, match="holds a dense head of other labels or options"):
        finetuned(map_run, tmp_path / "head", steps=STEPS + 1)


def test_its_map_has_a_cell_a_pixel_and_all_the_products_of_a_map(made, raster, tmp_path):
    output, _ = made
    words = ["map", str(output), str(raster), "--output", str(tmp_path / "map.tif")]
    assert main([*words, "--against", str(write_labels(tmp_path / "labels.tif"))]) == 0
    record = json.loads((tmp_path / "map.json").read_text())
    assert record["classifier"] == HEAD
    assert record["against"]["agreement"] > 0.7
    assert record["out_of_domain"] is not None
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(raster) as source:
        assert (file.shape, file.transform) == (source.shape, source.transform)
        mapped, there = file.read(1), (source.read() != 0).all(0)
    assert ((mapped == IGNORE) == ~there).all()
    with rasterio.open(tmp_path / "map-probabilities.tif") as file:
        assert file.count == len(NAMES)
        assert set(file.descriptions) == {*NAMES.values()}
    for name in ("map-uncertainty.tif", "map.png", "map.qml", "map.tif.stac.json"):
        assert (tmp_path / name).exists()


def test_a_stride_has_no_place_in_a_map_of_pixels(made, raster, tmp_path, capsys):
    output, _ = made
    words = ["map", str(output), str(raster), "--output", str(tmp_path / "map.tif")]
    assert main([*words, "--stride", "4"]) == 1
    assert "a dense head's map has a cell a pixel" in capsys.readouterr().err


def test_an_encoder_that_is_tuned_too_is_the_one_of_the_run_that_it_makes(
    map_run, raster, tmp_path, capsys
):
    record = finetuned(map_run, tmp_path / "head", steps=3, unfreeze=True, squares=4)
    assert record.encoder == "tuned"
    assert record.splits["train"].squares == 4
    tuned = Run.open(tmp_path / "head")
    assert tuned.weights_sha256 != map_run.weights_sha256
    assert not torch.equal(tuned.model.missing, map_run.model.missing)
    source = open_input(str(raster), tuned.contract)
    embed_raster(tuned, source, [tmp_path / "v.tif"], Embedding(), silent, silent)
    assert main(["map", str(tmp_path / "head"), str(raster), "--output", str(tmp_path / "m.tif"),
                 "--allow", "domain"]) == 0  # fmt: skip
    to = ["--output", str(tmp_path / "page")]
    for verb, *words in (["evaluate"], ["report"], ["explore", *to]):
        assert main([verb, str(tmp_path / "head"), *words]) == 1
        assert "no longer fits what rebuilds hidden patches" in capsys.readouterr().err


def test_labels_are_scored_themselves_where_a_truth_is_given(map_run, dataset, tmp_path):
    grid = GeoBox((240, 240), Affine(10, 0, 400_000, 0, -10, 3_000_000), "EPSG:32643")

    def mistaken(codes):
        """Every third row is of the next class."""
        wrong = codes.copy()
        wrong[::3] = np.array(sorted(NAMES))[(np.searchsorted(sorted(NAMES), codes[::3]) + 1) % 5]
        return np.where(codes == 0, 0, wrong).astype(np.uint8)

    labels = write_codes(tmp_path / "labels.tif", grid, mistaken)
    truth = write_codes(tmp_path / "truth.tif", grid)
    words = tuple(f"{code}={name}" for code, name in NAMES.items())
    # the same codes without names, and the same names
    for given, output in ((str(truth), tmp_path / "one"), ("worldcover", tmp_path / "other")):
        record = finetuned(map_run, output, labels=str(labels), truth=given, steps=1, classes=words)
        assert record.scores[LABELS].accuracy.mean == pytest.approx(2 / 3, abs=0.05)
    with pytest.raises(ConfigError, match="--truth worldcover has a class tree, which the labels"):
        finetuned(map_run, tmp_path / "head", labels=str(labels), truth="worldcover", steps=1)


# Labels on the chips' grids


def test_a_raster_of_another_reference_system_lies_where_the_ground_does(dataset, tmp_path):
    corners = 400_000, 2_997_600, 402_400, 3_000_000
    left, bottom, right, top = rasterio.warp.transform_bounds("EPSG:32643", "EPSG:4326", *corners)
    fine = Affine(4e-5, 0, left, 0, -4e-5, top)
    shape = (int((top - bottom) / 4e-5) + 1, int((right - left) / 4e-5) + 1)
    raster = write_codes(tmp_path / "codes.tif", GeoBox(shape, fine, "EPSG:4326"))
    words = [f"{code}={name}" for code, name in NAMES.items()]
    labels = labels_of(dataset, raster, tmp_path, words)
    assert [each.name for each in labels.classes] == [NAMES[code] for code in sorted(NAMES)]
    own = {each.id: each.name for each in BHARATEO_CLASSES}
    same = total = 0
    for chip in np.flatnonzero(dataset.column("region") == "west").tolist():
        found, expected = labels.pixels.of(chip), dataset.landcover(chip)
        known = (found != IGNORE) & (expected != IGNORE)
        names = np.array([each.name for each in labels.classes])[found[known]]
        same += (names == np.array([own[number] for number in expected[known].tolist()])).sum()
        total += known.sum()
        assert known.sum() > 0.97 * (dataset.valid(chip) & (expected != IGNORE)).sum()
    assert same > 0.93 * total  # but for the pixels along the edges of fields
    east = np.flatnonzero(dataset.column("region") == "east")
    assert not labels.pixels.counts[east].any()


def test_polygons_and_points_label_the_pixels_they_hold(dataset, tmp_path):
    chip = int(np.flatnonzero(dataset.column("region") == "west")[0])
    x, y = (float(dataset.column(name)[chip]) for name in ("x", "y"))
    shapes = {
        "rice": shapely.box(x, y - 100, x + 100, y),  # ten pixels a side
        "wheat": shapely.box(x + 80, y - 100, x + 200, y),  # two columns of them disputed
        "tree": shapely.Point(x + 25, y - 35),
    }
    table = gpd.GeoDataFrame(
        {"crop": [*shapes]}, geometry=[*shapes.values()], crs="EPSG:32643"
    ).to_crs("EPSG:4326")
    table.to_file(tmp_path / "fields.gpkg")
    labels = labels_of(dataset, tmp_path / "fields.gpkg", tmp_path, field="crop")
    names = [each.name for each in labels.classes]
    assert names == ["rice", "tree", "wheat"]
    expected = np.full((dataset.size_px,) * 2, IGNORE, np.uint8)
    expected[:10, :8], expected[:10, 10:20], expected[3, 2] = 0, 2, 1
    expected[~dataset.valid(chip)] = IGNORE
    assert (labels.pixels.of(chip) == expected).all()
    assert labels.pixels.counts[chip].tolist() == [(expected == k).sum() for k in range(3)]
    fewer = labels_of(dataset, tmp_path / "fields.gpkg", tmp_path, ["wheat", "rice"], "crop")
    assert [each.name for each in fewer.classes] == ["rice", "wheat"]
    assert fewer.pixels.of(chip)[3, 2] == IGNORE


# Refusals


@pytest.fixture
def fields(dataset, tmp_path):
    """Writes polygons over whole squares of some splits: class -> splits."""

    def write(classes):
        rows = []
        for name, splits in classes.items():
            for split in splits:
                chip = dataset.indices(split)[[*classes].index(name)]
                x, y = (float(dataset.column(each)[chip]) for each in ("x", "y"))
                rows.append((name, shapely.box(x, y - 200, x + 200, y)))
        names, shapes = zip(*rows, strict=True)
        table = gpd.GeoDataFrame({"class": names}, geometry=[*shapes], crs="EPSG:32643")
        table.to_file(tmp_path / "fields.gpkg")
        return str(tmp_path / "fields.gpkg")

    return write


EVERY = ("train", "val", "test")


def test_a_split_without_labels_is_named(map_run, fields, tmp_path):
    labels = fields({"rice": ("train", "val"), "wheat": ("train", "val")})
    with pytest.raises(ConfigError, match=r"no label of .*gpkg lies on the test split"):
        finetuned(map_run, tmp_path / "head", labels=labels)


def test_a_class_that_cannot_be_learnt_is_named_with_the_option_that_leaves_it_out(
    map_run, fields, tmp_path
):
    labels = fields({"rice": EVERY, "wheat": EVERY, "sal": ("test",)})
    with pytest.raises(ConfigError, match=r"sal has no labelled pixel.*--classes rice wheat$"):
        finetuned(map_run, tmp_path / "head", labels=labels)
    # nothing was begun that stands in the way
    record = finetuned(
        map_run, tmp_path / "head", labels=labels, classes=("rice", "wheat"), steps=2
    )
    assert [each.name for each in record.classes] == ["rice", "wheat"]


def test_labels_of_another_place_are_refused(map_run, tmp_path):
    table = gpd.GeoDataFrame(
        {"class": ["a", "b"]}, geometry=[shapely.Point(10, 50), shapely.Point(11, 50)], crs=4326
    )
    table.to_file(tmp_path / "far.geojson")
    with pytest.raises(ConfigError, match=r"none of the labels of .*far\.geojson lies on the gr"):
        finetuned(map_run, tmp_path / "head", labels=str(tmp_path / "far.geojson"))


def test_a_run_whose_dataset_has_gone_or_changed_is_refused(map_run, dataset, tmp_path):
    run = tmp_path / "deep" / "run"
    shutil.copytree(map_run.path, run)
    with pytest.raises(DatasetError, match="there is no dataset at"):
        finetuned(Run.open(run), tmp_path / "head")
    contract = json.loads((run / "contract.json").read_text())
    contract["dataset"] |= {"path": str(dataset.path), "fingerprint": "0" * 64}
    (run / "contract.json").write_text(json.dumps(contract))
    with pytest.raises(DatasetError, match="is not the dataset that"):
        finetuned(Run.open(run), tmp_path / "head")


def test_what_is_not_its_own_is_not_written_over(map_run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for output in (tmp_path, map_run.path):
        with pytest.raises(ConfigError, match="is there, and is not what finetune makes"):
            finetuned(map_run, output)


def test_a_class_that_no_label_has_is_refused_with_those_there_are(map_run, tmp_path):
    with pytest.raises(ConfigError, match=r"--classes mustard: no label .* there are 0=tree"):
        finetuned(map_run, tmp_path / "head", classes=("mustard", "tree"))


# Parts


def test_the_net_takes_chips_of_any_size_and_is_deaf_to_tokens_only_without_them():
    torch.manual_seed(0)
    image, valid = torch.randn(2, 3, 37, 37), torch.ones(2, 37, 37, dtype=torch.bool)
    net = DenseNet(3, 4, 8).eval()
    one, other = (net(image, valid, torch.randn(2, 9, 8)) for _ in range(2))
    assert one.shape == (2, 4, 37, 37)
    assert not torch.allclose(one, other)
    assert DenseNet(3, 4)(image, valid).shape == (2, 4, 37, 37)


def test_the_mean_intersection_over_union_is_scikit_learns():
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    cells = np.bincount(true * 4 + said, minlength=16).reshape(4, 4)
    assert mean_iou(cells) == pytest.approx(jaccard_score(true, said, average="macro"))


def test_surroundings_are_means_and_deviations_of_the_valid_pixels_around():
    rng = np.random.default_rng(0)
    image, valid = rng.random((2, 20, 17)).astype(np.float32), rng.random((20, 17)) > 0.2
    found = surroundings(image, valid)
    assert found.shape == (8, 20, 17)
    for number, side in enumerate(SCALES_PX):
        rows, cols = (
            slice(max(3 - side // 2, 0), 4 + side // 2),
            slice(9 - side // 2, 10 + side // 2),
        )
        some = image[:, rows, cols][:, valid[rows, cols]]
        assert found[4 * number : 4 * number + 2, 3, 9] == pytest.approx(some.mean(1), abs=1e-5)
        assert found[4 * number + 2 : 4 * number + 4, 3, 9] == pytest.approx(some.std(1), abs=1e-4)
