"""The packaged sample in ten bands, four and three, through the same four commands."""

from pathlib import Path

import pytest

from bharateo.chips.store import Dataset
from bharateo.report.html import REPORT_FILE
from bharateo.training.run import Run
from bharateo.verbs.cli import main

SMALL = [
    "model.width=16", "model.depth=1", "model.decoder_width=16", "model.decoder_depth=1",
    "training.epochs=1", "training.warmup_epochs=0.5", "training.chips_per_epoch=32",
    "training.batch_size=16",
]  # fmt: skip
SAMPLE = Path(__file__).parents[1] / "configs" / "sample.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bands", "composites"),
    [
        ("10band", 10, ["true colour B4-B3-B2", "false colour B8-B4-B3"]),
        ("rgbn", 4, ["true colour B4-B3-B2", "false colour B8-B4-B3"]),
        ("rgb", 3, ["true colour B4-B3-B2"]),
    ],
)
def test_the_sample_in_any_band_set_goes_the_whole_way(tmp_path, name, bands, composites):
    dataset, run = str(tmp_path / "dataset"), str(tmp_path / "run")
    build = ["build", str(SAMPLE), "--output", dataset, "--set", f"data.bands=[{name}]"]
    small = [word for setting in SMALL for word in ("--set", setting)]
    assert main(build) == 0
    assert main(["pretrain", str(SAMPLE), "--dataset", dataset, "--output", run, *small]) == 0
    assert main(["report", run]) == 0
    assert Dataset.open(dataset).sensor.num_bands == bands
    assert Run.open(run).model.num_bands == bands
    page = (tmp_path / "run" / REPORT_FILE).read_text()
    assert all(f"{composite}, " in page for composite in composites)
    assert ("false colour" in page) == (len(composites) == 2)


@pytest.mark.slow
def test_bands_of_another_set_are_the_same_pixels(tmp_path):
    for name in ("10band", "rgb"):
        folder = str(tmp_path / name)
        assert (
            main(["build", str(SAMPLE), "--output", folder, "--set", f"data.bands=[{name}]"]) == 0
        )
    ten, rgb = (Dataset.open(tmp_path / name) for name in ("10band", "rgb"))
    assert rgb.sensor.band_names == ("B04", "B03", "B02")
    some = [chip for chip in range(rgb.num_chips) if ten.valid(chip).all()][:3]
    for chip in some:
        assert (rgb.image(chip) == ten.image(chip)[[2, 1, 0]]).all()
