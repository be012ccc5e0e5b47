"""Tiny folders in the layouts of EuroSAT-MS and GEO-Bench, made of numbers."""

import json
import os
import pickle
from dataclasses import replace
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
import rasterio
import torch

from bharateo.errors import ConfigError, ContractError, CorruptRasterError, DatasetError
from bharateo.evaluation import outside
from bharateo.evaluation.features import Features
from bharateo.evaluation.outside import (
    EUROSAT_BANDS,
    GEOBENCH_BANDS,
    HEADER,
    check_resize,
    confusions,
    evaluate_task,
    extract_task,
    extractors_of,
    fitted,
    open_task,
    rows,
)
from bharateo.reading import Reading
from bharateo.sensor import SENTINEL2_L1C
from bharateo.training.loop import pretrain
from small_datasets import small_config, small_dataset

CLASSES = ("Forest", "River", "SeaLake")
LEVELS = {"Forest": 2000, "River": 900, "SeaLake": 300}
SIDE = 16
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three bands in an order of their own, on made-up reflectances of 0.1 to 0.6."""
    folder = tmp_path_factory.mktemp("run")
    sensor = SENTINEL2_L1C.with_bands(("B08", "B8A", "B03"))
    dataset = small_dataset(folder / "d", sensor, regions=("west",))
    return pretrain(dataset, small_config(epochs=1), folder / "run")


def chip(name, number, bands=EUROSAT_BANDS):
    """The class's level plus 10 times the band's place in EuroSAT's order, with some noise."""
    rng = np.random.default_rng([number, LEVELS[name]])
    values = LEVELS[name] + 10 * np.arange(13)[:, None, None] + rng.integers(0, 5, (13, SIDE, SIDE))
    return values[[EUROSAT_BANDS.index(band) for band in bands]].astype(np.uint16)


def write_tif(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"count": len(values), "height": values.shape[1], "width": values.shape[2]}
    with rasterio.open(path, "w", driver="GTiff", dtype=values.dtype, **size) as file:
        file.write(values)


def write_eurosat(folder):
    for name in CLASSES:
        for number in range(1, 11):
            write_tif(folder / name / f"{name}_{number}.tif", chip(name, number))
    return folder


@pytest.fixture
def eurosat(tmp_path):
    return write_eurosat(tmp_path / "EuroSAT_MS")


class Poison:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def write_hdf5(path, layers):
    with h5py.File(path, "w") as file:
        for name, values in layers.items():
            file.create_dataset(name, data=values)
        file.attrs["pickle"] = str(pickle.dumps(Poison()))


def write_geobench(folder, truth=GEOBENCH_BANDS, date=""):
    """Samples of every class, with the bands that the stored names stand for."""
    folder.mkdir(parents=True)
    labels, partition = {}, {"train": [], "valid": [], "test": []}
    for label, name in enumerate(CLASSES):
        for number in range(10):
            sample = f"id_{label}{number}"
            values = chip(name, number, [truth[stored] for stored in truth])
            layers = {stored + date: band for stored, band in zip(truth, values, strict=True)}
            write_hdf5(folder / f"{sample}.hdf5", layers)
            labels.setdefault(str(label), []).append(sample)
            partition["train" if number < 6 else "valid" if number < 8 else "test"].append(sample)
    (folder / "label_map.json").write_text(json.dumps(labels))
    (folder / "default_partition.json").write_text(json.dumps(partition))
    (folder / "task_specs.pkl").write_bytes(pickle.dumps(Poison()))
    return folder


def expected(name, number):
    """Reflectance in the run's bands."""
    return chip(name, number, ("B08", "B8A", "B03")) * np.float32(1e-4)


# EuroSAT.


def test_eurosat_is_read_in_the_runs_bands_and_unit(eurosat, run):
    task, overridden = open_task(eurosat, run)
    assert (task.layout, task.classes, overridden) == ("eurosat", CLASSES, {})
    for some in task.chips.values():
        for each in some:
            image, valid = task.read(each)
            name, number = each.name.split("_")
            assert task.classes[each.label] == name
            assert image == pytest.approx(expected(name, int(number)))
            assert valid.all()


def test_eurosat_is_divided_class_by_class_and_the_same_way_everywhere(eurosat, run, tmp_path):
    task, _ = open_task(eurosat, run)
    for label in range(3):
        each = {split: sum(c.label == label for c in some) for split, some in task.chips.items()}
        assert each == {"train": 6, "val": 2, "test": 2}
    (tmp_path / "elsewhere").mkdir()
    moved = eurosat.rename(tmp_path / "elsewhere" / "moved")
    again, _ = open_task(moved, run)
    for split, some in task.chips.items():
        assert [each.name for each in some] == [each.name for each in again.chips[split]]


def test_a_split_by_hash_says_that_it_is_not_geographic(eurosat, run):
    task, _ = open_task(eurosat, run)
    assert "hash of the file's name: not geographic" in task.split


def test_a_split_file_decides(eurosat, run, tmp_path):
    file = tmp_path / "split.json"
    lists = {
        "train": ["Forest_1", "River_2.tif", "SeaLake/SeaLake_3.tif"],
        "valid": ["Forest_4"],
        "test": ["River_5"],
    }
    file.write_text(json.dumps(lists))
    task, _ = open_task(eurosat, run, split_file=file)
    assert [each.name for each in task.chips["train"]] == ["Forest_1", "River_2", "SeaLake_3"]
    assert task.split == "by split.json"
    file.write_text(json.dumps({**lists, "test": ["Lake_1"]}))
    with pytest.raises(DatasetError, match=r"split.json: 'Lake_1' of test is not in"):
        open_task(eurosat, run, split_file=file)
    file.write_text(json.dumps({**lists, "test": []}))
    with pytest.raises(DatasetError, match="no chip in its test split"):
        open_task(eurosat, run, split_file=file)


def test_other_bands_are_read_where_they_are_named(tmp_path, run):
    for name in CLASSES:
        for number in range(1, 11):
            values = chip(name, number, ("B03", "B08", "B8A"))
            write_tif(tmp_path / "t" / name / f"{name}_{number}.tif", values)
    with pytest.raises(ContractError, match="bands"):
        open_task(tmp_path / "t", run)
    for bands in (("B03", "B08", "B8A"), {"B8A": 3, "B08": 2, "B03": 1}):
        task, _ = open_task(tmp_path / "t", run, Reading(bands=bands))
        image, _ = task.read(task.chips["test"][0])
        name, number = task.chips["test"][0].name.split("_")
        assert image == pytest.approx(expected(name, int(number)))


def test_numbers_of_another_unit_are_refused_with_the_field_named(eurosat, run):
    with pytest.raises(ContractError, match=r"^unit: .*--allow unit"):
        open_task(eurosat, run, Reading(scale=1.0))
    _, overridden = open_task(eurosat, run, Reading(scale=1.0, allow=frozenset({"unit"})))
    assert [*overridden] == ["unit"]


def test_options_for_one_raster_are_refused_for_a_task(eurosat, run):
    for reading in (Reading(mask="scl"), Reading(resample="nearest")):
        with pytest.raises(ConfigError, match="--mask and --resample are for a raster"):
            open_task(eurosat, run, reading)


def test_nodata_is_invalid(eurosat, run):
    values = chip("Forest", 1)
    values[:, :4] = 0
    write_tif(eurosat / "Forest" / "Forest_1.tif", values)
    task, _ = open_task(eurosat, run, Reading(nodata=0.0))
    (damaged,) = [c for some in task.chips.values() for c in some if c.name == "Forest_1"]
    assert task.read(damaged)[1].sum() == (SIDE - 4) * SIDE


def test_fewer_bands_are_read_in_a_set_that_the_run_takes(eurosat, run, tmp_path):
    config = small_config(epochs=1)
    config = replace(config, model=replace(config.model, band_sets={"two": ("B03", "B08")}))
    taught = pretrain(run.own_dataset(), config, tmp_path / "run")
    whole, _ = open_task(eurosat, taught)
    assert whole.band_set is None
    places = {"B03": EUROSAT_BANDS.index("B03") + 1, "B08": EUROSAT_BANDS.index("B08") + 1}
    reading = Reading(places, allow=frozenset({"statistics"}))
    task, _ = open_task(eurosat, taught, reading)
    assert task.band_set == "two"
    record = evaluate_task(taught, task, tmp_path / "two.json")
    assert record.task.bands_in_file == [str(place) for place in places.values()]
    with pytest.raises(ContractError, match=r"takes B08, B8A, B03, or of these alone two"):
        open_task(eurosat, taught, Reading({"B03": places["B03"]}))


def test_a_chip_with_other_bands_is_named(eurosat, run):
    task, _ = open_task(eurosat, run)
    each = task.chips["test"][0]
    write_tif(each.path, chip("Forest", 1)[:3])
    with pytest.raises(CorruptRasterError, match=f"{each.name}.tif has 3 bands, the first chip 13"):
        task.read(each)


# GEO-Bench.


@pytest.mark.parametrize("date", ["", "_2018-05-01"])
def test_geobench_is_read_without_opening_a_pickle(tmp_path, run, date):
    task, _ = open_task(write_geobench(tmp_path / "some-task", date=date), run)
    assert (task.layout, task.classes) == ("geobench", ("0", "1", "2"))
    assert task.counts == {"train": 18, "val": 6, "test": 6}
    for each in task.chips["test"]:
        label, number = (int(digit) for digit in each.name[-2:])
        assert each.label == label
        assert task.read(each)[0] == pytest.approx(expected(CLASSES[label], number))
    assert any("label_map.json" in note for note in task.notes)


def test_the_misnamed_bands_of_m_eurosat_are_set_right(tmp_path, run):
    truth = GEOBENCH_BANDS | outside.MISNAMED["m-eurosat"]
    assert sorted(truth.values()) == sorted(EUROSAT_BANDS)
    task, _ = open_task(write_geobench(tmp_path / "m-eurosat", truth), run)
    image, _ = task.read(task.chips["train"][0])
    assert image == pytest.approx(expected("Forest", 0))
    assert any("named by what they hold" in note for note in task.notes)


def test_bands_of_other_resolutions_are_brought_to_the_finest(tmp_path, run):
    folder = write_geobench(tmp_path / "task")
    task, _ = open_task(folder, run)
    each = task.chips["train"][0]
    with h5py.File(each.path, "r+") as file:
        del file["03 - Green"]
        file["03 - Green"] = np.full((SIDE // 2, SIDE // 2), 1234, np.uint16)
    image, valid = task.read(each)
    assert valid.shape == (SIDE, SIDE)
    assert image[2] == pytest.approx(np.full((SIDE, SIDE), 0.1234))


@pytest.mark.parametrize("what", ["external link", "soft link", "external data", "virtual"])
def test_data_of_another_file_is_refused(tmp_path, run, what):
    folder = write_geobench(tmp_path / "task")
    task, _ = open_task(folder, run)
    each = task.chips["test"][0]
    write_hdf5(tmp_path / "secret.hdf5", {"x": np.ones((SIDE, SIDE), np.uint16)})
    (tmp_path / "secret.bin").write_bytes(bytes(SIDE * SIDE * 2))
    with h5py.File(each.path, "r+") as file:
        name = "08 - NIR"
        del file[name]
        if what == "external link":
            file[name] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "x")
        elif what == "soft link":
            file[name] = h5py.SoftLink("/02 - Blue")
        elif what == "external data":
            where = [(str(tmp_path / "secret.bin"), 0, SIDE * SIDE * 2)]
            file.create_dataset(name, (SIDE, SIDE), np.uint16, external=where)
        else:
            layout = h5py.VirtualLayout((SIDE, SIDE), np.uint16)
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf5"), "x", (SIDE, SIDE))
            file.create_virtual_dataset(name, layout)
    with pytest.raises(CorruptRasterError, match="'08 - NIR' is no plain array"):
        task.read(each)


def test_a_sample_outside_the_folder_is_refused(tmp_path, run):
    folder = write_geobench(tmp_path / "task")
    write_hdf5(tmp_path / "secret.hdf5", {"x": np.ones((2, 2))})
    partition = json.loads((folder / "default_partition.json").read_text())
    labels = json.loads((folder / "label_map.json").read_text())
    partition["train"].append("../secret")
    labels["0"].append("../secret")
    (folder / "default_partition.json").write_text(json.dumps(partition))
    (folder / "label_map.json").write_text(json.dumps(labels))
    with pytest.raises(DatasetError, match=r"names '\.\./secret', outside"):
        open_task(folder, run)


def test_a_task_whose_labels_are_pickled_only_is_refused(tmp_path, run):
    folder = write_geobench(tmp_path / "task")
    (folder / "label_map.json").unlink()
    with pytest.raises(DatasetError, match=r"label_map.json is missing.*never opened"):
        open_task(folder, run)


def test_a_sample_without_a_label_is_named(tmp_path, run):
    folder = write_geobench(tmp_path / "task")
    (folder / "label_map.json").write_text(json.dumps({"0": ["id_00"], "1": ["id_10"]}))
    with pytest.raises(DatasetError, match="no label for 'id_01' of train"):
        open_task(folder, run)


def test_a_file_cut_short_is_named(tmp_path, run):
    task, _ = open_task(write_geobench(tmp_path / "task"), run)
    each = task.chips["test"][0]
    each.path.write_bytes(each.path.read_bytes()[:500])
    with pytest.raises(CorruptRasterError, match=f"{each.name}.hdf5 cannot be read"):
        task.read(each)


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path, run):
    folder = write_geobench(tmp_path / "task")
    for each in folder.glob("*.hdf5"):
        each.unlink()
        os.mkfifo(each)
    with pytest.raises(CorruptRasterError, match="no ordinary file"):
        open_task(folder, run)


@pytest.mark.parametrize("content", [None, "[1]", "{"])
def test_a_folder_of_neither_layout_is_refused(tmp_path, run, content):
    if content:
        (tmp_path / "default_partition.json").write_text(content)
    with pytest.raises(DatasetError, match=r"no known task|no readable JSON|no JSON object"):
        open_task(tmp_path, run)


# Sizes and features.


@pytest.mark.parametrize("size", [16, 24, 64])
def test_stretching_mixes_nothing_invalid_into_a_valid_pixel(size):
    image, valid = np.full((2, size, size), 0.3, np.float32), np.ones((size, size), bool)
    valid[: size // 2] = False
    image[:, ~valid] = np.nan
    pixels, known = fitted(image, valid, 32, 8, "bilinear")
    assert pixels.shape == (2, 32, 32)
    assert torch.allclose(pixels[:, known], torch.tensor(0.3))
    assert not known[:16].any()
    assert known[18:].all()


def test_stretching_keeps_places():
    image = np.tile(np.arange(16, dtype=np.float32), (1, 16, 1))
    pixels, _ = fitted(image, np.ones((16, 16), bool), 32, 8, "bilinear")
    assert pixels[0, 0, 1:-1].numpy() == pytest.approx(np.arange(0.25, 15, 0.5))


def test_a_large_chip_is_averaged_down():
    image = np.indices((32, 32)).sum(0)[None].astype(np.float32) % 2
    pixels, _ = fitted(image, np.ones((32, 32), bool), 16, 8, "bilinear")
    assert pixels.numpy() == pytest.approx(np.full((1, 16, 16), 0.5), abs=0.02)


@pytest.mark.parametrize("size", [16, 17, 40])
def test_padding_keeps_pixels_as_they_are(size):
    rng = np.random.default_rng(0)
    image, valid = rng.random((2, size, size), np.float32), rng.random((size, size)) < 0.9
    pixels, known = fitted(image, valid, 32, 8, "pad")
    kept = min(size, 32)
    top, out = max((size - 32) // 2, 0), max((32 - size) // 2, 0)
    part = np.s_[..., out : out + kept, out : out + kept]
    assert np.array_equal(pixels[part], image[:, top : top + kept, top : top + kept])
    assert known.sum() == valid[top : top + kept, top : top + kept].sum()


@pytest.mark.parametrize(("rows", "cols"), [(16, 16), (19, 30), (40, 41)])
def test_a_chip_that_stays_as_it_is_is_cut_to_whole_patches_about_its_middle(rows, cols):
    image = np.indices((rows, cols)).astype(np.float32)
    side = min(rows, cols) // 8 * 8
    pixels, known = fitted(image, np.ones((rows, cols), bool), 32, 8, "none")
    assert known.shape == (side, side)
    assert pixels[:, 0, 0].tolist() == [(rows - side) // 2, (cols - side) // 2]
    assert pixels[:, -1, -1].tolist() == [(rows + side) // 2 - 1, (cols + side) // 2 - 1]


def test_chips_that_cannot_stay_as_they_are_are_refused_with_the_remedy(eurosat, run):
    task, _ = open_task(eurosat, run)
    check_resize(task, run, "none")
    coarse = replace(run.model.config, patch_px=2 * chip("Forest", 1).shape[1])
    large = replace(run, model=Mock(config=coarse))
    with pytest.raises(ContractError, match=r"have no whole patch of 32 px: .* --resize bilinear"):
        check_resize(task, large, "none")
    learned = replace(run, model=Mock(config=replace(run.model.config, name="seed")))
    with pytest.raises(ContractError, match="are no chips of 32 px"):
        check_resize(task, learned, "none")
    each = task.chips["val"][0]
    write_tif(each.path, chip("Forest", 1)[:, :8, :8])
    with pytest.raises(ContractError, match="8 x 8 px and 16 x 16 px are not all of one size"):
        check_resize(task, run, "none")
    check_resize(task, large, "pad")


def test_what_lies_outside_a_padded_chip_changes_no_feature(eurosat, run, monkeypatch):
    """Invalid pixels and patches have no part in them."""
    task, _ = open_task(eurosat, run)
    extractors = extractors_of(task, run, "pad")
    first = extract_task(task, extractors, 32, 8, "pad")
    real = outside.fitted

    def noisy(*arguments):
        pixels, known = real(*arguments)
        return torch.where(known, pixels, torch.rand(pixels.shape)), known

    monkeypatch.setattr(outside, "fitted", noisy)
    again = extract_task(task, extractors, 32, 8, "pad")
    for name, splits in first.items():
        assert np.allclose(splits["test"].values, again[name]["test"].values, atol=1e-5), name


def test_every_extractor_sees_every_chip(eurosat, run):
    task, _ = open_task(eurosat, run)
    told = []
    found = extract_task(
        task, extractors_of(task, run, "bilinear"), 32, 8, on_chips=lambda *now: told.append(now)
    )
    assert [*found] == [
        "encoder", "random_encoder", "band_statistics", "random_convolutions", "log_energies",
    ]  # fmt: skip
    assert told[-1] == (30, 30)
    for splits in found.values():
        assert {split: len(each.labels) for split, each in splits.items()} == task.counts
        assert splits["test"].labels.tolist() == [each.label for each in task.chips["test"]]
        assert np.isfinite(splits["test"].values).all()


# Scores.


@pytest.fixture(scope="module")
def record(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    task, _ = open_task(write_eurosat(folder / "EuroSAT_MS"), run)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outside, "BUDGETS", (3, 100, "all"))
        found = evaluate_task(
            run, task, folder / "out.json", on_progress=lambda *now: told.append(now)
        )
    assert told == sorted(told, key=lambda now: now[0])
    return found, json.loads((folder / "out.json").read_text())


def test_the_record_is_written_and_says_what_was_done(record):
    found, written = record
    assert found.model_dump(mode="json") == written
    assert written["task"]["chips"] == {"train": 18, "val": 6, "test": 6}
    assert written["task"]["bands_in_file"] == ["8", "13", "3"]
    assert "not geographic" in written["task"]["split"]


def test_every_feature_is_scored_by_every_probe_at_every_budget(record):
    """More labels a class than there are is no budget."""
    scores = record[1]["scores"]
    assert {name: [*each] for name, each in scores.items()} == {
        "linear": ["3", "all"],
        "nearest_5": ["3", "all"],
    }
    for each in scores.values():
        assert [*each["all"]][-1] == "majority"
        assert len(each["3"]["encoder"]["accuracy"]["per_seed"]) == outside.NUM_DRAWS


def test_classes_that_brightness_tells_apart_are_told_apart(record):
    """Band statistics must get them all right, and a constant answer a third."""
    linear = record[1]["scores"]["linear"]["all"]
    assert linear["band_statistics"]["accuracy"]["mean"] == 1
    assert linear["majority"]["accuracy"]["mean"] == pytest.approx(1 / 3)
    assert linear["majority"]["balanced_accuracy"]["mean"] == pytest.approx(1 / 3)
    encoder = linear["encoder"]["accuracy"]["mean"]
    assert linear["majority"]["accuracy"]["against_base"] == pytest.approx(1 / 3 - encoder)


def test_the_table_has_a_line_for_every_score_and_one_for_the_constant_answer(record):
    table = rows(record[0])
    assert len(table) == 2 * 2 * 5 + 1
    assert {len(line) for line in table} == {len(HEADER)}
    assert [line[2] for line in table if not line[5]] == ["encoder"] * 4 + ["majority"]


def test_nothing_of_val_and_test_is_learnt(eurosat, run, tmp_path, monkeypatch):
    """Neighbours are those of train, and the standardisation too."""
    task, _ = open_task(eurosat, run)
    found = extract_task(task, extractors_of(task, run, "bilinear"), 32, 8)["encoder"]
    other = Features(found["val"].values * 1e6, *(getattr(found["val"], n) for n in NAMES))
    fitted = outside.PROBES["nearest_5"](found["train"], found["val"])
    again = outside.PROBES["nearest_5"](found["train"], other)
    test = found["test"].values
    assert np.array_equal(fitted.predict(test), again.predict(test))


NAMES = ("labels", "block", "chip")


def test_few_labels_are_drawn_alike_for_every_feature():
    labels, place = np.repeat([0, 1, 2], [50, 50, 2]), np.arange(102)
    drawn = []

    def fit(train, val):
        drawn.append(train)
        return outside.PROBES["nearest_5"](train, val)

    for values in (np.zeros((102, 1), np.float32), np.ones((102, 4), np.float32)):
        splits = dict.fromkeys(("train", "val", "test"), Features(values, labels, place, place))
        assert confusions(splits, fit, 5, 3).sum(-1).sum(1).tolist() == [[50, 50, 2]] * 5
    for one, other in zip(drawn[:5], drawn[5:], strict=True):
        assert np.bincount(one.labels).tolist() == [5, 5, 2]
        assert np.array_equal(one.chip, other.chip)
    assert not np.array_equal(drawn[0].chip, drawn[1].chip)
