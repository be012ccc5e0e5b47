"""Chips as PyTorch's own ``DataLoader`` takes them, for loops that are not ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bharateo.chips.store import SPLITS, Dataset
from bharateo.errors import ConfigError
from bharateo.landcover import IGNORE
from bharateo.training.data import physical_units


class ChipDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A dataset, or a split of it, as PyTorch's ``DataLoader`` takes it: samples like TorchGeo's.

    A sample holds ``image`` (band, row, col) float32 in physical units, NaN where invalid, as
    ``BharatEOEncoder`` takes it; ``mask`` (row, col) int64, class ids, 255 (for ``ignore_index``)
    where there is no label or no image; ``chip``, its row in the table ``chips``. Workers may be
    forked or spawned. ``pretrain`` has a loader of its own, for a million chips.

    Args:
        dataset: one that is open, or its folder.
        split: ``train``, ``val`` or ``test``; None: all chips.
        transform: is given every sample, and returns what the loader gets.

    Raises:
        DatasetError: the folder holds no dataset.
        ConfigError: there is no such split.
    """

    def __init__(
        self,
        dataset: Dataset | str | Path,
        split: str | None = None,
        transform: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        self.dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
        if split is not None and split not in SPLITS:
            raise ConfigError(f"split {split!r} is none of {', '.join(SPLITS)}: name one of them")
        self.chips = range(self.dataset.num_chips) if split is None else self.dataset.indices(split)
        self.transform = transform

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.chips)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The sample of a chip.

        Raises:
            IndexError: there is none.
        """
        chip = int(self.chips[index])
        valid = torch.from_numpy(self.dataset.valid(chip))
        image = physical_units(torch.tensor(self.dataset.image(chip)), self.dataset.sensor)
        mask = torch.tensor(self.dataset.landcover(chip), dtype=torch.int64)
        sample = {
            "image": image.masked_fill(~valid, torch.nan),
            "mask": mask.masked_fill(~valid, IGNORE),
            "chip": torch.tensor(chip),
        }
        return self.transform(sample) if self.transform else sample
