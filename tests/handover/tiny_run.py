"""Finished runs that were never trained: random weights, a contract as training writes it."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from bharateo.training.data import physical_units
from bharateo.training.run import Run, make_contract, model_statistics, save_run
from models.tiny_models import HEADS, TINY, tiny_heads, tiny_model
from small_datasets import small_config


def tiny_run(folder, dataset, name="v0", heads=HEADS, **sizes):
    """A run for a dataset's bands."""
    model = tiny_model(name, dataset.sensor.num_bands, **sizes)
    mean, std = (torch.tensor(each) for each in model_statistics(dataset))
    model.normalise.load_state_dict({"mean": mean, "std": std})
    config = replace(small_config(name), model=replace(TINY, name=name, **sizes), heads=heads)
    module = nn.ModuleDict({"model": model, "heads": tiny_heads(model, heads)})
    save_run(folder, module.state_dict(), make_contract(config, dataset, module, folder, 10))
    return Run.open(folder)


def chips_of(run, dataset, split="test"):
    """Chips of a dataset in physical units, as the run takes them: image and validity."""
    size, chips = run.model.config.chip_px, dataset.indices(split)
    image = np.stack([dataset.image(chip)[:, :size, :size] for chip in chips])
    valid = np.stack([dataset.valid(chip)[:size, :size] for chip in chips])
    return physical_units(torch.from_numpy(image), dataset.sensor), torch.from_numpy(valid)
