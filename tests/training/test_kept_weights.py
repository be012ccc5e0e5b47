"""Which weights of a training become the run's: their moving average, those of the best epoch."""

import itertools
import json
import os
import re
import shutil
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bharateo.config import Config, HeadConfig, SplitConfig, parse_config
from bharateo.errors import ConfigError, DivergedError, RunError, Stopped, StorageError
from bharateo.evaluation.evaluate import evaluate
from bharateo.files import write_json
from bharateo.training import loop
from bharateo.training.loop import Trainer, pretrain
from bharateo.training.optimisers import newest_in_average
from bharateo.training.run import Run
from small_datasets import PLAN, contents, many_bands, small_config, small_dataset

pytestmark = pytest.mark.slow

CHECKPOINT, BEST, MODEL = (
    "checkpoints/last.safetensors",
    "checkpoints/best.safetensors",
    "model.safetensors",
)


class Killed(BaseException):
    """What no code catches."""


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def untimed(run):
    timed = {"chips_per_s", "data_wait"}
    return [{key: each for key, each in row.items() if key not in timed} for row in history(run)]


def weights_of(run):
    """Of an opened run, by the names they have in its file."""
    parts = {"model": run.model, "heads": run.heads}
    return {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


@dataclass
class Watched:
    """A run, and what was seen of it while it was trained: the weights after every step, losses
    and weights of every validation, the epochs that were kept for the time, and what was said.
    """

    config: Config
    path: Path
    steps: list = field(default_factory=list)
    validations: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    said: list = field(default_factory=list)

    def train(self, dataset):
        update, validate, save_best = Trainer.update, Trainer.validate, loop.save_best

        def updated(trainer, step):
            update(trainer, step)
            named = trainer.objective.named_parameters()
            self.steps.append({name: each.detach().clone() for name, each in named})

        def validated(trainer):
            state = {name: each.clone() for name, each in trainer.objective.state_dict().items()}
            metrics = validate(trainer)
            self.validations.append((metrics["loss"], state))
            return metrics

        def kept(run, best, weights):
            save_best(run, best, weights)
            self.kept.append(best.epoch)
            assert {each.name for each in (run / "checkpoints").iterdir()} <= {
                "last.safetensors", "best.safetensors",
            }  # fmt: skip

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "update", updated)
            patch.setattr(Trainer, "validate", validated)
            patch.setattr(loop, "save_best", kept)
            pretrain(dataset, self.config, self.path, say=self.said.append)
        return self


def validated(run, dataset, config, folder):
    """What training says of a finished run's weights on the val split."""
    trainer = Trainer(dataset, config, folder)
    trainer.objective.load_state_dict(weights_of(run))
    return trainer.validate()


@pytest.fixture(scope="module")
def long(reflectance_dataset, tmp_path_factory):
    """Watched runs of 24 epochs, 96 steps, by ``average`` and ``keep``. They learn so fast that the
    best epoch is none of the last.
    """
    found = {}
    for average, keep in itertools.product((0.0, 0.1), ("last", "best")):
        config = small_config(average=average, keep=keep, epochs=24, lr=8e-3)
        run = Watched(config, tmp_path_factory.mktemp("long") / "run")
        found[average, keep] = run.train(reflectance_dataset)
    return found


@pytest.fixture(scope="module")
def short(reflectance_dataset, tmp_path_factory):
    """A configuration with both, and its run of 24 steps."""
    config = small_config(average=0.1, keep="best", epochs=6)
    run = tmp_path_factory.mktemp("short") / "run"
    pretrain(reflectance_dataset, config, run)
    return config, run


# The moving average.


@pytest.mark.parametrize("average", [0.02, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("num_steps", [100, 1000, 10_000])
def test_the_average_lies_back_by_its_share_of_the_steps(average, num_steps):
    newest = np.array([newest_in_average(average, step) for step in range(num_steps)])
    assert newest[0] == 1  # nothing of the weights that training began with
    assert np.all((newest > 0) & (newest <= 1))
    left = np.append(np.cumprod((1 - newest)[:0:-1])[::-1], 1.0)
    counts = newest * left
    assert counts.sum() == pytest.approx(1)
    back = num_steps - 1 - np.arange(num_steps)
    assert (counts * back).sum() == pytest.approx(average * num_steps, abs=1)


def test_the_run_holds_the_average_of_the_weights_of_all_steps(long):
    run = long[0.1, "last"]
    assert len(run.steps) == 96
    expected = {name: torch.zeros_like(each).double() for name, each in run.steps[0].items()}
    counts = np.arange(1, 97) ** (1 / 0.1 - 1.0)  # the integral of s ** (1 / average - 2)
    counts = np.diff(counts, prepend=0) / counts[-1]
    for count, weights in zip(counts, run.steps, strict=True):
        for name, value in weights.items():
            expected[name] += count * value.double()
    opened = Run.open(run.path)
    found, moved = weights_of(opened), 0.0
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6)
        moved = max(moved, (found[name] - run.steps[-1][name]).abs().max().item())
    assert moved > 1e-3  # which is another thing than the last weights
    assert opened.contract.kept.model_dump() == {
        "rule": "last", "epoch": 24, "val_loss": None, "average": 0.1,
    }  # fmt: skip


def test_training_goes_on_as_without_an_average(long):
    plain, averaged = long[0.0, "last"], long[0.1, "last"]
    ours, theirs = (load_file(run.path / CHECKPOINT) for run in (averaged, plain))
    assert {*ours} - {*theirs} == {f"average.{name}" for name in plain.steps[0]}
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    for row, other in zip(untimed(averaged.path), untimed(plain.path), strict=True):
        trained = {key for key in row if not key.startswith("val_")}
        assert {key: row[key] for key in trained} == {key: other[key] for key in trained}
        assert row["epoch"] < 3 or row["val_loss"] != other["val_loss"]


@pytest.mark.parametrize("average", [0.0, 0.1])
def test_what_is_validated_is_what_is_kept(long, reflectance_dataset, tmp_path, average):
    run = long[average, "last"]
    said = validated(Run.open(run.path), reflectance_dataset, run.config, tmp_path)
    row = history(run.path)[-1]
    assert {f"val_{name}": value for name, value in said.items()} == {
        key: value for key, value in row.items() if key.startswith("val_")
    }


def test_a_checkpoint_holds_both_the_weights_and_their_average(long):
    run = long[0.1, "last"].path
    saved, model = load_file(run / CHECKPOINT), load_file(run / MODEL)
    averaged = {name: each for name, each in saved.items() if name.startswith("average.")}
    assert len(averaged) > 20
    for name, value in averaged.items():
        name = name.removeprefix("average.")
        assert torch.equal(model[name], value)
        assert value.dtype == torch.float32
    buffers = {name for name in model if f"average.{name}" not in averaged}
    assert {"model.normalise.mean", "model.normalise.std"} <= buffers
    assert all(torch.equal(model[name], saved[name]) for name in buffers)


def test_parts_of_a_batch_move_the_average_once_a_step(short, reflectance_dataset, tmp_path):
    config, whole = short
    config = replace(config, machine=replace(config.machine, micro_batch=5))
    run = pretrain(reflectance_dataset, config, tmp_path)
    expected = load_file(whole / MODEL)
    for name, value in weights_of(run).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)


def test_in_bf16_the_average_is_of_the_weights_in_fp32(short, reflectance_dataset, tmp_path):
    config, whole = short
    config = replace(config, training=replace(config.training, precision="bf16"))
    pretrain(reflectance_dataset, config, tmp_path)
    saved = load_file(tmp_path / CHECKPOINT)
    averaged = [each for name, each in saved.items() if name.startswith("average.")]
    assert {each.dtype for each in averaged} == {torch.float32}
    assert any(not torch.equal(each, each.bfloat16().float()) for each in averaged)
    assert history(tmp_path)[-1]["val_loss"] == pytest.approx(
        history(whole)[-1]["val_loss"], rel=0.03
    )


@pytest.mark.parametrize("share", [-0.1, 0.51, 1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match=r"training\.average"):
        parse_config({"training": {"average": share}})


# The best epoch.


@pytest.mark.parametrize("average", [0.0, 0.1])
def test_the_best_epochs_weights_are_kept(long, reflectance_dataset, tmp_path, average):
    run = long[average, "best"]
    losses = [loss for loss, _ in run.validations]
    best = min(range(24), key=losses.__getitem__)
    assert 5 < best < 23, "else this shows nothing"
    assert losses == [row["val_loss"] for row in history(run.path)]
    opened, expected = Run.open(run.path), run.validations[best][1]
    found, kept = weights_of(opened), opened.contract.kept
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert (kept.rule, kept.epoch, kept.average) == ("best", best + 1, average)
    assert kept.val_loss == losses[best]
    said = validated(opened, reflectance_dataset, run.config, tmp_path)
    assert said["loss"] == losses[best]


@pytest.mark.parametrize("average", [0.0, 0.1])
def test_keeping_the_best_changes_nothing_else(long, average):
    last, best = (long[average, keep].path for keep in ("last", "best"))
    assert untimed(last) == untimed(best)
    assert (last / CHECKPOINT).read_bytes() == (best / CHECKPOINT).read_bytes()
    assert (last / MODEL).read_bytes() != (best / MODEL).read_bytes()


def test_defaults_say_nothing_of_it(long):
    run = long[0.0, "last"]
    assert "kept" not in json.loads((run.path / "contract.json").read_text())
    assert not any("kept" in line for line in run.said)
    assert not run.kept


def test_one_more_file_is_written_and_only_when_better(long):
    run = long[0.0, "best"]
    losses = [row["val_loss"] for row in history(run.path)]
    lowest = np.minimum.accumulate([np.inf, *losses])
    assert run.kept == [n for n, loss in enumerate(losses, 1) if loss < lowest[n - 1]]
    assert len(run.kept) < 24
    assert not (run.path / BEST).exists()
    said = (
        rf"kept: the weights after epoch {run.kept[-1]} of 24, whose val_loss of "
        rf"{losses[run.kept[-1] - 1]:.4f} is the lowest"
    )
    assert said == run.said[-1]


def test_without_a_val_split_there_is_no_best_epoch(tmp_path):
    plan = replace(PLAN, split=SplitConfig(60, 8, 0.0, 0.3))
    dataset = small_dataset(tmp_path / "d", many_bands(2), plan=plan)
    said = (
        r"training\.keep best: the val split of .* is empty, so no epoch is better than another; "
        r"build with a larger data\.plan\.split\.val, or set training\.keep to last"
    )
    with pytest.raises(ConfigError, match=said):
        pretrain(dataset, small_config(keep="best"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    pretrain(dataset, small_config(epochs=1), tmp_path / "run")


def test_a_val_split_without_a_target_has_no_best_epoch(palette_dataset, tmp_path, monkeypatch):
    """Its loss would be 0 in every epoch, and the first one the best."""
    cut = loop.fixed_batches

    def unlabelled(*of):
        for windows, batch, mask in cut(*of):
            counts = torch.zeros_like(batch.class_counts)
            yield windows, replace(batch, class_counts=counts), mask

    monkeypatch.setattr(loop, "fixed_batches", unlabelled)
    config = small_config(keep="best", epochs=1)
    heads = {"landcover": HeadConfig(0.2, {"target": "fraction"})}
    with pytest.raises(ConfigError, match=r"val split of .* has nothing to predict"):
        pretrain(palette_dataset, replace(config, heads=heads), tmp_path / "run")
    idle = {"pixels": HeadConfig(0.0, {"beta": 0.1}), **heads}
    with pytest.raises(ConfigError, match=r"val split of .* has nothing to predict"):
        pretrain(palette_dataset, replace(config, heads=idle), tmp_path / "run")
    pretrain(palette_dataset, config, tmp_path / "run")


def test_a_val_loss_that_is_no_number_ends_a_run_that_is_to_keep_the_best(
    reflectance_dataset, tmp_path, monkeypatch
):
    validate, epochs = Trainer.validate, []

    def validating(self):
        epochs.append(1)
        return {**validate(self), "loss": float("nan" if len(epochs) == 2 else 1)}

    monkeypatch.setattr(Trainer, "validate", validating)
    with pytest.raises(DivergedError, match=r"val_loss is nan after epoch 2, so .* lower training"):
        pretrain(reflectance_dataset, small_config(keep="best", epochs=3), tmp_path)
    assert not (tmp_path / "contract.json").exists()
    assert len(history(tmp_path)) == 1
    told = json.loads((tmp_path / "diverged.json").read_text())
    assert told["val_loss"] == "nan"


# Killed and run again.


def killed_after(dataset, config, run, steps):
    """Train for so many steps, and no further."""
    taken = itertools.count(1)

    def stop(step, num_steps, note):
        if next(taken) == steps:
            raise Killed

    with pytest.raises(Killed):
        pretrain(dataset, config, run, stop)


@pytest.mark.parametrize("average", [0.0, 0.1])
def test_killed_and_resumed_it_ends_in_the_same_bytes(long, reflectance_dataset, tmp_path, average):
    """In the middle of epochs and at their ends, long before the best and after it."""
    config, whole = long[average, "best"].config, long[average, "best"].path
    config = replace(config, training=replace(config.training, checkpoint_seconds=0.05))
    for steps in (3, 21, 26, 17, 17):
        killed_after(reflectance_dataset, config, tmp_path, steps)
    pretrain(reflectance_dataset, config, tmp_path)
    for name in (MODEL, CHECKPOINT):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    kept, expected = (Run.open(each).contract.kept for each in (tmp_path, whole))
    assert kept == expected
    assert untimed(tmp_path) == untimed(whole)


@pytest.mark.parametrize("moment", ["best", "history", "checkpoint", "contract", "model"])
def test_killed_between_two_files_it_ends_in_the_same_bytes(
    short, reflectance_dataset, tmp_path, monkeypatch, moment
):
    """Before the best weights, their line, the checkpoint that knows of them, and at the end."""
    config, whole = short
    best = Run.open(whole).contract.kept.epoch
    save_best, add = loop.save_best, loop.Log.add

    def die(*_):
        raise Killed

    def saved(run, epoch, weights):
        save_best(run, epoch, weights) if epoch.epoch < best else die()

    def added(self, row):
        add(self, row) if row.get("epoch") != best else die()

    with monkeypatch.context() as patch:
        if moment == "history":
            patch.setattr(loop.Log, "add", added)
        else:
            patch.setattr(
                loop,
                {"best": "save_best", "checkpoint": "save_checkpoint",
                 "contract": "make_contract", "model": "save_run"}[moment],
                saved if moment == "best" else die,
            )  # fmt: skip
        with pytest.raises(Killed):
            pretrain(reflectance_dataset, config, tmp_path)
    pretrain(reflectance_dataset, config, tmp_path)
    assert (tmp_path / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    assert untimed(tmp_path) == untimed(whole)
    assert not (tmp_path / BEST).exists()


def test_a_better_epoch_of_after_the_checkpoint_stays_the_best(
    short, reflectance_dataset, tmp_path
):
    """Its epoch comes again, on another machine perhaps, with a rounding more."""
    config, whole = short
    best = Run.open(whole).contract.kept.epoch
    config = replace(config, training=replace(config.training, checkpoint_seconds=0.0))
    killed_after(reflectance_dataset, config, tmp_path, 4 * best - 2)
    before = (tmp_path / CHECKPOINT).read_bytes()
    killed_after(reflectance_dataset, config, tmp_path, 2)
    (tmp_path / CHECKPOINT).write_bytes(before)
    with safe_open(tmp_path / BEST, "pt") as opened:
        told = json.loads(opened.metadata()["best"])
    assert told["epoch"] == best
    lower = told["val_loss"] - 1e-9
    header = json.dumps({"epoch": best, "val_loss": lower})
    save_file(load_file(tmp_path / BEST), tmp_path / BEST, {"best": header})
    run = pretrain(reflectance_dataset, config, tmp_path)
    assert (run.contract.kept.epoch, run.contract.kept.val_loss) == (best, lower)
    assert (tmp_path / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def test_asked_to_end_it_goes_on_with_average_and_best(short, reflectance_dataset, tmp_path):
    config, whole = short

    def end(step, num_steps, note):
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        pretrain(reflectance_dataset, config, tmp_path, end)
    pretrain(reflectance_dataset, config, tmp_path)
    assert (tmp_path / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def test_what_is_there_of_an_earlier_start_is_not_taken_for_the_best(
    short, reflectance_dataset, tmp_path
):
    config, whole = short
    killed_after(reflectance_dataset, config, tmp_path, 10)
    assert (tmp_path / BEST).exists()
    assert not (tmp_path / CHECKPOINT).exists()
    told = json.dumps({"epoch": 3, "val_loss": -1.0})
    save_file({"of": torch.zeros(1)}, tmp_path / BEST, {"best": told})
    pretrain(reflectance_dataset, config, tmp_path)
    assert (tmp_path / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def damaged(run, how):
    file = run / BEST
    if how == "missing":
        file.unlink()
    elif how == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "pipe":
        file.unlink()
        os.mkfifo(file)
    elif how == "header":
        save_file(load_file(file), file, {"best": json.dumps({"epoch": 0, "val_loss": 1.0})})
    elif how == "silent":
        save_file(load_file(file), file)
    else:
        state = load_file(file)
        state["model.norm.bias"] = state["model.norm.bias"][:-1].clone()
        save_file(state, file, {"best": json.dumps({"epoch": 1, "val_loss": 1.0})})


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["missing", "half", "pipe", "header", "silent", "shape"])
def test_best_weights_that_are_none_are_refused_with_the_remedy(reflectance_dataset, tmp_path, how):
    config = small_config(keep="best", epochs=4, checkpoint_seconds=0.0)
    killed_after(reflectance_dataset, config, tmp_path, 9)
    damaged(tmp_path, how)
    with pytest.raises(RunError, match=r"best\.safetensors.*; delete .*checkpoints to train") as no:
        pretrain(reflectance_dataset, config, tmp_path)
    assert str(no.value).isprintable()
    assert len(str(no.value)) < 500
    shutil.rmtree(tmp_path / "checkpoints")
    pretrain(reflectance_dataset, config, tmp_path)


@pytest.mark.parametrize("how", ["missing", "shape", "nan", "another"])
def test_averages_that_are_none_are_refused_with_the_remedy(reflectance_dataset, tmp_path, how):
    config = small_config(average=0.1, checkpoint_seconds=0.0)
    killed_after(reflectance_dataset, config, tmp_path, 5)
    file, name = tmp_path / CHECKPOINT, "average.model.norm.bias"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    state = load_file(file)
    if how == "another":
        state["average.model.norm.bent"] = state[name].clone()
    elif how == "missing":
        del state[name]
    elif how == "nan":
        state[name][0] = float("nan")
    else:
        state[name] = state[name][:-1].clone()
    save_file(state, file, header)
    with pytest.raises(RunError, match=r"of its averages model\.norm\.b.*; delete it to train"):
        pretrain(reflectance_dataset, config, tmp_path)


def test_a_full_disk_leaves_the_best_weights_before(reflectance_dataset, tmp_path, monkeypatch):
    config = small_config(keep="best", checkpoint_seconds=0.0)
    whole = pretrain(reflectance_dataset, config, tmp_path / "whole").path
    for number in range(1, 13, 2):
        run, left = tmp_path / str(number), itertools.count(1)
        sync = os.fsync

        def fsync(descriptor, left=left, number=number, sync=sync):
            if next(left) > number:
                raise OSError(28, "No space left on device")
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(StorageError, match=r"No space left.*same command again"):
                pretrain(reflectance_dataset, config, run)
        pretrain(reflectance_dataset, config, run)
        assert contents(run)[MODEL] == contents(whole)[MODEL]


def test_an_average_without_numbers_is_never_kept(reflectance_dataset, tmp_path):
    config = small_config(average=0.1, keep="best", checkpoint_seconds=0.0)
    trainer = Trainer(reflectance_dataset, config, tmp_path)
    update = trainer.update

    def broken(step):
        update(step)
        if step == 5:
            trainer.average["model.norm.bias"][0] = float("inf")

    trainer.update = broken
    with pytest.raises(DivergedError, match=r"average\.model\.norm\.bias hold no numbers after st"):
        trainer.train()
    for name in (CHECKPOINT, BEST):
        assert all(each.isfinite().all() for each in load_file(tmp_path / name).values())


@pytest.mark.parametrize(
    "change",
    [{"average": 0.2}, {"average": 0.0}, {"keep": "last"}],
)
def test_a_run_is_resumed_with_what_it_began_with(reflectance_dataset, tmp_path, change):
    begun = {"average": 0.1, "keep": "best", "checkpoint_seconds": 0.0}
    killed_after(reflectance_dataset, small_config(**begun), tmp_path, 3)
    (key,) = change
    with pytest.raises(RunError, match=rf"training\.{key}: .* there, .* wanted"):
        pretrain(reflectance_dataset, small_config(**{**begun, **change}), tmp_path)


# What others make of it.


def test_a_run_from_before_there_was_a_choice_goes_on(reflectance_dataset, tmp_path):
    config = small_config(checkpoint_seconds=0.0)
    killed_after(reflectance_dataset, config, tmp_path / "run", 5)
    file = tmp_path / "run" / "config.yaml"
    older = [
        line for line in file.read_text().splitlines() if not re.match("  (average|keep):", line)
    ]
    assert len(older) == len(file.read_text().splitlines()) - 2
    file.write_text("\n".join(older) + "\n")
    run = pretrain(reflectance_dataset, config, tmp_path / "run")
    whole = pretrain(reflectance_dataset, config, tmp_path / "whole")
    assert (run.path / MODEL).read_bytes() == (whole.path / MODEL).read_bytes()


def test_the_best_epochs_weights_are_evaluated(long, reflectance_dataset, tmp_path):
    path = long[0.1, "best"].path
    run, rows = Run.open(path), history(path)
    found = evaluate(run, reflectance_dataset, tmp_path / "e.json").splits["val"].model
    best, last = rows[run.contract.kept.epoch - 1], rows[-1]
    assert found.value("masked_mae") == pytest.approx(best["val_masked_mae"], rel=1e-4)
    assert found.value("esa_ce") != pytest.approx(last["val_esa_ce"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epoch": 25}, r"kept\.epoch is 25 of presented\.epochs 24"),
        ({"epoch": 0}, r"kept\.epoch"),
        ({"rule": "first"}, r"kept\.rule"),
        ({"average": 2.0}, r"kept\.average"),
    ],
)
def test_a_contract_that_cannot_be_is_refused(long, tmp_path, change, said):
    path = long[0.1, "best"].path
    run = shutil.copytree(path, tmp_path / "run")
    contract = json.loads((run / "contract.json").read_text())
    write_json(run / "contract.json", {**contract, "kept": {**contract["kept"], **change}})
    with pytest.raises(RunError, match=said):
        Run.open(run)


def test_what_was_fitted_before_the_first_step_is_kept_as_it_was(reflectance_dataset, tmp_path):
    """An embedding and a target of frozen filters, by a run without labels."""
    config = small_config(average=0.2, keep="best", epochs=4)
    config = replace(
        config,
        model=replace(config.model, embedding="energies"),
        heads={"features": HeadConfig(1.0, {"target": "energies"})},
    )
    trainer = Trainer(reflectance_dataset, config, tmp_path / "first")
    fitted = {name: each.clone() for name, each in trainer.objective.named_buffers()}
    found = weights_of(pretrain(reflectance_dataset, config, tmp_path / "run"))
    kept = {name: value for name, value in fitted.items() if name in found}
    assert {name.split(".")[0] for name in kept} == {"model", "heads"}
    assert all(torch.equal(found[name], value) for name, value in kept.items())
