"""The forecast of a long run: on several ranks, in parts of a batch, with anybody's head."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_ranks import free_port
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bharateo.config import HeadConfig
from bharateo.models.heads import HEADS
from bharateo.models.objective import Objective
from bharateo.training.loop import Trainer, pretrain
from bharateo.training.planning import Cost, Plan, measure_step
from bharateo.training.run import training_state
from documented import ROOT, blocks
from small_datasets import many_bands, small_config, small_dataset

PROGRAM = Path(__file__).with_name("forecast_program.py")
FORECASTS = int(os.environ.get("BHARATEO_FORECASTS", "8"))
NEW_HEAD = ROOT / "docs" / "how-to" / "new-pretext-task.md"


def forecasts(times, parallel):
    """What two ranks plan, so many times in one start; every line is one forecast."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    address = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    tests = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT / "tests")])
    done = subprocess.run(
        [*torchrun, *address, str(PROGRAM), str(times), parallel],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests},
        capture_output=True, text=True, check=True, timeout=120 + 5 * times,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.long
def test_two_ranks_with_clocks_of_their_own_end_every_forecast_together(parallel):
    assert len(forecasts(FORECASTS, parallel)) == FORECASTS


def test_the_forecast_takes_a_batch_in_the_parts_that_training_takes(monkeypatch):
    config, seen = small_config(), []
    forward = Objective.forward

    def watched(self, batch, mask, counts, band_set=None):
        seen.append(len(batch.image))
        return forward(self, batch, mask, counts, band_set)

    monkeypatch.setattr(Objective, "forward", watched)
    machine = replace(config.machine, micro_batch=4)
    measure_step(replace(config, machine=machine), 2, 10, seconds=0.0)
    assert seen[:3] == [4, 4, 2]


@pytest.fixture
def third_head():
    """The head of the how-to page, known by its name while a test runs, beside the two others."""
    known = dict(HEADS)
    code = next(block for block in blocks(NEW_HEAD) if block.language == "python")
    exec(compile(code.text, code.place, "exec"), {})
    assert {*HEADS} - {*known} == {"ndvi"}
    yield {**small_config().heads, "ndvi": HeadConfig(0.1, {"red": 0, "nir": 1})}
    del HEADS["ndvi"]


@pytest.mark.slow
@pytest.mark.long
def test_a_third_head_trains_beyond_the_forecast_and_its_comparison(
    third_head, reflectance_dataset, tmp_path
):
    config = small_config(epochs=1, batch_size=4, chips_per_epoch=2800)
    said, steps = [], []
    run = pretrain(
        reflectance_dataset, replace(config, heads=third_head), tmp_path,
        lambda step, *_: steps.append(step), said.append,
    )  # fmt: skip
    assert steps[-1] == 700
    planned, compared = (line for line in said if not re.match(r"(step \d+:|heads\.)", line))
    assert re.match(r"planned: \d+\.\d\d h for all 700 steps at ", planned)
    assert compared.startswith("after 200 steps: ")
    assert {*run.heads} == {*third_head}


@pytest.mark.parametrize("model", ["v0", "seed"])
def test_a_third_head_is_planned_to_the_last_flop_and_byte(third_head, tmp_path, model):
    """As PyTorch counts a training step, and as a checkpoint is written."""
    dataset = small_dataset(tmp_path / "dataset", many_bands(2))
    config = replace(small_config(model, optimiser="adamw"), heads=third_head)
    trainer = Trainer(dataset, config, tmp_path / "run")
    raw = trainer.loader.load(0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.step(0, raw)
    cost = Cost.of(config, 2)
    assert cost.training * len(raw) == counter.get_total_flops()
    saved = training_state(trainer.objective, trainer.optimisers)
    saved_bytes = sum(tensor.nbytes for tensor in saved.values())
    assert cost.weight_bytes + cost.optimiser_bytes == saved_bytes


def test_planning_leaves_the_random_numbers_as_they_are():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Plan(small_config(), 100, 2)
    assert torch.equal(torch.rand(4), expected)
