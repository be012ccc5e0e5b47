"""The code of docs/interoperate.md."""

import re
import shutil
from pathlib import Path

import pytest

from bharateo.cli import main
from handover.timm_reference import VisionTransformer
from handover.tiny_run import tiny_run

TEXT = (Path(__file__).parents[2] / "docs" / "interoperate.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture
def exported(reflectance_dataset, encoder, tmp_path, monkeypatch):
    """A folder in which the page's commands were given; `hf` and the autoencoder are left out."""
    monkeypatch.chdir(tmp_path)
    tiny_run(tmp_path / "runs" / "v0", reflectance_dataset)
    commands = [line.split() for block in blocks("sh") for line in block.splitlines()]
    verbs = [words[1:] for words in commands if words[0] == "bharateo" and "--what" not in words]
    assert len(verbs) == 3
    for words in verbs:
        if "onnx" in words:  # which takes long, and is done already
            assert words == ["export", "runs/v0", "--to", "onnx", "--output", "v0.onnx"]
            shutil.copy(encoder, tmp_path / "v0.onnx")
        else:
            assert main(words) == 0


def test_the_pages_commands_and_python_run(exported):
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["features"].shape == (2, 16, 16)
    assert names["encoder"].bands == ("B01", "B02")
    VisionTransformer(**names["arguments"]).load_state_dict(names["state"], strict=True)


def test_blocks_that_cannot_run_are_python_all_the_same():
    assert len(blocks("python notest")) == 3
    for block in blocks("python notest"):
        compile(block, "docs/interoperate.md", "exec")
