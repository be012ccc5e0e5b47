"""A step of a compiled model in shards, with nobody at the other end: graphs and breaks as JSON.

In a process of its own, where no call's shapes are checked, which a compiler would have to follow.
"""

import json
from dataclasses import replace

import torch
import torch._dynamo
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from bharateo.config import MachineConfig
from bharateo.models.vit import TransformerBlock
from bharateo.sensor import SENTINEL2_L2A
from bharateo.training.engine import Engine, Learner
from bharateo.training.planning import generated
from small_datasets import small_config


def main() -> None:
    graphs, compile_ = [], torch.compile

    def kept(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compile = lambda it, **how: compile_(it, **{**how, "backend": kept})
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    config = small_config(optimiser="adamw")
    config = replace(config, model=replace(config.model, depth=3))
    engine = Engine(num_ranks=2, machine=MachineConfig(parallel="fsdp", compile=True))
    learner = Learner(config, SENTINEL2_L2A, [0.5] * 2, [0.25] * 2, engine)
    learner.differentiate(0, 1e-3, generated(config, 2, 4, torch.device("cpu")))
    blocks = [each for each in learner.objective.modules() if isinstance(each, TransformerBlock)]
    told = {
        "graphs": len(graphs),
        "breaks": sum(torch._dynamo.utils.counters["graph_break"].values()),
        "blocks": len(blocks),
        "sharded": sum(isinstance(each, FSDPModule) for each in blocks),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
