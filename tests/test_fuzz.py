"""Every kind of file that may come from anybody, damaged in hundreds of ways.

``python -m pytest tests/test_fuzz.py -s`` prints what came of the cases, as a table. A new kind of
file is one more entry of ``KINDS``.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from bharateo.chips.records import RecordReader
from bharateo.chips.store import LAYERS, SPLITS, Dataset
from bharateo.embedding.encoder import FrozenEncoder
from bharateo.evaluation import probing
from bharateo.evaluation.evaluate import evaluate
from bharateo.evaluation.probes import fit_linear, save_probe
from bharateo.handover.card import model_card
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.mapping.area import open_area
from bharateo.mapping.classifier import probe_classifier
from bharateo.report import html
from bharateo.training.checkpoint import Run, majority_class, model_statistics
from bharateo.training.loop import Trainer, pretrain
from damage import (
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
from mapping.areas import table
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
    html.shown(dataset)
    html.regions(dataset)
    dataset.with_bands(dataset.sensor.band_names[:1]).image(0)


def go_on_training(file: Path) -> None:
    """Training that finds a checkpoint and what was told so far."""
    run = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    trainer = Trainer(Dataset.open(run.parent / "dataset"), CONFIG, run)
    trainer.train()


def report_and_card(file: Path) -> None:
    """The page and the model card of a run; of its chips none is drawn."""
    files = html.read_run(file.parent)
    dataset = Dataset.open(html._evaluated_dataset(file.parent, files))
    kept = _maps(file.parent.parent / "dataset")
    with patch.object(html, "regions", lambda _: kept):
        html.article(files, dataset, [])
    model_card(Run.open(file.parent))


@cache
def _maps(path: Path) -> dict[str, Any]:
    """The page's maps, drawn once: they are not of the run."""
    return html.regions(Dataset.open(path))


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
    assert not counts.wrong, f"{len(counts.wrong)} of {kind.num_cases}:\n{wrong}"
    assert counts.refused
