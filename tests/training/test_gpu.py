"""What a GPU needs, as far as a CPU can tell: pinned memory, copies beside work, whole graphs."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from bharateo.config import MachineConfig
from bharateo.models.heads import Batch
from bharateo.models.patches import Mask
from bharateo.sensor import SENTINEL2_L2A
from bharateo.training import engine as engines
from bharateo.training import loop
from bharateo.training.data import RawBatch, prepare
from bharateo.training.engine import Engine, Learner
from bharateo.training.loader import Loader
from bharateo.training.loop import Trainer
from bharateo.training.planning import generated
from small_datasets import small_config

PROGRAM = Path(__file__).with_name("shards_program.py")
CPU = torch.device("cpu")


@pytest.fixture
def copies(monkeypatch):
    """Every copy to another device: whether its source was pinned, and whether one waits for it."""
    pinned, done, to = set(), [], torch.Tensor.to

    def pin_memory(self):
        copy = self.clone()
        pinned.add(copy.untyped_storage().data_ptr())
        pinned_kept.append(copy)  # or its address could be another's
        return copy

    def spied(self, *target, **options):
        if target and isinstance(target[0], torch.device) and target[0] != self.device:
            waits = not options.get("non_blocking")
            done.append((self.untyped_storage().data_ptr() in pinned, waits))
            target = ("meta" if target[0].type == "meta" else CPU, *target[1:])
        return to(self, *target, **options)

    pinned_kept = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", spied)
    return done


def test_a_steps_draws_go_to_the_device_in_one_copy_that_nobody_waits_for(copies):
    config = small_config()
    raw = generated(config, 10, 6, CPU)
    there = RawBatch(*(each.to("meta") for each in (raw.image, raw.landcover, raw.valid)),
                     raw.draws, raw.shows)  # fmt: skip
    prepare(there, SENTINEL2_L2A, 8, 12)  # the symmetries go once for all steps
    copies.clear()
    there = replace(there)
    batch, mask = prepare(there, SENTINEL2_L2A, 8, 12)
    assert batch.image.is_meta
    assert mask.order.is_meta
    assert copies == [(True, False)]
    prepare(there, SENTINEL2_L2A, 8, 12)  # a part is prepared twice
    assert len(copies) == 1


class Stream:
    """Notes in ``said`` what is asked of it."""

    def __init__(self, name, said):
        self.name, self.said = name, said

    def record_event(self):
        self.said.append((self.name, "records"))
        return SimpleNamespace(synchronize=lambda: None)

    def wait_event(self, event):
        self.said.append((self.name, "waits"))


def test_chips_are_copied_beside_the_step_before_from_pinned_memory(
    reflectance_dataset, monkeypatch, copies
):
    said = []

    @contextmanager
    def stream(which):
        said.append((which.name, "begins"))
        yield
        said.append((which.name, "ends"))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copying", said))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing", said))
    kept = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, each: kept.append(each.name))
    config = small_config()
    config = replace(config, machine=replace(config.machine, resident="off"))
    loader = Loader(reflectance_dataset, config, 64, torch.device("cuda"))
    alike = Loader(reflectance_dataset, config, 64, CPU)
    for (_, raw), (_, expected) in zip(loader.steps(0, 4), alike.steps(0, 4), strict=True):
        assert torch.equal(raw.image, expected.image)
        assert said == [("copying", "begins"), ("copying", "ends"), ("copying", "records"),
                        ("computing", "waits")]  # fmt: skip
        assert kept == ["computing"] * 3
        assert copies == [(True, False)] * 3
        for each in (said, kept, copies):
            each.clear()


def test_validation_is_read_ahead_pinned_and_looked_at_once(
    reflectance_dataset, tmp_path, monkeypatch
):
    config = small_config(batch_size=4)
    trainer = Trainer(reflectance_dataset, config, tmp_path)
    expected = trainer.validate()
    looks, pinned, ahead = [], [], []
    tolist, cut = torch.Tensor.tolist, loop.fixed_batch

    class Later(Engine):
        asynchronous = True

    trainer.engine = Later()
    monkeypatch.setattr(torch.Tensor, "item", lambda self: looks.append("item"))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: looks.append("list") or tolist(self))
    for kind in (Batch, Mask):
        monkeypatch.setattr(kind, "pinned", lambda self: pinned.append(type(self)) or self)
    monkeypatch.setattr(loop, "fixed_batch", lambda *of: ahead.append("cut") or cut(*of))
    forward = trainer.objective.forward

    def watched(*of):
        ahead.append("taken")
        return forward(*of)

    trainer.objective.forward = watched
    assert trainer.validate() == expected
    num = len(pinned) // 2
    assert num > 3
    assert looks == ["list"]
    assert pinned.count(Mask) == pinned.count(Batch) == num
    assert ahead.count("cut") == ahead.count("taken") == num


# Ranks, with nobody at the other end.


@pytest.fixture
def two_ranks():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.slow
def test_shards_are_compiled_without_a_break():
    """Encoder and decoder: blocks of a kind share a graph."""
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(PROGRAM.parents[1])])
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"graphs": 2, "breaks": 0, "blocks": 4, "sharded": 4}


def test_shards_are_gathered_in_the_runs_precision_and_added_up_in_fp32(two_ranks, monkeypatch):
    policies = []
    fully_shard = engines.fully_shard

    def spied(module, mp_policy, **how):
        policies.append(mp_policy)
        return fully_shard(module, mp_policy=mp_policy, **how)

    monkeypatch.setattr(engines, "fully_shard", spied)
    config = small_config(optimiser="adamw")
    for precision, expected in (("bf16", torch.bfloat16), ("fp32", None)):
        policies.clear()
        engine = Engine(num_ranks=2, machine=MachineConfig(parallel="fsdp"), precision=precision)
        sharded = Learner(config, SENTINEL2_L2A, [0.5] * 2, [0.25] * 2, engine)
        launched = sharded.differentiate(0, 1e-3, generated(config, 2, 4, CPU))
        assert launched.totals.isfinite().all()
        assert {each.param_dtype for each in policies} == {expected}
        assert {each.reduce_dtype for each in policies} == {torch.float32 if expected else None}
        assert not policies[-1].cast_forward_inputs  # physical units stay as they are
        assert {each.grad.dtype for each in sharded.objective.parameters()} == {torch.float32}


def test_copies_of_a_model_do_not_send_each_other_what_never_changes(two_ranks, monkeypatch):
    options = []
    monkeypatch.setattr(
        engines, "DistributedDataParallel", lambda module, **how: options.append(how) or module
    )
    engine = Engine(num_ranks=2, machine=MachineConfig(parallel="ddp"))
    Learner(small_config(), SENTINEL2_L2A, [0.5] * 2, [0.25] * 2, engine)
    assert options[0]["broadcast_buffers"] is False


def test_numbers_that_are_sent_are_the_ones_that_were_drawn():
    raw = generated(small_config(), 2, 5, CPU)
    drawn = raw.drawn
    np.testing.assert_array_equal(drawn.shows, raw.shows)
    np.testing.assert_array_equal(drawn.symmetry, raw.draws.symmetry)
    np.testing.assert_array_equal(drawn.noise, raw.draws.noise)
