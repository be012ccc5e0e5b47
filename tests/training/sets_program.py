"""Graphs that a compiled objective comes to that is shown several sets of bands, as JSON.

In a process of its own, where no call's shapes are checked, which a compiler would have to follow.
"""

import json
from dataclasses import replace

import numpy as np
import torch

from bharateo.config import MachineConfig
from bharateo.sensor import SENTINEL2_L2A
from bharateo.training.engine import Engine, Learner
from bharateo.training.planning import generated
from small_datasets import small_config

BANDS = SENTINEL2_L2A.band_names


def main() -> None:
    graphs, compile_ = [], torch.nn.Module.compile

    def kept(graph, example):
        graphs.append(graph)
        return graph.forward

    torch.nn.Module.compile = lambda it, **how: compile_(it, backend=kept, fullgraph=True, **how)
    config = small_config(precision="fp32")
    sets = {band: (band,) for band in BANDS}  # more than graphs are kept by default
    config = replace(config, model=replace(config.model, embedding="energies", band_sets=sets))
    losses = []
    for machine in (MachineConfig(compile=True), MachineConfig(compile=False)):
        torch.manual_seed(0)
        mean, std = [0.5] * len(BANDS), [0.25] * len(BANDS)
        learner = Learner(config, SENTINEL2_L2A, mean, std, Engine(machine=machine))
        raw = generated(config, len(BANDS), 4, torch.device("cpu"))
        shown = {learner.band_set(step): step for step in range(200)}
        found = [learner.differentiate(step, 0.0, raw).totals[0].item() for step in shown.values()]
        losses.append(found)
    print(
        json.dumps(
            {
                "shown": len(shown),
                "graphs": len(graphs),
                "apart": float(np.abs(np.subtract(*losses)).max()),
            }
        )
    )


if __name__ == "__main__":
    main()
