"""A third head, in one file beside the package, has everything that the two others have."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

import bharateo
from bharateo.config import HeadConfig
from bharateo.inference.inputs import Reading
from bharateo.models.heads import HEADS
from bharateo.training.loop import pretrain
from bharateo.training.planning import Cost
from documented import ROOT, blocks
from small_datasets import many_bands, small_config, small_dataset

HEAD = ROOT / "tests" / "ndvi_head.py"
PAGE = ROOT / "docs" / "how-to" / "new-pretext-task.md"
PROGRAM = """
import sys
from bharateo.inference.inputs import Reading
from bharateo.models.heads import HEADS
known = {*HEADS}
import ndvi_head
print(*({*HEADS} - known), *sorted(name for name in sys.modules if "ndvi" in name))
"""


@pytest.fixture
def ndvi():
    """The head's file, imported as a person would, and forgotten afterwards."""
    known = dict(HEADS)
    exec(compile(HEAD.read_text(), str(HEAD), "exec"), {})
    yield HeadConfig(0.1, {"red": 0, "nir": 1})
    HEADS.clear()
    HEADS.update(known)


def write_raster(path, dataset):
    """The first region of a dataset as a file of its bands, as stored."""
    chips = dataset.chips[dataset.chips["region"] == dataset.regions[0]]
    stored = np.concatenate([dataset.image(chip) for chip in chips["chip"][:2]], 2)
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32643", transform=Affine(10, 0, 4e5, 0, -10, 3e6),
        width=stored.shape[2], height=stored.shape[1], count=len(stored), dtype="uint16",
    ) as file:  # fmt: skip
        file.write(stored)
        file.descriptions = dataset.sensor.band_names
    return path


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_it_is_planned_trained_forecast_evaluated_reported_and_mapped(ndvi, tmp_path):
    dataset = small_dataset(tmp_path / "dataset", many_bands(2))
    config = small_config(epochs=1, batch_size=2, chips_per_epoch=2000)
    config = replace(config, heads={**config.heads, "ndvi": ndvi})
    without = replace(config, heads=small_config().heads)

    # planned: its parameters and products are in the account, whatever it is made of
    assert Cost.of(config, 2).training > Cost.of(without, 2).training

    # trained for a thousand steps, with the forecast of a run of 600 or more
    said = []
    run = pretrain(dataset, config, tmp_path / "run", say=said.append)
    assert any(re.match(r"planned: .* all 1,000 steps", line) for line in said)
    assert any(line.startswith("after 200 steps: ") for line in said)
    (epoch,) = map(json.loads, (run.path / "history.jsonl").read_text().splitlines())
    assert epoch["ndvi_mae"] < 0.5

    # evaluated: its metric with its own title, beside its own baselines
    record = bharateo.evaluate(run)
    (metric,) = (each for each in record.metrics if each.head == "ndvi")
    assert (metric.name, metric.title, metric.weight) == ("ndvi_mae", "NDVI, masked", 0.1)
    scores = record.splits["test"]
    reached = {name: each.value("ndvi_mae") for name, each in scores.baselines.items()}
    assert [*reached] == ["majority", "nearest_visible", "mean_colour", "bilinear"]
    assert 0 < scores.model.value("ndvi_mae") < reached["majority"]
    assert scores.model_against_nearest_visible.value("ndvi_mae_ratio") == pytest.approx(
        scores.model.value("ndvi_mae") / reached["nearest_visible"]
    )
    own = [each.weight * scores.model.value(each.name) for each in record.metrics if each.weight]
    assert scores.model.value("loss") == pytest.approx(sum(own))
    written = json.loads((run.path / "evaluation.json").read_text())
    assert "NDVI, masked" in [each["title"] for each in written["metrics"]]

    # reported: a column, a curve, a sentence, and a picture of true, predicted and copied values
    page = bharateo.write_report(run).read_text()
    for words in ("NDVI, masked</b>", "0.1 × NDVI, masked", "NDVI of chip", "off by"):
        assert words in page
    assert page.count("NDVI of chip") % 3 == 0

    # mapped: a layer beside the classes, one number a patch
    raster = write_raster(tmp_path / "raster.tif", dataset)
    reading = Reading(allow=frozenset({"statistics", "domain"}))
    bharateo.map_raster(run, raster, tmp_path / "map.tif", reading=reading)
    with rasterio.open(tmp_path / "map-layers.tif") as layers:
        assert layers.descriptions == ("NDVI",)
        values = layers.read(1)
    assert np.nanmin(values) >= -1
    assert np.nanmax(values) <= 1
    assert np.isfinite(values).any()


def test_the_baselines_of_a_head_are_its_own_target_of_what_they_fill_in(ndvi, tmp_path):
    """By hand: the NDVI of a copied patch is that of the patch it was copied from."""
    from bharateo.evaluation.baselines import BASELINES, Seen
    from bharateo.models.heads import Batch, build_heads
    from bharateo.models.mae import build_model
    from bharateo.models.patches import Mask

    config = replace(small_config(), heads={"ndvi": ndvi})
    model = build_model(config.model, [0.2, 0.3], [0.1, 0.1])
    head = build_heads(config.heads, model)["ndvi"]
    image = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    valid, counts = torch.ones(1, 32, 32).bool(), torch.zeros(1, 16, 8).long()
    batch = Batch(image, valid, counts, torch.zeros(1).long())
    mask = Mask(torch.tensor([[5, *(token for token in range(16) if token != 5)]]), 1)
    seen = Seen.of(batch, mask, torch.tensor([0.2, 0.3]), 0)
    copied = head.target(BASELINES["nearest_visible"](seen), model)
    torch.testing.assert_close(copied, head.target(batch, model)[:, 5:6].expand_as(copied))
    constant = head.target(BASELINES["majority"](seen), model)
    torch.testing.assert_close(constant, torch.full_like(constant, 0.2))


def test_a_head_is_one_file_and_no_room_names_another():
    """A class, its line of registration and an entry in the YAML; nothing else knows of a head."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": f"{HEAD.parent}:{ROOT / 'src'}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["ndvi", "ndvi_head"]  # what was registered, the files it took
    code = next(block for block in blocks(PAGE) if block.language == "python")
    assert code.text.strip() in HEAD.read_text()
    classes = {head.__name__ for head in HEADS.values()}
    naming = {
        str(path.relative_to(ROOT / "src" / "bharateo"))
        for path in (ROOT / "src" / "bharateo").rglob("*.py")
        if any(re.search(rf"\b{name}\b", Path(path).read_text()) for name in classes)
    }
    assert naming == {"models/heads.py"}
