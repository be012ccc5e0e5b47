"""A dataset folder that somebody else may have written: opened as it was, or refused in a line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bharateo
from bharateo.chips.records import RecordReader
from bharateo.chips.store import LAYERS, Dataset
from bharateo.errors import DatasetError
from damage import change as change_json


@pytest.fixture
def folder(reflectance_dataset, tmp_path):
    return shutil.copytree(reflectance_dataset.path, tmp_path / "dataset")


def change(folder, path, value):
    change_json(folder / "dataset.json", path, value)


def refused(folder, said):
    with pytest.raises(DatasetError, match=said) as refusal:
        Dataset.open(folder)
    text = str(refusal.value)
    assert str(folder) in text
    assert text.isprintable() and len(text) < 500


def test_a_layer_of_python_objects_is_refused_before_a_byte_is_taken_for_one(folder):
    """It ended the interpreter: the shard's bytes became pointers."""
    change(folder, "layers.image.dtype", "O")
    change(folder, "layers.image.shape_per_chip", [2, 48, 12])  # as many bytes as before
    program = f"from bharateo.chips.store import Dataset; Dataset.open({str(folder)!r}).image(0)[0]"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(bharateo.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "layers.image.dtype: input should be 'uint8' or 'uint16', not 'O'" in ended.stderr


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("layers.image.dtype", "uint8", "layers.image is uint8"),
        ("layers.landcover.dtype", "uint16", "layers.landcover is uint16"),
        ("layers.image.shape_per_chip", [2, 48], "layers.image is uint16"),
        ("layers.valid.shape_per_chip", [48, -6], "layers.valid.shape_per_chip.1"),
        ("chip.size_px", 10**9, "chip.size_px"),
        ("chip.num_chips", 33, "chip.num_chips is 33"),
        ("shards", [], "shards"),
        ("shards.0.num_chips", 0, "num_chips"),
        ("shards.0.image.bytes", 10, "is no header and 3. chips"),
        ("shards.0.image.file", "../../../etc/passwd", "file is not image-00000.npy"),
        ("shards.0.image.file", "/etc/passwd", "file is not image-00000.npy"),
        ("shards.0.image.file", "landcover-00000.npy", "file is not image-00000.npy"),
        ("regions.0.name", "../../west", "regions.0.name"),
        ("regions.1.name", "west", "'west' twice"),
        ("regions.0.shape", [240], "regions.0.shape"),
        ("regions.0.overview.step_px", 0, "step_px"),
        ("regions.0.native_counts", {}, "native_counts"),
        ("regions.0.transform", [0.0] * 6, "no area"),
        ("sensor.bands", [], "sensor.bands"),
        ("sensor.scale", "1", "sensor.scale"),
        ("sensor.composites.all.bands", ["B01", "B02", "B99"], "none of bands"),
        ("statistics.std", [-1.0, 1.0], "statistics.std"),
        ("statistics.mean", [0.0], "statistics.mean"),
        ("class_scheme.native", {"10": ["Tree", -1]}, "class_scheme.native"),
        ("splits", {"train": -1}, "splits.train"),
        ("warnings", "one", "warnings"),
        ("sensor", ..., "sensor is missing"),
        ("schema_version", "2\x1b[31m" * 1000, "schema_version"),
    ],
)
def test_what_a_description_cannot_say_is_refused_by_key(folder, path, value, said):
    change(folder, path, value)
    refused(folder, said)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_pipe_in_place_of_a_shard_is_refused_at_once(folder, layer):
    file = folder / f"{layer}-00000.npy"
    file.unlink()
    os.mkfifo(file)
    refused(folder, f"{file.name} is missing, or no file")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["dataset.json", "chips.parquet"])
def test_a_pipe_in_place_of_another_file_is_refused_at_once(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DatasetError, match="no ordinary file"):
        Dataset.open(folder).column("split")


@pytest.mark.timeout(20)
def test_a_pipe_that_came_after_the_dataset_was_opened_is_not_waited_for(folder):
    dataset, zero = Dataset.open(folder), np.zeros(1, np.int64)
    file = folder / "image-00000.npy"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DatasetError, match="no ordinary file"):
        dataset.image(0)
    lies = dataset.layers["image"]
    with pytest.raises(DatasetError, match="image-00000"):
        RecordReader(dataset).read("image", zero, zero, zero, np.empty((1, *lies.shape), "<u2"))


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(folder, tmp_path):
    file, other = folder / "image-00000.npy", tmp_path / "other.npy"
    file.rename(other)
    file.symlink_to(other)
    refused(folder, "is a link out of the dataset")
    file.unlink()
    other.rename(folder / "kept.npy")
    file.symlink_to("kept.npy")
    assert Dataset.open(folder).image(0).any()


def test_a_dataset_in_the_cache_of_the_hub_links_to_its_blobs(folder, tmp_path):
    snapshot, blobs = tmp_path / "datasets--x/snapshots/1a/d", tmp_path / "datasets--x/blobs"
    blobs.mkdir(parents=True)
    shutil.move(folder, snapshot)
    for file in [each for each in snapshot.rglob("*") if each.is_file()]:
        shutil.move(file, blobs / file.name)
        file.symlink_to(blobs / file.name)
    dataset = Dataset.open(snapshot)
    assert dataset.image(0).any()
    assert dataset.overview("west")[0].any()


# Overviews


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "objects", "type", "shape", "cut", "zip", "link"])
def test_an_overview_that_is_no_plain_array_of_its_size_is_refused(folder, tmp_path, kind):
    file = folder / "overviews/west-image.npy"
    array, content = np.load(file), file.read_bytes()
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "objects":
        np.save(file, array.astype(object))
    elif kind == "type":
        np.save(file, array.astype(np.float64))
    elif kind == "shape":
        np.save(file, array[:, 1:])
    elif kind == "cut":
        file.write_bytes(content[:-1])
    elif kind == "zip":
        np.savez(file.with_suffix(".npz"), array)
        file.with_suffix(".npz").rename(file)
    else:
        (tmp_path / "other.npy").write_bytes(content)
        file.symlink_to(tmp_path / "other.npy")
    dataset = Dataset.open(folder)
    with pytest.raises(DatasetError, match=r"west-image\.npy"):
        dataset.overview("west")
    assert dataset.overview("east")[0].any()


# The table


def table_with(folder, name, make):
    """The table with a column made anew from its values."""
    table = pq.read_table(folder / "chips.parquet")
    place = table.column_names.index(name)
    table = table.set_column(place, name, make(table.column(place)))
    pq.write_table(table, folder / "chips.parquet")


def first(value):
    """The column with another first value."""
    return lambda column: pa.array([value, *column.to_pylist()[1:]], column.type)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("split", first("Train"), "holds 'Train'"),
        ("split", first(None), "without a value"),
        ("split", lambda column: pa.array(range(len(column))), "is int64, no text"),
        ("region", first("north"), "holds 'north'"),
        ("block", first("x" * 9000), "holds 'xxx"),
        ("row", first(2**40), "is 1099511627776 for chip 0"),
        ("row", lambda column: pa.array([[1]] * len(column)), "no whole"),
        ("x", first(float("inf")), "is inf for chip 0"),
        ("valid_fraction", first(1.5), "is 1.5 for chip 0"),
        ("size_px", first(-1), "is -1 for chip 0"),
        ("chip", first(1), "is 1 for chip 0"),
        ("shard", first(7), "is 7 for chip 0"),
        ("shard_row", first(-2), "is -2 for chip 0"),
        ("majority_class", first("lava"), "holds 'lava'"),
    ],
)
def test_a_column_is_of_its_type_and_within_its_bounds_or_refused(folder, name, make, said):
    table_with(folder, name, make)
    dataset = Dataset.open(folder)
    for read in (lambda: dataset.column(name), lambda: dataset.chips):
        with pytest.raises(DatasetError, match=f"column {name} .*{said}") as refusal:
            read()
        assert str(folder) in str(refusal.value)
        assert len(str(refusal.value)) < 500


def test_a_footprint_that_is_no_outline_is_refused(folder):
    for value in (b"x", None, b"\x01\x01\x00\x00\x00" + bytes(16)):
        table_with(folder, "geometry", first(value))
        with pytest.raises(DatasetError, match="column geometry"):
            Dataset.open(folder).footprints()


def test_a_table_of_other_rows_or_no_table_is_refused(folder):
    file = folder / "chips.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    with pytest.raises(DatasetError, match="31 rows for 32 chips"):
        Dataset.open(folder).column("split")
    pq.write_table(table, file)
    file.write_bytes(file.read_bytes()[:-4] + b"PAR2")
    with pytest.raises(DatasetError, match="is no table of this dataset's chips"):
        Dataset.open(folder).column("split")
    file.unlink()
    with pytest.raises(DatasetError, match="is no table of this dataset's chips"):
        Dataset.open(folder).column("split")


def test_a_reference_system_that_nobody_knows_is_refused_by_name(folder):
    change(folder, "regions.0.crs", "EPSG:999999")
    with pytest.raises(DatasetError, match="crs 'EPSG:999999' of 'west' is no reference system"):
        Dataset.open(folder).geobox("west")
