"""The page's examples for timm, TerraTorch and TorchGeo as they stand there, if installed."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from bharateo.handover.hub import BharatEOEncoder, save_folder
from bharateo.handover.timm_weights import write_timm
from bharateo.sensor import SENTINEL2_L2A
from bharateo.training.samples import ChipDataset
from documented import ROOT, blocks
from handover.tiny_run import tiny_run
from small_datasets import small_dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolkits and what they build on warn a lot


def toolkit(name):
    """The package, or a skip that says where it runs."""
    where = f"{name} cannot be imported: docs/interoperate.md has the commands of an environment"
    return pytest.importorskip(name, reason=where, exc_type=ImportError)


def example(name, **names):
    """What the page's code for a toolkit leaves behind, given the names that it takes as given."""
    page = ROOT / "docs" / "interoperate.md"
    imports = (f"import {name}\n", f"from {name}.")
    (block,) = [each for each in blocks(page) if any(line in each.text for line in imports)]
    exec(compile(block.text, block.place, "exec"), names)
    return names


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """In a folder with what the page exported: of a run that was never trained, on ten bands."""
    monkeypatch.chdir(tmp_path)
    dataset = small_dataset(tmp_path / "datasets" / "pune", SENTINEL2_L2A)
    run = tiny_run(tmp_path / "run", dataset)
    save_folder(run, tmp_path / "hub" / "pune-s2")
    write_timm(run, tmp_path / "timm" / "pune-s2")
    return BharatEOEncoder(run)


def test_timm_gives_the_encoders_features(request):
    toolkit("timm")
    encoder = request.getfixturevalue("encoder")
    image = torch.rand(3, 10, 32, 32)
    names, expected = example("timm", image=image), encoder.features(image)
    torch.testing.assert_close(names["features"], expected, atol=1e-4, rtol=1e-4)
    last = names["maps"][-1].flatten(2).mT
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)


def test_terratorch_trains_a_decoder_on_the_frozen_encoder(request):
    toolkit("terratorch")
    encoder = request.getfixturevalue("encoder")
    task = example("terratorch")["task"]
    assert task.trainer.global_step > 0
    image = torch.rand(2, 10, 48, 32)
    (found,) = task.model.encoder(image)
    assert torch.equal(found, encoder(image).mT.unflatten(2, (6, 4)))
    with torch.no_grad():
        assert task(torch.rand(2, 10, 45, 32)).output.shape == (2, 8, 45, 32)  # padded and cut


def test_torchgeos_chips_of_a_scene_give_the_encoders_features(request, tmp_path):
    toolkit("torchgeo")
    encoder = request.getfixturevalue("encoder")
    rng = np.random.default_rng(0)
    stored = rng.integers(1000, 6000, (10, 32, 64), np.uint16)
    stored[:, :9, :20] = 0
    (tmp_path / "scenes").mkdir()
    for name, values in zip(encoder.bands, stored, strict=True):
        with rasterio.open(
            tmp_path / "scenes" / f"T43QCA_20210203T054001_{name}.tif", "w", driver="GTiff",
            crs="EPSG:32643", transform=Affine(10, 0, 400_000, 0, -10, 2_050_000), width=64,
            height=32, count=1, dtype="uint16",
        ) as band:  # fmt: skip
            band.write(values, 1)
    chips = torch.from_numpy(np.stack([stored[..., :32], stored[..., 32:]]).astype(np.float32))
    expected = encoder.features((chips - 1000) / 10000, (chips != 0).all(1))
    torch.testing.assert_close(example("torchgeo")["features"], expected)


def test_samples_of_chips_are_stacked_by_torchgeo_and_flipped_by_kornia(request):
    stack_samples = toolkit("torchgeo.datasets").stack_samples
    augmentation = toolkit("kornia.augmentation")
    request.getfixturevalue("encoder")
    samples = [*ChipDataset("datasets/pune", split="train")][:3]
    batch = stack_samples(samples)
    assert batch["image"].shape == (3, 10, 48, 48) and batch["mask"].shape == (3, 48, 48)
    flip = augmentation.RandomHorizontalFlip(p=1.0)
    flipped = augmentation.AugmentationSequential(flip, data_keys=None)(batch)
    image, mask = flipped["image"], flipped["mask"][:, 0]
    assert torch.equal(image.nan_to_num(9), batch["image"].flip(3).nan_to_num(9))
    assert torch.equal(mask, batch["mask"].flip(2)) and mask.dtype == torch.int64
