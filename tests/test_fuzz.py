"""Every kind of file that may come from anybody, damaged in hundreds of ways.

``python -m pytest tests/test_fuzz.py -s`` prints what came of the cases, as a table. A new kind of
file is one more entry of ``KINDS``; rasters, which need a server beside, are in
``test_raster_fuzz.py``, and items of catalogues with the catalogues.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import torch
import yaml

from bharateo.chips.records import RecordReader
from bharateo.chips.store import LAYERS, SPLITS, Dataset
from bharateo.config import load_config, preset_path
from bharateo.evaluation import probing
from bharateo.evaluation.evaluate import evaluate
from bharateo.evaluation.own_classes import probe_classifier
from bharateo.evaluation.probes import fit_linear, save_probe
from bharateo.handover.card import model_card
from bharateo.inference.area import open_area
from bharateo.inference.encoder import FrozenEncoder
from bharateo.inference.points import read_all_points
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.regions import parse_roi, worldcover_region
from bharateo.report import ground, html
from bharateo.sources.areas import _roi_zone, file_zones, sentinel2_regions
from bharateo.training.loop import Trainer, pretrain
from bharateo.training.run import Run, majority_class, model_statistics
from damage import (
    EVERY,
    HEAD,
    Counts,
    Kind,
    damaged_bytes,
    damaged_json,
    damaged_lines,
    damaged_safetensors,
    damaged_tree,
    json_text,
    summary,
    survey,
)
from inference.areas import table
from small_datasets import many_bands, small_config, small_dataset

CONFIG = small_config(epochs=1)

# Valid examples: a dataset, and a run that has everything a run can have


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``dataset`` and ``run``."""
    folder = tmp_path_factory.mktemp("whole")
    dataset = small_dataset(folder / "dataset", many_bands(2))
    run = pretrain(dataset, CONFIG, folder / "run")
    evaluate(run, dataset, run.path / "evaluation.json")
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(probing, "NUM_DRAWS", 2)
        fewer.setattr("bharateo.evaluation.probes.NUM_TREES", 3)
        few = {"budgets": (2, "all"), "features": ("encoder", "band_statistics")}
        probing.probe_run(run, dataset, run.path / "probes.json", **few)
    (run.path / "provenance.json").write_text(json.dumps({"why": "A test.", "place": "nowhere"}))
    event = {"step": 0, "spike": "loss", "value": 2.0, "usual": 1.0}
    (run.path / "events.jsonl").write_text(f"{json.dumps(event)}\n" * 2)
    features = np.random.default_rng(0).normal(size=(60, run.model.config.width))
    probe = fit_linear(features.astype(np.float32), np.arange(60) % 3)
    save_probe(run.path / "probe.safetensors", probe, {"weights_sha256": run.weights_sha256})
    yield folder


def copied(whole: Path, folder: Path) -> Path:
    """A copy of everything, to damage."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    return folder


# Who reads them


def read_pixels(file: Path) -> Dataset:
    """Chips by both readers, and their columns; ``file`` is in the dataset or in its overviews."""
    folder = file.parent if file.parent.name == "dataset" else file.parent.parent
    dataset = Dataset.open(folder)
    for name in ("split", "block", "region", "scene", "valid_fraction"):
        assert len(dataset.column(name)) == dataset.num_chips
    chips = np.array([0, dataset.num_chips // 2, dataset.num_chips - 1])
    for chip in chips.tolist():
        assert dataset.image(chip).shape == (2, dataset.size_px, dataset.size_px)
        assert dataset.landcover(chip).max() <= 255
        assert dataset.valid(chip).dtype == bool
    reader, zero = RecordReader(dataset), np.zeros(len(chips), np.int64)
    for name in LAYERS:
        lies = dataset.layers[name]
        out = np.empty((len(chips), *lies.shape), lies.dtype)
        reader.read(name, chips, zero, zero, out)
    return dataset


def read_dataset(file: Path) -> None:
    """Everything that is read of a dataset."""
    dataset = read_pixels(file)
    assert len(dataset.chips) == dataset.num_chips
    assert len(dataset.footprints()) == dataset.num_chips
    assert sum(len(dataset.indices(split)) for split in SPLITS) == dataset.num_chips
    assert 0 <= majority_class(dataset) < len(BHARATEO_CLASSES)
    assert all(dataset.geobox(name).shape for name in dataset.regions)
    model_statistics(dataset)
    ground.shown(dataset)
    ground.regions(dataset)
    dataset.with_bands(dataset.sensor.band_names[:1]).image(0)


def go_on_training(file: Path) -> None:
    """Training that finds a checkpoint and what was told so far."""
    run = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    trainer = Trainer(Dataset.open(run.parent / "dataset"), CONFIG, run)
    trainer.train()


def report_and_card(file: Path) -> None:
    """The page and the model card of a run; of its chips none is drawn."""
    files = html.read_run(file.parent)
    dataset = Dataset.open(html.evaluated_dataset(file.parent, files))
    kept = _maps(file.parent.parent / "dataset")
    with patch.object(ground, "regions", lambda _: kept):
        html.article(files, dataset, [])
    model_card(Run.open(file.parent))


@cache
def _maps(path: Path) -> dict[str, Any]:
    """The page's maps, drawn once: they are not of the run."""
    return ground.regions(Dataset.open(path))


def open_run(file: Path) -> None:
    """A run, its model asked for features and its card written."""
    run = Run.open(file.parent)
    config = run.model.config
    image = torch.zeros(1, run.sensor.num_bands, config.chip_px, config.chip_px)
    valid = torch.ones(1, config.chip_px, config.chip_px, dtype=torch.bool)
    FrozenEncoder.of_run(run).features(image, valid)
    model_card(run)
    run.check(Dataset.open(file.parent.parent / "dataset"))


def classify_by_probe(file: Path) -> None:
    """A probe on a run's features."""
    run = Run.open(file.parent)
    look = probe_classifier(run, file).look
    px = run.model.config.chip_px
    look(torch.zeros(1, 2, px, px), torch.ones(1, px, px, dtype=torch.bool))


# Damage that one format knows


def damaged_array(rng: random.Random, content: bytes) -> bytes:
    """An .npy file with another header, or other bytes."""
    if rng.random() < 0.4:
        return damaged_bytes(rng, content)
    array = np.load(io.BytesIO(content))
    header = np.lib.format.header_data_from_array_1_0(array)
    name = rng.choice(list(header))
    odd: dict[str, list[Any]] = {
        "descr": ["O", "|O", "<f8", ">u2", "|S3", "<U5", "<M8[s]", "|b1", "|V7", [("a", "<u2")],
                  "", 7, None, "i" * 5000],
        "fortran_order": [True, None, "no", 1],
        "shape": [(), (-1, 3), (0,), (2**40, 2**40), array.shape[::-1], (array.size,), (1.5, 2),
                  None, "x", (10**30,), array.shape * 3, (*array.shape[:-1], array.shape[-1] * 2)],
    }  # fmt: skip
    header[name] = rng.choice(odd[name])
    if rng.random() < 0.1:
        del header[name]
    text = repr(header).encode()
    own = len(content) - array.nbytes
    text += b" " * max(0, own - len(text) - 11) + b"\n"
    return b"\x93NUMPY\x01\0" + (len(text) % 2**16).to_bytes(2, "little") + text + content[own:]


def damaged_yaml(rng: random.Random, content: bytes) -> bytes:
    """A configuration with values changed, or now and then its bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, content)
    return json_text(damaged_tree(rng, yaml.safe_load(content))).encode()


TOKENS = (
    "2021-13-45", "2021-02-30", "2021-01-01 25:61:61", "0001-01-01", "9" * 5000, "-" + "9" * 5000,
    "0." + "1" * 5000, "1e" + "9" * 50, "1e999", "-1e999", "0b2", "0b", "0x", "0xg", "0o8", "08",
    "0_", "_", "1:99:99", "9" * 400 + ":59", "[" * 3000, "[" * 15 + "]" * 15, "{a: " * 3000,
    "- " * 3000, "? " * 3000, "[[[[", "]]]]", "{", "}", "*a", "&a", "&a [*a]", "&a {b: *a}",
    "{<<: {a: 1}}", "{<<: [*a, *b]}", "!!int x", "!!float x", "!!timestamp x", "!!binary '*'",
    "!!set {a}", "!!omap [a]", "!!python/object/apply:os.getcwd []", "!!python/name:os.getcwd ''",
    "! x", "!<tag:x> x", "!!", "%YAML 9.9", "%TAG ! x", "--- ", "...", "? [a, b]\n: c", "{[a]: 1}",
    "<<: 1", "{1: 2}", "{1.5: 2}", "{null: 2}", "{true: 2}", "{2021-01-01: 2}", "{a: 1, a: 2}",
    ".nan", ".inf", "-.inf", "nan", "null", "~", "true", "yes", "off", "''", '""', '"', "'", "\\",
    '"\\x00"', '"\\U99999999"', '"\\ud800"', '"\\q"', "|", ">", "|99", "@", "`",
    "x" * 100_000, "é" * 50_000,
    "\t", "\x85", "\u2028", "\ufeff", "#", "-", "-1", "0", "0.5", "1", "1.5", "1e9", "-0.0", "[]",
    "{}", "[1, 2]", "[a, b, c, d]", '{"class_path": "os.getcwd", "init_args": {}}',
)  # fmt: skip


def damaged_text(rng: random.Random, content: bytes) -> bytes:
    """A YAML file in which a value is what a parser may stumble over, or a damaged one."""
    values = list(re.finditer(rb"(?<=: )[^\s,{}\[\]]+", content))
    if rng.random() < 0.4 or not values:
        return damaged_yaml(rng, content)
    value, token = rng.choice(values), rng.choice(TOKENS).encode("utf-8", "surrogatepass")
    return content[: value.start()] + token + content[value.end() :]


def damaged_settings(rng: random.Random, content: bytes) -> bytes:
    """Some of the lines KEY=VALUE, of keys as they are or odd, with a value to stumble over."""
    keys = [line.partition("=")[0] for line in content.decode().splitlines()]
    key = rng.choice(keys)
    key = rng.choice((key, key, key, f"{key}.x", f"{key}s", f".{key}", "", "a." * 3000, "x" * 5000))
    lines = [f"{key}={rng.choice(TOKENS)}", rng.choice(("model.size=base", "training.epochs=2"))]
    return json.dumps(lines).encode()


def damaged_places(rng: random.Random, content: bytes) -> bytes:
    """A text of a region or of rows, with signs of it changed."""
    pieces = list(content.decode())
    for _ in range(rng.choice((1, 2, 4))):
        place, way = rng.randrange(len(pieces)), rng.randrange(3)
        if way == 0:
            pieces[place] = rng.choice(("-", ",", "=", "e", "9" * 20, "\n", "nan", "inf", ".", "²"))
        elif way == 1:
            pieces[place] = ""
        else:
            pieces.insert(
                place, rng.choice(("x", "\0", "9" * 5000, "1e999", "-" * 3000, "é\u202e"))
            )
    return "".join(pieces).encode()


def damaged_table(rng: random.Random, content: bytes) -> bytes:
    """A Parquet file with a column changed, or its rows, or its bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, content)
    whole = pq.read_table(io.BytesIO(content))
    place = rng.randrange(whole.num_columns)
    name, values = whole.column_names[place], whole.column(place).to_pylist()
    way = rng.choice(("values",) * 6 + ("drop", "rename", "rows", "twice", "more", "order", "none"))
    if way == "values":
        whole = whole.set_column(place, name, _odd_column(rng, values, whole.column(place).type))
    elif way == "drop":
        whole = whole.drop_columns([name])
    elif way == "rename":
        names = whole.column_names
        names[place] = rng.choice(("", "x", name.upper(), rng.choice(names)))
        whole = whole.rename_columns(names)
    elif way == "rows":
        whole = whole.slice(rng.choice((0, 1)), rng.choice((0, 1, whole.num_rows - 1)))
    elif way == "twice":
        whole = pa.concat_tables([whole, whole])
    elif way == "more":
        whole = whole.append_column(f"more {name}", whole.column(place))
    elif way == "order":
        whole = whole.take(rng.sample(range(whole.num_rows), whole.num_rows))
    else:
        whole = whole.replace_schema_metadata(rng.choice((None, {"geo": "{"}, {"geo": "[1]"})))
    file = io.BytesIO()
    pq.write_table(whole, file)
    return file.getvalue()


def _odd_column(rng: random.Random, values: list[Any], kind: pa.DataType) -> pa.Array:
    """A column's values, one or all of them odd, of its own type or another."""
    every = rng.random() < 0.3
    some = set(range(len(values))) if every else {rng.randrange(len(values))}
    odd: list[Any] = [None]
    if pa.types.is_integer(kind):
        odd += [-1, 0, 1, 2**31 - 1, 10**6]
    elif pa.types.is_floating(kind):
        odd += [-1.0, 2.0, float("nan"), float("inf"), 1e300]
    elif pa.types.is_string(kind):
        odd += ["", "x", "../..", "\x1b[31m", "long" * 9000, "Train"]
    elif pa.types.is_binary(kind):
        odd += [b"", b"x", b"\x01" * 50]
    value = rng.choice(odd)
    changed = [value if number in some else each for number, each in enumerate(values)]
    other = rng.choice((None, None, None, pa.string(), pa.float32(), pa.list_(pa.int64()),
                        pa.binary(), pa.int8(), pa.bool_(), pa.null(), pa.dictionary(pa.int8(),
                        pa.string())))  # fmt: skip
    if other is None:
        return pa.array(changed, kind)
    if pa.types.is_null(other):
        return pa.nulls(len(values))
    if pa.types.is_list(other):
        return pa.array([[1]] * len(values), other)
    if pa.types.is_floating(other) or pa.types.is_integer(other) or pa.types.is_boolean(other):
        return pa.array([rng.randrange(2) for _ in values]).cast(other)
    texts = pa.array([str(each)[:9] for each in values])
    return texts.dictionary_encode() if pa.types.is_dictionary(other) else texts.cast(other)


def _in(name: str, whole: Path, folder: Path) -> Path:
    return copied(whole, folder) / name


def _unfinished(name: str, whole: Path, folder: Path) -> Path:
    """A run that was stopped after its first steps: a checkpoint, and no contract."""
    run = copied(whole, folder) / "run"
    (run / "contract.json").unlink()
    return run / name


def _without_checksum(name: str, whole: Path, folder: Path) -> Path:
    """A run from before there were checksums: whatever is wrong with it must be seen."""
    run = copied(whole, folder) / "run"
    contract = json.loads((run / "contract.json").read_text())
    del contract["weights"]
    (run / "contract.json").write_text(json.dumps(contract))
    return run / name


def _table_of_vectors(whole: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    return table(folder / "vectors.parquet", rng.normal(size=(20, 30, 6)).astype(np.float32))


def read_vectors(file: Path) -> None:
    """A table of vectors as the search reads it."""
    area = open_area(file)
    assert area.lonlat.shape[0] == 2
    for places, _ in area.chunks():
        area.vectors(places[:2])
    area.rows(np.array([0, 1]))


def _shipped(name: str, whole: Path, folder: Path) -> Path:
    """A configuration that comes with the package."""
    folder.mkdir()
    return Path(shutil.copy(preset_path(name), folder))


def _settings(whole: Path, folder: Path) -> Path:
    """Every key of a configuration with a value that it may have, as a list of --set."""
    folder.mkdir()
    file = folder / "settings"
    file.write_text("training.epochs=5\nmodel.width=64\nheads.pixels.options.beta=0.1\n"
                    "data.plan.split.val=0.1\ndata.bands=[rgb]\nmachine.device=cpu\n")  # fmt: skip
    return file


def read_settings(file: Path) -> None:
    """A list of --set, as lines or as JSON, over a configuration."""
    text = file.read_text()
    load_config("v0", json.loads(text) if text.startswith("[") else text.splitlines())


def _places(name: str, whole: Path, folder: Path) -> Path:
    """Three areas with a class each, or a point in each of them."""
    folder.mkdir()
    shapes = [
        shapely.box(77, 28, 77.1, 28.1),
        shapely.Polygon([(78, 28), (78.2, 28.2), (78.2, 28), (78, 28.2)]),
        shapely.MultiPolygon(
            [shapely.box(79, 28, 79.3, 28.3) - shapely.box(79.1, 28.1, 79.2, 28.2)]
        ),
    ]
    frame = gpd.GeoDataFrame({"class": ["a", "b", "c"]}, geometry=shapes, crs=4326)
    if name.startswith("points"):
        frame = frame.set_geometry(frame.geometry.representative_point())
    file = folder / name
    if file.suffix == ".csv":
        rows = zip(frame.geometry.x, frame.geometry.y, frame["class"], strict=True)
        file.write_text("lon,lat,class\n" + "".join(f"{x},{y},{c}\n" for x, y, c in rows))
    else:
        frame.to_file(file)
    return file


def read_areas(file: Path) -> None:
    """The areas of a build."""
    with warnings.catch_warnings(action="ignore"):  # what GDAL says of damaged files
        sentinel2_regions(file_zones(file, "class"), (1, 1))


def read_points(file: Path) -> None:
    """A person's points."""
    with warnings.catch_warnings(action="ignore"):
        read_all_points([file])


def _region(text: str, whole: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "roi").write_text(text)
    return folder / "roi"


def read_region(file: Path) -> None:
    """What stands behind --roi."""
    roi = parse_roi(file.read_text())
    worldcover_region(roi)
    sentinel2_regions([_roi_zone(roi)], (1, 1))


Example = Callable[[Path, Path], Path]
"""(whole, folder) -> the file to damage, in a copy of the examples."""

KINDS: dict[str, tuple[Example, Kind]] = {
    "dataset.json": (
        partial(_in, "dataset/dataset.json"), Kind(damaged_json, read_dataset, 300)
    ),
    "chips.parquet": (
        partial(_in, "dataset/chips.parquet"), Kind(damaged_table, read_dataset, 300)
    ),
    **{
        f"shard of {name}": (
            partial(_in, f"dataset/{name}-00000.npy"), Kind(damaged_array, read_pixels, 100, 20)
        )
        for name in LAYERS
    },
    **{
        f"overview of {name}": (
            partial(_in, f"dataset/overviews/west-{name}.npy"),
            Kind(damaged_array, read_dataset, 100, 20),
        )
        for name in LAYERS
    },
    "checkpoint": (
        partial(_unfinished, "checkpoints/last.safetensors"),
        Kind(partial(damaged_safetensors, own=("progress",)), go_on_training, 200),
    ),
    **{
        f"{name}.jsonl, training": (
            partial(_unfinished, f"{name}.jsonl"), Kind(damaged_lines, go_on_training, 150)
        )
        for name in ("history", "events")
    },
    **{
        f"{name}, report and card": (
            partial(_in, f"run/{name}"),
            Kind(damaged, report_and_card, 80),
        )
        for name, damaged in {
            "history.jsonl": damaged_lines, "provenance.json": damaged_json,
            "evaluation.json": damaged_json, "probes.json": damaged_json,
            "config.yaml": damaged_yaml,
        }.items()
    },
    "contract.json": (partial(_in, "run/contract.json"), Kind(damaged_json, open_run, 300)),
    "contract.json, report": (
        partial(_in, "run/contract.json"), Kind(damaged_json, report_and_card, 80)
    ),
    "model.safetensors": (
        partial(_without_checksum, "model.safetensors"), Kind(damaged_safetensors, open_run, 300)
    ),
    "probe.safetensors": (
        partial(_in, "run/probe.safetensors"),
        Kind(partial(damaged_safetensors, own=("probe",)), classify_by_probe, 200),
    ),
    "vectors.parquet": (_table_of_vectors, Kind(damaged_table, read_vectors, 200)),
    **{
        f"configuration {name}": (
            partial(_shipped, name), Kind(damaged_text, load_config, 100, 50)
        )
        for name in sorted(file.stem for file in preset_path("v0").parent.glob("*.yaml"))
    },
    "--set": (_settings, Kind(damaged_settings, read_settings, 300, 0)),
    **{
        name: (partial(_places, name), Kind(damage, use, num_cases))
        for name, damage, use, num_cases in (
            ("areas.geojson", damaged_json, read_areas, 250),
            ("areas.gpkg", damaged_bytes, read_areas, 80),
            ("areas.fgb", damaged_bytes, read_areas, 80),
            ("areas.shp", damaged_bytes, read_areas, 80),
            ("points.geojson", damaged_json, read_points, 150),
            ("points.gpkg", damaged_bytes, read_points, 80),
            ("points.csv", damaged_places, read_points, 150),
        )
    },
    **{
        f"--roi {text}": (
            partial(_region, text), Kind(damaged_places, read_region, 80, 0)
        )
        for text in ("delhi_ncr", "here=77.23,28.61,512", "box=76.5,27.5,77.5,28.0",
                     "edge=179,-10,-179,10", "pole=-10,-90,20,-89")
    },
}  # fmt: skip

_COUNTS: dict[str, Counts] = {}


@pytest.fixture(scope="module", autouse=True)
def shown(request: pytest.FixtureRequest) -> Iterator[None]:
    """The counts of every kind, printed when all are there."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        if request.config.getoption("capture") == "no":
            print("", HEAD, *(counts.row(name) for name, counts in _COUNTS.items()), sep="\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_taken_or_refused_by_name_in_one_line(
    name: str, whole: Path, tmp_path: Path
):
    example, kind = KINDS[name]
    counts = _COUNTS[name] = survey(name, kind, example(whole, tmp_path / "copy"))
    wrong = "\n".join(f"{num} x {what}" for what, num in summary(counts.wrong).items())
    assert not counts.wrong, f"{len(counts.wrong)} of {kind.num_cases // EVERY}:\n{wrong}"
    assert counts.refused
