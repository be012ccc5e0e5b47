"""PyTorch's own loader and loop on a dataset and a frozen encoder."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bharateo.errors import ConfigError
from bharateo.handover.hub import BharatEOEncoder
from bharateo.landcover import IGNORE
from bharateo.training.data import Window, cut
from bharateo.training.samples import ChipDataset
from handover.tiny_run import tiny_run


def test_a_sample_is_the_chip_in_physical_units(reflectance_dataset):
    chips = ChipDataset(reflectance_dataset.path, "test")
    assert [chips[i]["chip"] for i in range(len(chips))] == [*reflectance_dataset.indices("test")]
    for sample in chips:
        chip, side = int(sample["chip"]), reflectance_dataset.size_px
        batch = cut(reflectance_dataset, [Window(chip, 0, 0)], side, side)
        image, valid = batch.image[0], batch.valid[0]
        assert torch.equal(sample["image"].nan_to_num(9), image.masked_fill(~valid, 9))
        labels = torch.from_numpy(reflectance_dataset.landcover(chip).astype(np.int64))
        assert torch.equal(sample["mask"], labels.masked_fill(~valid, IGNORE))
    assert len(ChipDataset(reflectance_dataset)) == reflectance_dataset.num_chips


def test_what_is_not_there_is_refused(reflectance_dataset):
    with pytest.raises(ConfigError, match="split 'testing' is none of train, val, test"):
        ChipDataset(reflectance_dataset, "testing")
    with pytest.raises(IndexError):
        ChipDataset(reflectance_dataset, "test")[10_000]


def shifted(sample):
    return sample | {"image": sample["image"] + 1}


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.slow
def test_a_stock_loader_with_two_workers_gives_the_same_chips(start, reflectance_dataset):
    chips = ChipDataset(reflectance_dataset, "train", transform=shifted)
    loader = DataLoader(chips, batch_size=5, num_workers=2, multiprocessing_context=start)
    there = [batch["image"] for batch in loader]
    here = torch.stack([sample["image"] for sample in chips])
    assert torch.equal(torch.cat(there).nan_to_num(9), here.nan_to_num(9))


def test_a_stock_training_loop_on_frozen_features_learns(reflectance_dataset, tmp_path):
    run = tiny_run(tmp_path / "run", reflectance_dataset)
    encoder = BharatEOEncoder(run)
    loader = DataLoader(ChipDataset(reflectance_dataset, "train"), batch_size=8)
    head, losses = nn.Linear(encoder.width, 8), []
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.05)
    for _ in range(8):
        for batch in loader:
            features = encoder.features(batch["image"])  # 48 px, where the chips had 32
            patches = nn.functional.unfold(batch["mask"][:, None].float(), 8, stride=8)
            labels = patches.mode(1).values.long()
            loss = nn.functional.cross_entropy(head(features).mT, labels, ignore_index=IGNORE)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
