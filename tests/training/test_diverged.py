"""A value that is no number: found where it begins, its cause named, and never kept."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from bharateo.config import MachineConfig
from bharateo.errors import DivergedError
from bharateo.models.heads import Batch
from bharateo.models.patches import Mask
from bharateo.training import engine as engines
from bharateo.training.engine import Engine
from bharateo.training.loop import Trainer, pretrain
from bharateo.training.run import training_state
from small_datasets import small_config

CHECKPOINT = "checkpoints/last.safetensors"


class LaterEngine(Engine):
    """Looks at a step after the next has been launched, as on a GPU."""

    @property
    def asynchronous(self):
        return True


@pytest.fixture(autouse=True)
def no_pinned_memory(monkeypatch):
    """There is none where there is no GPU, and a later engine asks for it."""
    for kind in (Batch, Mask):
        monkeypatch.setattr(kind, "pinned", lambda self: self)


def later_engine():
    return LaterEngine(machine=MachineConfig(compile=False))


def all_finite(path):
    return all(value.isfinite().all() for value in load_file(path).values())


def poison(monkeypatch, chips):
    """Some chips are loaded without a number."""
    prepare = engines.prepare

    def poisoned(raw, *rest):
        batch, mask = prepare(raw, *rest)
        for place, chip in enumerate(batch.chip.tolist()):
            if chip in chips:
                batch.image[place] = math.nan
        return batch, mask

    monkeypatch.setattr(engines, "prepare", poisoned)


def break_a_weight(trainer, at_step):
    """The update of a step puts a NaN into one weight, though loss and gradients are finite."""
    last, steps = trainer.optimisers[-1], []
    update = last.step

    def broken():
        update()
        steps.append(len(steps))
        if steps[-1] == at_step:
            with torch.no_grad():
                trainer.objective.model.norm.bias[1] = math.nan

    last.step = broken


def told(run):
    return json.loads((run / "diverged.json").read_text())


def test_before_the_first_checkpoint_only_the_chips_at_fault_are_blamed(
    reflectance_dataset, tmp_path, monkeypatch
):
    """The step has been taken when it is looked at, and there is no checkpoint to go back to."""
    config = small_config(batch_size=64)
    trainer = Trainer(reflectance_dataset, config, tmp_path, later_engine())
    at_fault = {*trainer.loader.chips(0)[:2].tolist()}
    poison(monkeypatch, at_fault)
    with pytest.raises(DivergedError, match="loss is nan at step 0: "):
        trainer.train()
    assert {*told(tmp_path)["chips_not_finite_alone"]} == at_fault
    assert {*told(tmp_path)["chips_of_the_step"]} > at_fault
    assert all(value.isfinite().all() for value in training_state(trainer.objective, []).values())
    assert all_finite(tmp_path / CHECKPOINT)


def test_an_average_goes_back_with_the_weights_where_steps_are_looked_at_late(
    reflectance_dataset, tmp_path, monkeypatch
):
    config = small_config(batch_size=64, epochs=3, average=0.2, checkpoint_seconds=0.0)
    trainer = Trainer(reflectance_dataset, config, tmp_path, later_engine())
    finish = Trainer.finish

    def finished(self, launched):
        if launched.step == 2:
            launched.totals[0] = math.nan
        return finish(self, launched)

    monkeypatch.setattr(Trainer, "finish", finished)
    with pytest.raises(DivergedError, match="loss is nan at step 2: "):
        trainer.train()
    saved = load_file(tmp_path / CHECKPOINT)
    averages = {name: each for name, each in saved.items() if name.startswith("average.")}
    assert averages
    for name, value in averages.items():
        assert torch.equal(trainer.average[name.removeprefix("average.")], value)


def test_what_is_kept_is_the_same_where_steps_are_looked_at_late(reflectance_dataset, tmp_path):
    config = small_config(epochs=10, average=0.1, keep="best")
    trainer = Trainer(reflectance_dataset, config, tmp_path / "later", later_engine())
    trainer.train()
    trainer.finish_run()
    pretrain(reflectance_dataset, config, tmp_path / "usual")
    later, usual = ((tmp_path / name / "model.safetensors") for name in ("later", "usual"))
    assert later.read_bytes() == usual.read_bytes()


def test_a_weight_that_an_update_breaks_is_named_and_no_chip_is_blamed(
    reflectance_dataset, tmp_path
):
    trainer = Trainer(reflectance_dataset, small_config(), tmp_path)
    break_a_weight(trainer, at_step=1)
    named = "loss is nan at step 2: .* Step 1 left no numbers in model.norm.bias"
    with pytest.raises(DivergedError, match=named):
        trainer.train()
    assert told(tmp_path)["chips_not_finite_alone"] == []
    assert told(tmp_path)["not_finite_before"] == ["model.norm.bias"]


@pytest.mark.parametrize("engine", [Engine, later_engine])
@pytest.mark.parametrize("at_step", [2, 3, 7])
def test_weights_without_numbers_are_never_kept_nor_judged(
    reflectance_dataset, tmp_path, at_step, engine
):
    """In the middle of an epoch, at its end, and at the very end of the run."""
    config = small_config(checkpoint_seconds=0.0)
    trainer = Trainer(reflectance_dataset, config, tmp_path, engine())
    break_a_weight(trainer, at_step)
    named = f"model.norm.bias hold no numbers after step {at_step}: lower training.lr"
    with pytest.raises(DivergedError, match=named):
        trainer.train()
    assert all_finite(tmp_path / CHECKPOINT)
    history = (tmp_path / "history.jsonl").read_text() if at_step > 3 else ""
    assert "NaN" not in history
    assert len(history.splitlines()) == at_step // 4
    assert told(tmp_path)["not_finite_after"] == ["model.norm.bias"]


def test_the_same_command_goes_on_from_before_the_fault(reflectance_dataset, tmp_path):
    config = small_config(checkpoint_seconds=0.0)
    run, whole = tmp_path / "run", tmp_path / "whole"
    trainer = Trainer(reflectance_dataset, config, run)
    break_a_weight(trainer, at_step=5)
    with pytest.raises(DivergedError):
        trainer.train()
    pretrain(reflectance_dataset, config, run)
    pretrain(reflectance_dataset, config, whole)
    model = "model.safetensors"
    assert (run / model).read_bytes() == (whole / model).read_bytes()


def test_what_an_optimiser_keeps_is_looked_at_too(reflectance_dataset, tmp_path):
    trainer = Trainer(reflectance_dataset, small_config(), tmp_path)
    trainer.step(0, trainer.loader.load(0))
    assert trainer.broken() == []
    bias = trainer.objective.model.norm.bias
    trainer.optimisers[0].state[bias]["exp_avg"][0] = math.inf
    assert trainer.broken() == ["optimiser.exp_avg.model.norm.bias"]


def test_a_learning_rate_that_no_weight_survives_leaves_none_on_disk(reflectance_dataset, tmp_path):
    config = small_config(lr=1e38, warmup_epochs=0.0, grad_clip=None, checkpoint_seconds=0.0)
    with pytest.raises(DivergedError, match=r"lower training\.lr"):
        pretrain(reflectance_dataset, replace(config), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / CHECKPOINT).exists() or all_finite(tmp_path / CHECKPOINT)


def test_a_checkpoint_of_before_the_first_step_is_gone_on_from(reflectance_dataset, tmp_path):
    """Written where steps are looked at late; there are no optimiser's numbers in it."""
    config = small_config()
    trainer = Trainer(reflectance_dataset, config, tmp_path, later_engine())
    trainer.optimisers[0].step = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (tmp_path / CHECKPOINT).exists()
    histories = []
    for run in (tmp_path, tmp_path / "whole"):
        Trainer(reflectance_dataset, config, run).train()
        rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        histories.append([{**row, "chips_per_s": None, "data_wait": None} for row in rows])
    assert histories[0] == histories[1]
