"""Runs on several processes under plain torchrun, on the CPU: the same run as on one."""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bharateo.config import MachineConfig
from small_datasets import small_config

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("ranks_program.py")
NUM_STEPS = 20
KILLS = int(os.environ.get("BHARATEO_KILLS", "2"))
ROUNDING = {"rtol": 1e-5, "atol": 0.0}
"""Losses over 24 steps in fp32: sums in another order, which training slowly amplifies."""


def free_port():
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(folder, dataset, num_ranks=1, parallel="ddp", optimiser="muon", model=None, **job):
    """Train in ``folder``/run on so many ranks; exit status, losses by step, what was said."""
    folder.mkdir(exist_ok=True)
    (folder / "losses.json").unlink(missing_ok=True)
    # 64 chips an epoch in batches of 12, the last one of an epoch has 4: 24 steps
    training = {"epochs": 4, "batch_size": 12, "optimiser": optimiser, **job.pop("training", {})}
    config = small_config(**training)
    machine = MachineConfig(parallel=parallel, device="cpu", **job.pop("machine", {}))
    config = replace(config, machine=machine, model=replace(config.model, **(model or {})))
    sections = asdict(config)
    job = {
        "config": {name: sections[name] for name in ("model", "heads", "training", "machine")},
        "dataset": str(dataset.path),
        "run": str(folder / "run"),
        "losses": str(folder / "losses.json"),
        **job,
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(PROGRAM), str(folder / "job.json")]
    if num_ranks > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
        address = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        command = [*torchrun, str(num_ranks), *address, *command[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    told = folder / "losses.json"
    losses = json.loads(told.read_text()) if told.exists() else []
    return done.returncode, dict(losses), done.stderr


def weights(folder):
    return load_file(folder / "run" / "model.safetensors")


def assert_same_curve(found, expected, steps=None):
    steps = sorted(expected) if steps is None else steps
    assert steps
    np.testing.assert_allclose(
        [found[step] for step in steps], [expected[step] for step in steps], **ROUNDING
    )


def assert_same_weights(folder, other):
    for name, value in weights(folder).items():
        expected = weights(other)[name]
        if name.endswith("qkv.bias"):  # nothing depends on the keys' part: its gradient is rounding
            value, expected = (np.delete(each, np.s_[16:32]) for each in (value, expected))
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def alone(reflectance_dataset, tmp_path_factory):
    """An undisturbed run on one rank, with settings of ``start``, made once: losses and folder."""
    found = {}

    def run(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in found:
            folder = tmp_path_factory.mktemp("alone")
            status, losses, said = start(folder, reflectance_dataset, **settings)
            assert status == 0, said
            found[key] = losses, folder
        return found[key]

    return run


@pytest.mark.parametrize(
    ("optimiser", "num_ranks", "parallel"),
    [("adamw", 2, "ddp"), ("muon", 4, "ddp"), ("adamw", 2, "fsdp"), ("muon", 2, "fsdp")],
)
def test_losses_and_weights_do_not_depend_on_the_ranks(
    alone, reflectance_dataset, tmp_path, optimiser, num_ranks, parallel
):
    expected, folder = alone(optimiser=optimiser)
    assert len(expected) >= NUM_STEPS
    status, losses, said = start(tmp_path, reflectance_dataset, num_ranks, parallel, optimiser)
    assert status == 0, said
    assert_same_curve(losses, expected)
    assert_same_weights(tmp_path, folder)
    ours, theirs = (
        (path / "run" / "history.jsonl").read_text().splitlines() for path in (tmp_path, folder)
    )
    for row, other in zip(map(json.loads, ours), map(json.loads, theirs), strict=True):
        assert row["val_masked_mae"] == pytest.approx(other["val_masked_mae"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("band_sets", [{}, {"one": ["B02"]}])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.long
def test_what_is_fitted_of_an_embedding_is_the_same_on_every_rank(
    alone, reflectance_dataset, tmp_path, parallel, band_sets
):
    common = {
        "model": {"embedding": "energies", "band_sets": band_sets}, "training": {"epochs": 2},
    }  # fmt: skip
    expected, folder = alone(**common)
    status, losses, said = start(tmp_path, reflectance_dataset, 2, parallel, **common)
    assert status == 0, said
    assert_same_curve(losses, expected)
    assert_same_weights(tmp_path, folder)
    one, two = weights(folder), weights(tmp_path)
    filters = [name for name in one if name.endswith(".filters") or ".of_sets.0.0." in name]
    assert len(filters) == (5 if band_sets else 1)
    assert all(np.array_equal(one[name], two[name]) for name in filters)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.long
def test_a_checkpoint_of_two_ranks_goes_on_on_one_and_on_four(
    alone, reflectance_dataset, tmp_path, parallel
):
    optimiser = "muon"
    expected, _ = alone(optimiser=optimiser)
    status, losses, said = start(
        tmp_path / "two", reflectance_dataset, 2, parallel, optimiser,
        end_after=10, ending_rank=1, by="SIGTERM",
    )  # fmt: skip
    assert status != 0
    assert "stopped after step 1" in said  # step 10 or the one under way
    last = max(losses)
    for num_ranks, other in ((1, "ddp"), (4, "fsdp" if parallel == "ddp" else "ddp")):
        folder = tmp_path / str(num_ranks)
        shutil.copytree(tmp_path / "two", folder)
        status, rest, said = start(folder, reflectance_dataset, num_ranks, other, optimiser)
        assert status == 0, said
        assert min(rest) == last + 1
        assert_same_curve({**losses, **rest}, expected)


@pytest.mark.long
def test_ended_again_and_again_on_two_ranks_it_goes_on_to_the_same_end(
    alone, reflectance_dataset, tmp_path
):
    """A rank is killed, or asked to end, at random steps; the other one says what happened."""
    expected, folder = alone(optimiser="muon")
    common = {"num_ranks": 2, "training": {"checkpoint_seconds": 0.0}}
    moments, curve, done = random.Random(1), {}, 0
    for number in range(KILLS):
        by = ("SIGKILL", "SIGTERM")[number % 2]
        last = done + moments.randint(2, max(2, (NUM_STEPS - done) // (KILLS - number)))
        status, losses, said = start(
            tmp_path, reflectance_dataset, **common,
            end_after=last, ending_rank=moments.randint(0, 1), by=by,
        )  # fmt: skip
        assert status != 0
        if by == "SIGTERM":
            assert "all of them kept; the same command goes on from there" in said
        else:
            assert re.search("RankLostError: rank [01] of 2 has lost another rank", said)
            assert "Run the same command again, on any number of ranks" in said
        assert not losses or min(losses) <= done + 1
        curve |= losses
        done = max([done, *losses])
    status, losses, said = start(tmp_path, reflectance_dataset, **common)
    assert status == 0, said
    curve |= losses
    assert_same_curve(curve, expected, sorted(curve))
    assert_same_weights(tmp_path, folder)


def test_parts_of_a_batch_give_the_same_on_any_number_of_ranks(
    alone, reflectance_dataset, tmp_path
):
    expected, _ = alone(optimiser="adamw")
    status, losses, said = start(
        tmp_path, reflectance_dataset, 2, "fsdp", "adamw", machine={"micro_batch": 2}
    )
    assert status == 0, said
    assert_same_curve(losses, expected)


@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
@pytest.mark.long
def test_ranks_with_shares_of_more_and_of_fewer_parts_are_the_same_as_one(
    alone, reflectance_dataset, tmp_path, parallel
):
    """Nine chips in parts of four: two parts on one rank, and one on the other."""
    training = {"batch_size": 9, "epochs": 3}
    common = {"optimiser": "adamw", "training": training, "machine": {"micro_batch": 4}}
    expected, folder = alone(**common)
    status, losses, said = start(tmp_path, reflectance_dataset, 2, parallel, **common)
    assert status == 0, said
    assert_same_curve(losses, expected)
    assert_same_weights(tmp_path, folder)


@pytest.mark.long
def test_shards_in_bf16_are_the_same_within_its_rounding(reflectance_dataset, tmp_path):
    common = {"optimiser": "adamw", "training": {"precision": "bf16", "epochs": 4}}
    status, expected, said = start(tmp_path / "one", reflectance_dataset, **common)
    assert status == 0, said
    status, losses, said = start(tmp_path / "two", reflectance_dataset, 2, "fsdp", **common)
    assert status == 0, said
    steps = sorted(expected)
    np.testing.assert_allclose(
        [losses[step] for step in steps], [expected[step] for step in steps], rtol=0.02
    )


def kept(folder):
    return json.loads((folder / "run" / "contract.json").read_text())["kept"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.long
def test_ranks_keep_the_same_average_of_the_same_best_epoch_also_on_other_ranks(
    alone, reflectance_dataset, tmp_path, parallel
):
    """Whole, and stopped in the middle and gone on with on one rank; shards have shards of it."""
    common = {"training": {"average": 0.1, "keep": "best", "epochs": 35}}
    _, one = alone(**common)
    status, _, said = start(tmp_path / "two", reflectance_dataset, 2, parallel, **common)
    assert status == 0, said
    status, _, said = start(
        tmp_path / "moved", reflectance_dataset, 2, parallel, **common,
        end_after=100, ending_rank=1, by="SIGTERM",
    )  # fmt: skip
    assert "all of them kept" in said
    status, _, said = start(tmp_path / "moved", reflectance_dataset, **common)
    assert status == 0, said
    for name in ("two", "moved"):
        assert kept(tmp_path / name)["epoch"] == kept(one)["epoch"]
        assert kept(tmp_path / name)["average"] == 0.1
        for part, value in weights(tmp_path / name).items():
            expected = weights(one)[part]
            np.testing.assert_allclose(value, expected, rtol=1e-2, atol=1e-2)
    found, expected = (
        load_file(folder / "run" / "checkpoints" / "last.safetensors")
        for folder in (tmp_path / "two", one)
    )
    assert {name: each.shape for name, each in found.items()} == {
        name: each.shape for name, each in expected.items()
    }
    averaged = {name for name in found if name.startswith("average.")}
    assert averaged
    for name in averaged:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-2, atol=1e-2)


@pytest.mark.long
def test_what_the_first_rank_refuses_ends_them_all(reflectance_dataset, tmp_path):
    start(tmp_path, reflectance_dataset, training={"epochs": 1})
    status, _, said = start(tmp_path, reflectance_dataset, 2, training={"epochs": 1, "lr": 0.5})
    assert status != 0
    for rank in (0, 1):
        assert f"rank {rank} RunError: " in said
    assert "training.lr: 0.002 there, 0.5 wanted" in said
