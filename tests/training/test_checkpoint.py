import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bharateo.chips.store import Dataset
from bharateo.config import parse_config
from bharateo.errors import ContractError, DatasetError, RunError, StorageError
from bharateo.files import write_json
from bharateo.landcover import NUM_CLASSES
from bharateo.training.contract import (
    CHECKPOINT_FILE,
    CONTRACT_FILE,
    MODEL_FILE,
    SCHEMA_VERSION,
)
from bharateo.training.loop import Trainer, pretrain
from bharateo.training.run import (
    Checkpoint,
    Run,
    load_checkpoint,
    majority_class,
    restore_training_state,
    save_checkpoint,
    training_state,
)
from small_datasets import PLAN, contents, many_bands, small_config, small_dataset


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture
def run(reflectance_dataset, tmp_path):
    return pretrain(reflectance_dataset, small_config(epochs=1), tmp_path / "run")


@pytest.fixture
def unfinished(reflectance_dataset, tmp_path):
    """A run folder left by a killed training that had a checkpoint."""

    def stop(step, num_steps, note):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        pretrain(reflectance_dataset, small_config(checkpoint_seconds=0.0), tmp_path / "run", stop)
    return tmp_path / "run"


# A finished run.


def test_a_run_is_enough_by_itself(run, reflectance_dataset, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in (CONTRACT_FILE, MODEL_FILE):
        (moved / name).write_bytes((run.path / name).read_bytes())
    again = Run.open(moved)
    assert not again.model.training
    assert again.sensor == reflectance_dataset.sensor
    expected = {**run.model.state_dict(), **run.heads.state_dict()}
    found = {**again.model.state_dict(), **again.heads.state_dict()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_contract_says_what_the_model_may_be_fed(run, reflectance_dataset):
    contract = json.loads((run.path / CONTRACT_FILE).read_text())
    dataset = reflectance_dataset
    assert contract["sensor"] == json.loads(json.dumps(dataset.sensor.to_json()))
    assert contract["statistics"] == dataset.statistics.to_json()
    assert (contract["chip_px"], contract["patch_px"], contract["mask_ratio"]) == (32, 8, 0.75)
    assert contract["class_scheme"] == dataset.info["class_scheme"]
    assert contract["presented"] == {"chips_per_epoch": 64, "epochs": 1}
    parameters = [*run.model.parameters(), *run.heads.parameters()]
    assert contract["num_parameters"] == sum(parameter.numel() for parameter in parameters)
    assert contract["attribution"] == ["Pixels by nobody", "Labels by nobody"]
    rebuilt = parse_config({"model": contract["model"], "heads": contract["heads"]})
    assert rebuilt.model == small_config().model
    assert asdict(rebuilt)["heads"] == asdict(small_config())["heads"]


def test_a_run_finds_its_own_dataset_also_from_elsewhere(run, reflectance_dataset, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    assert Run.open("run").own_dataset().info == reflectance_dataset.info
    assert not Path(run.contract.dataset.path).is_absolute()


def test_a_run_whose_dataset_has_gone_says_so(run):
    contract = {**run.contract.to_json(), "dataset": {"path": "../gone", "fingerprint": ""}}
    write_json(run.path / CONTRACT_FILE, contract)
    with pytest.raises(DatasetError, match=r"there is no dataset at .*gone"):
        Run.open(run.path).own_dataset()


def test_the_majority_class_has_the_most_labelled_train_pixels(palette_dataset):
    counts = np.zeros(256, int)
    for chip in palette_dataset.indices("train"):
        counts += np.bincount(palette_dataset.landcover(chip).reshape(-1), minlength=256)
    assert majority_class(palette_dataset) == counts[:NUM_CLASSES].argmax()


# A damaged one.


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_there_being_no_run_is_said(tmp_path):
    with pytest.raises(RunError, match=r"there is no run; make one: bharateo pretrain CONFIG"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match="there is no run"):
        Run.open(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", [cut_in_half, lambda path: path.unlink()])
def test_damaged_weights_are_named_with_a_remedy(run, damage):
    damage(run.path / MODEL_FILE)
    with pytest.raises(RunError, match=r"model\.safetensors .* restore the file or pretrain again"):
        Run.open(run.path)


def test_weights_of_another_model_are_refused(run, palette_dataset, tmp_path):
    other = pretrain(palette_dataset, small_config("seed", epochs=1), tmp_path / "other")
    (run.path / MODEL_FILE).write_bytes((other.path / MODEL_FILE).read_bytes())
    with pytest.raises(RunError, match="does not hold the weights its contract names"):
        Run.open(run.path)


def test_a_damaged_contract_is_named_with_a_remedy(run):
    cut_in_half(run.path / CONTRACT_FILE)
    with pytest.raises(RunError, match=r"contract\.json is damaged: .* restore the file"):
        Run.open(run.path)


def test_a_contract_of_another_version_is_refused(run):
    write_json(run.path / CONTRACT_FILE, {**run.contract.to_json(), "schema_version": 99})
    with pytest.raises(RunError, match=r"schema version 99, this bharateo .* reads 1"):
        Run.open(run.path)


def test_a_damaged_checkpoint_is_named_and_without_it_training_completes(
    unfinished, reflectance_dataset
):
    config = small_config(checkpoint_seconds=0.0)
    cut_in_half(unfinished / CHECKPOINT_FILE)
    with pytest.raises(RunError, match=r"last\.safetensors is damaged .*; delete it to train from"):
        pretrain(reflectance_dataset, config, unfinished)
    (unfinished / CHECKPOINT_FILE).unlink()
    pretrain(reflectance_dataset, config, unfinished)


# Checkpoints.


def test_a_checkpoint_survives_being_written_to_the_bit(tmp_path):
    state = {"a.b": torch.randn(3, 4), "optimiser.0.1.step": torch.tensor(7.0)}
    sums = {"loss": [0.1 + 0.2, 1e300], "esa_ce": [1 / 3, 7.0]}
    save_checkpoint(tmp_path, Checkpoint(5, sums, state))
    loaded = load_checkpoint(tmp_path)
    assert (loaded.step, loaded.sums) == (5, sums)
    assert loaded.state.keys() == state.keys()
    assert all(torch.equal(loaded.state[name], state[name]) for name in state)


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("model", ["v0", "seed"])
def test_a_restored_training_goes_on_as_if_nothing_had_been(reflectance_dataset, tmp_path, model):
    config = small_config(model)
    first, other = (Trainer(reflectance_dataset, config, tmp_path) for _ in range(2))
    for step in range(2):
        first.step(step, first.loader.load(step))
    state = {k: v.clone() for k, v in training_state(first.objective, first.optimisers).items()}
    restore_training_state(state, other.objective, other.optimisers)
    for each in (first, other):
        each.step(2, each.loader.load(2))
    ours, theirs = (training_state(each.objective, each.optimisers) for each in (first, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# The contract.


def test_a_dataset_of_the_same_sensor_keeps_the_contract(run, tmp_path):
    other = small_dataset(tmp_path / "d", many_bands(2), regions=("north",))
    run.check(other)


def with_classes(dataset, folder):
    """The dataset with another class scheme written into its description."""
    info = json.loads((dataset.path / "dataset.json").read_text())
    info["class_scheme"]["classes"][0]["name"] = "forest"
    write_json(folder / "dataset.json", info)
    return Dataset(folder, info)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (lambda f: small_dataset(f, many_bands(3)), r"^bands: .* B01, B02, the .* B01, B02, B03"),
        (lambda f: small_dataset(f, many_bands(2, "DN")), r"^unit: .*'reflectance'.*'DN'"),
        (
            lambda f: small_dataset(f, replace(many_bands(2), standardised=False)),
            r"^standardised: .*True.*False",
        ),
        (
            lambda f: small_dataset(f, many_bands(2), replace(PLAN, size_px=24)),
            r"^size_px: .* needs chips of 32 px.* stores 24; build it with a larger",
        ),
        (lambda f: with_classes(small_dataset(f, many_bands(2)), f), r"^classes: .*forest"),
    ],
    ids=["bands", "unit", "standardised", "size_px", "classes"],
)
def test_a_dataset_that_breaks_the_contract_is_refused_with_the_field(run, tmp_path, dataset, said):
    with pytest.raises(ContractError, match=said) as refusal:
        run.check(dataset(tmp_path / "d"))
    assert str(run.path) in str(refusal.value)


def test_swapped_bands_break_the_contract(run, tmp_path):
    sensor = many_bands(2)
    swapped = replace(sensor, bands=sensor.bands[::-1])
    with pytest.raises(ContractError, match=r"^bands: .* B01, B02, .* B02, B01"):
        run.check(small_dataset(tmp_path / "d", swapped))


# A full disk.


def full_after(monkeypatch, number):
    """The disk takes so many more files."""
    left = [number]
    sync = os.fsync

    def fsync(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


# Written in this order: config, three checkpoints, history, checkpoint, weights, contract.
@pytest.mark.parametrize(("number", "step"), [*enumerate([0, 0, 1, 2, 3, 3, 4, 4])])
@pytest.mark.slow
def test_on_a_full_disk_nothing_is_lost_and_a_rerun_completes(
    reflectance_dataset, tmp_path, monkeypatch, number, step
):
    config = small_config(epochs=1, checkpoint_seconds=0.0)
    whole = pretrain(reflectance_dataset, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        full_after(patch, number)
        with pytest.raises(StorageError, match=r"cannot write .*No space left.*same command again"):
            pretrain(reflectance_dataset, config, tmp_path / "run")
    assert not (tmp_path / "run" / CONTRACT_FILE).exists()
    assert not list((tmp_path / "run").rglob("*.partial"))
    before = load_checkpoint(tmp_path / "run")
    assert (before.step if before else 0) == step
    pretrain(reflectance_dataset, config, tmp_path / "run")
    assert contents(tmp_path / "run")[MODEL_FILE] == contents(whole.path)[MODEL_FILE]


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, Checkpoint(1, {}, {"w": torch.zeros(2)}))
    before = contents(tmp_path)
    full_after(monkeypatch, 0)
    with pytest.raises(StorageError, match=r"last\.safetensors"):
        save_checkpoint(tmp_path, Checkpoint(2, {}, {"w": torch.ones(2)}))
    assert contents(tmp_path) == before


def test_the_version_of_the_schema_is_written(run):
    assert run.contract.schema_version == SCHEMA_VERSION
