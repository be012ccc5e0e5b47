import copy
import itertools
import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from bharateo.chips.store import Dataset
from bharateo.config import HeadConfig, SplitConfig
from bharateo.errors import BharatEOError, ConfigError, ContractError, DivergedError, RunError
from bharateo.evaluation.evaluate import evaluate
from bharateo.models.heads import HEADS
from bharateo.models.targets import TARGETS
from bharateo.sensor import WORLDCOVER_PALETTE
from bharateo.training import data, loop
from bharateo.training.data import training_chips
from bharateo.training.loop import Trainer, pretrain
from bharateo.training.optimisers import build_optimisers, learning_rate
from bharateo.training.run import Run
from small_datasets import (
    PLAN,
    contents,
    many_bands,
    small_config,
    small_dataset,
)

METRICS = (
    "loss",
    "rec_smooth_l1",
    "esa_ce",
    "masked_mae",
    "esa_acc",
    "esa_acc_masked",
    "esa_acc_visible",
)
TIMED = {"chips_per_s", "data_wait"}
DOCUMENTED = {"epoch", *METRICS, "grad_norm", "lr", *TIMED, *(f"val_{name}" for name in METRICS)}


class Killed(BaseException):
    """What no code catches."""


def history(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def without_speed(rows):
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


# What a run is.


def test_a_history_row_holds_the_documented_keys_and_no_others(palette_dataset, tmp_path):
    pretrain(palette_dataset, small_config(), tmp_path)
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(set(row) == DOCUMENTED for row in rows)
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_a_history_without_a_val_split_has_no_val_columns(tmp_path):
    plan = replace(PLAN, split=SplitConfig(60, 8, 0.0, 0.3))
    pretrain(small_dataset(tmp_path / "d", plan=plan), small_config(), tmp_path / "run")
    expected = {name for name in DOCUMENTED if not name.startswith("val_")}
    assert all(set(row) == expected for row in history(tmp_path / "run"))


@pytest.mark.parametrize("model", ["v0", "seed"])
def test_the_loss_is_the_heads_losses_by_their_weights(palette_dataset, tmp_path, model):
    pretrain(palette_dataset, small_config(model), tmp_path)
    for row in history(tmp_path):
        for kind in ("", "val_"):
            expected = row[f"{kind}rec_smooth_l1"] + 0.2 * row[f"{kind}esa_ce"]
            assert row[f"{kind}loss"] == pytest.approx(expected, rel=1e-6)


def test_accuracy_over_all_tokens_is_made_of_masked_and_visible_ones(palette_dataset, tmp_path):
    pretrain(palette_dataset, small_config(), tmp_path)
    for row in history(tmp_path):
        low, high = sorted([row["esa_acc_masked"], row["esa_acc_visible"]])
        assert low <= row["esa_acc"] <= high


GOLDEN = """
v0    palette      0.98857 0.87996
seed  palette      0.95024 0.80114
v0    reflectance  1.33896 1.26925
seed  reflectance  1.23487 1.17375
"""
"""Model, dataset and the loss of the two epochs, fp32."""


@pytest.mark.parametrize("line", GOLDEN.split("\n")[1:-1])
def test_golden_losses_are_reproduced(line, palette_dataset, reflectance_dataset, tmp_path):
    model, name, *losses = line.split()
    dataset = palette_dataset if name == "palette" else reflectance_dataset
    pretrain(dataset, small_config(model), tmp_path)
    got = [row["loss"] for row in history(tmp_path)]
    assert got == pytest.approx([float(loss) for loss in losses], rel=1e-3)


def test_what_can_be_learnt_is_learnt(palette_dataset, tmp_path):
    config = small_config(epochs=12, batch_size=8, lr=5e-3)
    config = replace(config, model=replace(config.model, width=32, decoder_width=32))
    pretrain(palette_dataset, config, tmp_path)
    first, *_, last = history(tmp_path)
    assert last["loss"] < 0.7 * first["loss"]
    assert last["val_masked_mae"] < 0.8 * first["val_masked_mae"]
    assert last["val_esa_acc_visible"] > 0.7 > first["val_esa_acc_visible"]


def test_energies_are_fitted_to_the_train_split_before_the_first_step(
    reflectance_dataset, tmp_path
):
    config = small_config(epochs=1)
    config = replace(config, model=replace(config.model, embedding="energies"))
    trainer = Trainer(reflectance_dataset, config, tmp_path)
    before = {name: value.clone() for name, value in trainer.objective.model.named_buffers()}
    train = reflectance_dataset.indices("train")
    energies = trainer.objective.model.embed.energies
    windows = data.fixed_windows(train.tolist(), reflectance_dataset.size_px, 32)
    batch = data.cut(reflectance_dataset, windows, 32, 8)
    every = torch.arange(16).expand(len(windows), -1)
    found = energies(*trainer.objective.model.patches(batch.image, batch.valid, every))
    assert found.mean().item() == pytest.approx(0, abs=0.1)
    assert found.std().item() == pytest.approx(1, abs=0.2)
    run = pretrain(reflectance_dataset, config, tmp_path)
    for name, value in run.model.named_buffers():
        assert torch.equal(value, before[name]), name
    other = replace(config, training=replace(config.training, seed=1))
    again = Trainer(reflectance_dataset, other, tmp_path / "other").objective.model.embed.energies
    assert not torch.equal(again.filters, energies.filters)


def test_the_encoders_classes_have_their_own_line_in_the_history(palette_dataset, tmp_path):
    config = small_config()
    heads = {**config.heads, "landcover": HeadConfig(0.2, {"encoder": 0.5})}
    pretrain(palette_dataset, replace(config, heads=heads), tmp_path)
    for row in history(tmp_path):
        for kind in ("", "val_"):
            classes = row[f"{kind}esa_ce"] + 0.5 * row[f"{kind}esa_ce_encoder"]
            expected = row[f"{kind}rec_smooth_l1"] + 0.2 * classes
            assert row[f"{kind}loss"] == pytest.approx(expected, rel=1e-6)
    assert "esa_ce_encoder" not in {metric.name for metric in HEADS["landcover"].metrics}


def test_training_twice_gives_the_same_weights(palette_dataset, tmp_path):
    first, again = (tmp_path / name for name in ("first", "again"))
    pretrain(palette_dataset, small_config(), first)
    torch.manual_seed(99)
    pretrain(palette_dataset, small_config(), again)
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_another_seed_gives_other_weights(palette_dataset, tmp_path):
    weights = {
        pretrain(palette_dataset, small_config(seed=seed), tmp_path / str(seed))
        .model.embed.weight.sum()
        .item()
        for seed in (1, 2)
    }
    assert len(weights) == 2


def test_progress_tells_every_step(palette_dataset, tmp_path):
    told = []
    pretrain(palette_dataset, small_config(), tmp_path, lambda *now: told.append(now))
    assert [step for step, _, _ in told] == list(range(1, 9))
    assert {num_steps for _, num_steps, _ in told} == {8}
    notes = [note.split("  ") for _, _, note in told]
    assert [note[0] for note in notes] == ["epoch 1/2"] * 4 + ["epoch 2/2"] * 4
    assert all(re.fullmatch(r"\d+ chips/s", note[-2]) for note in notes)
    assert all(re.fullmatch(r"\d+:\d\d left", note[-1]) for note in notes)
    assert notes[-1][-1] == "0:00 left"
    last = history(tmp_path)[-1]
    assert notes[-1][1:-2] == [
        f"loss {last['loss']:.3f}",
        f"masked MAE {last['masked_mae']:.4f}",
        f"masked class accuracy {last['esa_acc_masked']:.4f}",
    ]


def test_bf16_trains_to_about_the_same_losses(palette_dataset, tmp_path):
    for precision in ("fp32", "bf16"):
        pretrain(palette_dataset, small_config(precision=precision), tmp_path / precision)
    fp32, bf16 = (history(tmp_path / precision) for precision in ("fp32", "bf16"))
    for expected, row in zip(fp32, bf16, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.05)
    assert bf16 != fp32


# Killed and run again.


def killed_at(dataset, config, run, step):
    """Train up to a step and no further; whether it came to that."""
    return bool(killed_after(dataset, config, run, lambda taken, _: taken == step))


def killed_after(dataset, config, run, enough):
    """Train until ``enough(step, steps of this attempt)``; the steps taken until then."""
    steps = []

    def stop(step, num_steps, note):
        steps.append(step)
        if enough(step, len(steps)):
            raise Killed

    try:
        pretrain(dataset, config, run, stop)
    except Killed:
        return steps
    return []


@pytest.fixture(scope="module", params=["v0", "seed", "energies", "band sets"])
def whole(request, palette_dataset, tmp_path_factory):
    """A configuration, and the run of it that nobody killed."""
    config = small_config("seed" if request.param == "seed" else "v0", epochs=3, batch_size=24)
    changes = {
        "energies": {"embedding": "energies"},
        "band sets": {"embedding": "energies", "band_sets": {"some": ("red", "green")}},
    }.get(request.param, {})
    config = replace(config, model=replace(config.model, **changes))
    run = tmp_path_factory.mktemp("whole") / "run"
    pretrain(palette_dataset, config, run)
    return config, run


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1000.0, 0.02])
@pytest.mark.slow
def test_killed_at_any_step_and_resumed_it_ends_in_the_same_bytes(
    whole, palette_dataset, tmp_path, checkpoint_seconds
):
    config, undisturbed = whole
    config = replace(
        config, training=replace(config.training, checkpoint_seconds=checkpoint_seconds)
    )
    rng = random.Random(str(checkpoint_seconds))
    taken = []
    for _ in range(4):
        patience = rng.randint(1, 3 if checkpoint_seconds < 1 else 8)
        steps = killed_after(palette_dataset, config, tmp_path, lambda _, n, p=patience: n == p)
        taken += [steps] if steps else []
    assert len(taken) >= 3
    last, first = [steps[-1] for steps in taken], [steps[0] for steps in taken]
    if checkpoint_seconds == 0:
        assert first[1:] == [step + 1 for step in last[:-1]]
    if checkpoint_seconds == 1000:
        assert set(first) == {1}
    pretrain(palette_dataset, config, tmp_path)
    model = "model.safetensors"
    assert (tmp_path / model).read_bytes() == (undisturbed / model).read_bytes()
    assert without_speed(history(tmp_path)) == without_speed(history(undisturbed))


def test_killed_and_resumed_chips_lie_under_the_light_they_would_have(
    reflectance_dataset, tmp_path
):
    config = small_config(jitter=0.2, masks_per_chip=2, checkpoint_seconds=0.0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pretrain(reflectance_dataset, config, whole)
    assert killed_after(reflectance_dataset, config, killed, lambda _, n: n == 3) == [1, 2, 3]
    micro = replace(config, machine=replace(config.machine, micro_batch=3))
    pretrain(reflectance_dataset, micro, killed)
    weights = (Run.open(each).model.state_dict() for each in (whole, killed))
    for one, other in zip(*(each.values() for each in weights), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    pretrain(reflectance_dataset, config, tmp_path / "again")
    model = "model.safetensors"
    assert (tmp_path / "again" / model).read_bytes() == (whole / model).read_bytes()


@pytest.mark.parametrize("step", [3, 4, 6])
@pytest.mark.slow
def test_killed_around_the_end_of_an_epoch_no_row_is_lost_or_doubled(
    whole, palette_dataset, tmp_path, step
):
    config, undisturbed = whole
    for checkpoint_seconds in (1000.0, 0.0):
        each = replace(
            config, training=replace(config.training, checkpoint_seconds=checkpoint_seconds)
        )
        run = tmp_path / str(checkpoint_seconds)
        assert killed_at(palette_dataset, each, run, step)
        assert len(history(run) if (run / "history.jsonl").exists() else []) == step // 3
        pretrain(palette_dataset, each, run)
        assert without_speed(history(run)) == without_speed(history(undisturbed))


def test_killed_between_writing_history_and_checkpoint_no_row_is_doubled(
    whole, palette_dataset, tmp_path, monkeypatch
):
    config, undisturbed = whole
    add = loop.Log.add

    def add_and_die(self, row):
        add(self, row)
        if len(self.rows) == 2:
            raise Killed

    monkeypatch.setattr(loop.Log, "add", add_and_die)
    with pytest.raises(Killed):
        pretrain(palette_dataset, config, tmp_path)
    monkeypatch.undo()
    assert len(history(tmp_path)) == 2
    pretrain(palette_dataset, config, tmp_path)
    assert without_speed(history(tmp_path)) == without_speed(history(undisturbed))


@pytest.mark.parametrize("moment", ["save_checkpoint", "make_contract", "save_run"])
@pytest.mark.slow
def test_killed_at_the_very_end_it_is_no_finished_run(
    whole, palette_dataset, tmp_path, monkeypatch, moment
):
    config, undisturbed = whole

    def die(*_):
        raise Killed

    monkeypatch.setattr(loop, moment, die)
    with pytest.raises(Killed):
        pretrain(palette_dataset, config, tmp_path)
    monkeypatch.undo()
    with pytest.raises(RunError, match="has not finished: run the same pretrain command again"):
        Run.open(tmp_path)
    pretrain(palette_dataset, config, tmp_path)
    model = "model.safetensors"
    assert (tmp_path / model).read_bytes() == (undisturbed / model).read_bytes()


def test_a_finished_run_is_returned_without_training(palette_dataset, tmp_path, monkeypatch):
    pretrain(palette_dataset, small_config(), tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(loop, "Trainer", None)
    pretrain(palette_dataset, small_config(), tmp_path)
    assert contents(tmp_path) == before


def test_a_moved_dataset_is_still_the_same_one(palette_dataset, tmp_path):
    small_dataset(tmp_path / "built-again")
    pretrain(palette_dataset, small_config(), tmp_path / "run")
    before = contents(tmp_path / "run")
    pretrain(Dataset.open(tmp_path / "built-again"), small_config(), tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_leftovers_of_a_killed_writer_are_cleared(palette_dataset, tmp_path):
    assert killed_at(palette_dataset, small_config(checkpoint_seconds=0.0), tmp_path, 2)
    (tmp_path / "checkpoints" / ".last.safetensors.abc.partial").write_bytes(b"half")
    pretrain(palette_dataset, small_config(checkpoint_seconds=0.0), tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


# What is refused, and how.


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 0.5}, r"training\.lr: 0\.002 there, 0\.5 wanted"),
        ({"seed": 7}, r"training\.seed: 42 there, 7 wanted"),
        ({"grad_clip": None}, r"training\.grad_clip: 1\.0 there, None wanted"),
    ],
)
def test_another_configurations_folder_is_refused_with_the_key(
    palette_dataset, tmp_path, change, named
):
    kept = {"checkpoint_seconds": 0.0}
    assert killed_at(palette_dataset, small_config(**kept), tmp_path, 3)
    before = contents(tmp_path)
    with pytest.raises(RunError, match=rf"{named}.*choose another: --output .*-2$"):
        pretrain(palette_dataset, small_config(**kept, **change), tmp_path)
    assert contents(tmp_path) == before


def test_another_datasets_folder_is_refused(palette_dataset, tmp_path):
    pretrain(palette_dataset, small_config(), tmp_path / "run")
    other = small_dataset(tmp_path / "d", regions=("north", "east"))
    with pytest.raises(RunError, match="the dataset is another one"):
        pretrain(other, small_config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"training": {"epochs": 0}}, ConfigError, r"training\.epochs must be more than 0, got 0"),
        ({"training": {"batch_size": -1}}, ConfigError, r"training\.batch_size .* got -1"),
        ({"training": {"lr": 0.0}}, ConfigError, r"training\.lr must be more than 0"),
        ({"training": {"chips_per_epoch": 0}}, ConfigError, r"training\.chips_per_epoch"),
        ({"training": {"lanes": 0}}, ConfigError, r"training\.lanes must be more than 0"),
        ({"training": {"masks_per_chip": 3}}, ConfigError, "16 is not a multiple of .* 3"),
        ({"machine": {"micro_batch": 0}}, ConfigError, r"machine\.micro_batch must be more than 0"),
        ({"machine": {"prefetch": -1}}, ConfigError, r"machine\.prefetch must be 0 or more"),
        ({"model": {"patch_px": 9}}, ConfigError, "patch_px 9 does not divide chip_px 32"),
        ({"model": {"mask_ratio": 1.0}}, ConfigError, r"mask_ratio 1\.0"),
        ({"model": {"width": 18}}, ConfigError, "multiple of 4, got 18"),
        ({"model": {"num_heads": 3}}, ConfigError, "width 16 is not a multiple of num_heads 3"),
        ({"model": {"chip_px": 64}}, ContractError, r"chip_px 64 is larger .* \(48 px\).*size_px"),
        (
            {"heads": {}},
            ConfigError,
            "heads is empty: give at least one of pixels, features, landcover",
        ),
        (
            {"model": {"mask_ratio": 0.0}},
            ConfigError,
            r"model\.mask_ratio 0 hides no patch, and heads\.pixels learns of hidden ones alone",
        ),
        ({"heads": {"edges": HeadConfig()}}, ConfigError, r"heads\.edges is not a head"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_and_claims_no_folder(
    palette_dataset, tmp_path, change, error, said
):
    config = small_config()
    (section, values) = next(iter(change.items()))
    section_of = getattr(config, section)
    new = values if section == "heads" else replace(section_of, **values)
    with pytest.raises(error, match=said):
        pretrain(palette_dataset, replace(config, **{section: new}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    pretrain(palette_dataset, small_config(epochs=1), tmp_path / "run")


def test_labels_alone_are_learnt_with_nothing_hidden(reflectance_dataset, tmp_path):
    config = small_config(epochs=4)
    config = replace(
        config,
        model=replace(config.model, mask_ratio=0.0),
        heads={"landcover": config.heads["landcover"]},
    )
    run = pretrain(reflectance_dataset, config, tmp_path / "run")
    first, *_, last = history(run.path)
    assert last["esa_ce"] < first["esa_ce"]
    assert last["esa_acc"] == last["esa_acc_visible"]
    opened = Run.open(run.path)
    assert opened.contract.mask_ratio == 0
    scores = evaluate(opened, reflectance_dataset, tmp_path / "e.json").splits["test"].model
    assert scores.value("esa_acc_visible") == scores.value("esa_acc")
    assert scores.value("esa_acc_masked") is None


def test_a_dead_target_is_refused_and_claims_no_folder(reflectance_dataset, tmp_path, monkeypatch):
    def flat(*what):
        some = training_chips(*what)
        return replace(some, image=some.image.mean((2, 3), keepdim=True).expand_as(some.image))

    config = small_config()
    config = replace(config, heads={"features": HeadConfig(1.0, {"target": "normalised"})})
    said = []
    with monkeypatch.context() as changed:
        changed.setattr(loop, "training_chips", flat)
        said_why = r"heads\.features: nothing can be learned .*hardly varies"
        with pytest.raises(ConfigError, match=said_why):
            pretrain(reflectance_dataset, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    pretrain(reflectance_dataset, config, tmp_path / "run", say=said.append)
    assert "effective rank" in said[0]


def test_classes_are_not_learnt_where_nothing_is_labelled(reflectance_dataset, tmp_path):
    unlabelled = copy.copy(reflectance_dataset)
    unlabelled.chips = unlabelled.chips.assign(labelled_fraction=0.0)
    with pytest.raises(
        ConfigError, match=r"heads\.landcover learns from labels, and .* holds none"
    ):
        pretrain(unlabelled, small_config(), tmp_path / "run")
    without = replace(small_config(), heads={"features": HeadConfig()})
    pretrain(unlabelled, without, tmp_path / "run")


@pytest.mark.parametrize("target", [*TARGETS, "correction"])
@pytest.mark.slow
def test_what_is_hidden_is_learned_better_than_by_filling_it_in(
    reflectance_dataset, tmp_path, target
):
    head = "pixels" if target == "correction" else "features"
    config = small_config(epochs=4, chips_per_epoch=320, lr=4e-3)
    config = replace(config, heads={head: HeadConfig(1.0, {"target": target})})
    run = pretrain(reflectance_dataset, config, tmp_path / "run")
    scores = evaluate(run, reflectance_dataset, tmp_path / "e.json").splits["test"]
    metric = "masked_mae" if head == "pixels" else "feature_mse"
    bar = scores.baselines["bilinear" if head == "pixels" else "nearest_visible"]
    assert scores.model.value(metric) < bar.value(metric)


@pytest.mark.slow
def test_colours_of_a_palette_are_learned_better_as_such(palette_dataset, tmp_path):
    config = small_config(epochs=8, chips_per_epoch=640, lr=1e-2)
    error = {}
    for target in ("pixels", "palette"):
        options = {"target": target, "beta": 0.03}
        asked = replace(config, heads={"pixels": HeadConfig(1.0, options)})
        run = pretrain(palette_dataset, asked, tmp_path / target)
        test = evaluate(run, palette_dataset, tmp_path / f"{target}.json").splits["test"]
        error[target] = test.model.value("masked_mae")
    assert error["palette"] < 0.97 * error["pixels"]


def test_a_palette_is_refused_for_pixels_in_other_colours(reflectance_dataset, tmp_path):
    config = replace(small_config(), heads={"pixels": HeadConfig(1.0, {"target": "palette"})})
    with pytest.raises(ConfigError, match="target palette is for chips in the colours of"):
        pretrain(reflectance_dataset, config, tmp_path / "run")


def test_a_dataset_without_training_ground_is_refused(palette_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Dataset, "indices", lambda self, split: np.zeros(0, int))
    with pytest.raises(ContractError, match="has no chip in its train split"):
        pretrain(palette_dataset, small_config(), tmp_path / "run")


def test_a_loss_that_is_no_number_stops_with_a_remedy(palette_dataset, tmp_path):
    config = small_config(lr=1e30, warmup_epochs=0, grad_clip=None)
    with pytest.raises(DivergedError, match=r"is (nan|inf) at step \d+: lower training\.lr"):
        pretrain(palette_dataset, config, tmp_path)


# The optimisation.


def test_cosine_rises_in_a_line_and_falls_to_zero():
    config = small_config(epochs=10, lr=2.0, warmup_epochs=2.0)
    rates = [learning_rate(config, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    expected = [1 + math.cos(math.pi * step / 40) for step in range(40)]
    assert rates[10:] == pytest.approx(expected)
    assert rates[10] == 2.0
    assert 0 < rates[-1] < 0.01


def test_cosine_without_warm_up_starts_at_the_top():
    assert learning_rate(small_config(warmup_epochs=0.0, lr=0.5), 0, 5) == 0.5


def test_cosine_epoch_is_pytorchs_own_stepped_every_epoch():
    config = small_config(epochs=20, lr=4e-4, schedule="cosine_epoch", warmup_epochs=1.0)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=4e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=20)
    for epoch in range(20):
        rates = {learning_rate(config, epoch * 24 + step, 24) for step in range(24)}
        assert len(rates) == 1
        assert rates.pop() == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        schedule.step()


def test_the_rate_of_a_step_is_what_the_optimiser_uses(palette_dataset, tmp_path):
    trainer = Trainer(palette_dataset, small_config(), tmp_path)
    for step in (0, 5):
        rate = trainer.step(step, trainer.loader.load(step)).lr
        used = {group["lr"] for each in trainer.optimisers for group in each.param_groups}
        assert used == {rate}
        assert rate == learning_rate(trainer.config, step, trainer.steps_per_epoch)


@pytest.mark.parametrize("model", ["v0", "seed"])
@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_weight_decay_spares_single_vectors_if_asked_to(palette_dataset, tmp_path, model, decay):
    config = small_config(model, decay=decay, beta2=0.9)
    trainer = Trainer(palette_dataset, config, tmp_path)
    groups = [group for each in trainer.optimisers for group in each.param_groups]
    assert {group["weight_decay"] for group in groups if group["params"]} <= {0.05, 0.0}
    assert trainer.optimisers[0].param_groups[0]["betas"] == (0.9, 0.9)
    decayed = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    everything = list(trainer.module.parameters())
    assert sum(len(group["params"]) for group in groups) == len(everything)
    wanted = {id(p) for p in everything if decay == "all" or p.ndim > 1}
    assert decayed == wanted


def test_muon_moves_the_matrices_of_blocks_and_adamw_all_else(palette_dataset, tmp_path):
    module = Trainer(palette_dataset, small_config(), tmp_path).objective
    adamw, muon = build_optimisers(module, small_config())
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw
    parts = ("attention.qkv", "attention.out", "mlp.0", "mlp.2")
    assert by_muon == {
        f"model.{half}.0.{part}.weight" for half in ("encoder", "decoder") for part in parts
    }
    (only,) = build_optimisers(module, small_config(optimiser="adamw"))
    assert sum(len(group["params"]) for group in only.param_groups) == len(names)


def test_chips_of_an_epoch_are_what_the_squares_hold_side_by_side(palette_dataset, tmp_path):
    trainer = Trainer(palette_dataset, small_config(), tmp_path)
    assert trainer.chips_per_epoch == 4 * len(palette_dataset.indices("train"))


@pytest.mark.parametrize("num_bands", [1, 10])
def test_any_sensor_trains(tmp_path, num_bands):
    dataset = small_dataset(tmp_path / "d", many_bands(num_bands), regions=("west",))
    for model, augment in itertools.product(("v0", "seed"), ("d4", "none")):
        config = small_config(model, epochs=1, augment=augment)
        run = pretrain(dataset, config, tmp_path / f"{model}-{augment}")
        assert run.model.num_bands == num_bands
        assert history(run.path)[0]["loss"] > 0


def test_only_standardised_sensors_are_standardised(palette_dataset, reflectance_dataset, tmp_path):
    assert not WORLDCOVER_PALETTE.standardised
    plain = pretrain(palette_dataset, small_config(epochs=1), tmp_path / "p").model.normalise
    assert (plain.mean.tolist(), plain.std.tolist()) == ([0, 0, 0], [1, 1, 1])
    other = pretrain(reflectance_dataset, small_config(epochs=1), tmp_path / "r").model.normalise
    np.testing.assert_allclose(other.mean, reflectance_dataset.statistics.mean, rtol=1e-6)
    np.testing.assert_allclose(other.std, reflectance_dataset.statistics.std, rtol=1e-6)


def test_every_refusal_is_one_of_ours():
    assert all(issubclass(kind, BharatEOError) for kind in (ConfigError, ContractError, RunError))
