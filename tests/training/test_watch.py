import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from bharateo.errors import ConfigError, DivergedError, Stopped
from bharateo.training import engine, loop, planning
from bharateo.training.loop import SpikeWatch, StepRecord, StopWish, TensorBoard, pretrain
from small_datasets import small_config


def record(step, loss=1.0, grad_norm=1.0):
    return StepRecord(step, loss, grad_norm, 1e-3, {})


# Spikes.


def test_a_spike_is_far_above_the_median_of_the_last_steps():
    watch = SpikeWatch()
    assert [watch.look(record(step, 1 + step % 2 / 10), None) for step in range(50)] == [[]] * 50
    (spike,) = watch.look(record(50, 1.7), None)
    assert (spike["step"], spike["spike"], spike["value"]) == (50, "loss", 1.7)
    assert spike["usual"] == pytest.approx(1.05)
    (spike,) = watch.look(record(51, grad_norm=5.1), None)
    assert (spike["spike"], spike["usual"]) == ("grad_norm", 1.0)


def test_what_is_usual_is_so_where_the_same_bands_are_shown():
    watch = SpikeWatch()
    shown = [("rgb", 2.0), (None, 1.0)] * 50
    assert not any(watch.look(record(n, loss), each) for n, (each, loss) in enumerate(shown))
    assert watch.look(record(100, 2.0), "rgb") == []
    (spike,) = watch.look(record(101, 2.0), None)
    assert (spike["value"], spike["usual"]) == (2.0, 1.0)


def test_the_first_steps_are_no_spikes_and_a_slow_rise_is_none():
    watch = SpikeWatch()
    assert not any(
        watch.look(record(step, loss), None) for step, loss in enumerate([1, 9, 1, 50] * 4)
    )
    watch = SpikeWatch()
    assert not any(watch.look(record(step, 1.005**step), None) for step in range(300))


def test_spikes_are_written_down_with_their_chips(palette_dataset, tmp_path, monkeypatch):
    class Always(SpikeWatch):
        def look(self, record, band_set):
            if record.step == 3:
                return [{"step": 3, "spike": "loss", "value": 9.0, "usual": 1.0}]
            return []

    monkeypatch.setattr(loop, "SpikeWatch", Always)
    said = []
    pretrain(palette_dataset, small_config(), tmp_path, say=said.append)
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["step"], event["spike"]) == (3, "loss")
    assert set(event["chips"]) <= {*palette_dataset.indices("train").tolist()}
    assert event["chips"]
    target, spike = said
    assert target.startswith("heads.pixels, target: 192 numbers a patch, effective rank ")
    assert spike == "step 3: loss is 9, usually 1 (events.jsonl)"


# Numbers that are none.


def test_the_chips_of_a_loss_that_is_no_number_are_written_down(
    reflectance_dataset, tmp_path, monkeypatch
):
    """Two chips are poisoned; they are named apart from the others of their step."""
    poisoned = {*reflectance_dataset.indices("train")[:2].tolist()}
    prepare = engine.prepare

    def poison(raw, *rest):
        batch, mask = prepare(raw, *rest)
        for place, chip in enumerate(batch.chip.tolist()):
            if chip in poisoned:
                batch.image[place] = float("inf")
        return batch, mask

    monkeypatch.setattr(engine, "prepare", poison)
    with pytest.raises(DivergedError, match=r"loss is nan at step 0: .*diverged\.json"):
        pretrain(reflectance_dataset, small_config(batch_size=64), tmp_path)
    found = json.loads((tmp_path / "diverged.json").read_text())
    assert set(found["chips_not_finite_alone"]) == poisoned
    assert set(found["chips_of_the_step"]) > poisoned
    assert (found["step"], found["loss"]) == (0, "nan")


# Plan and measurement.


def test_a_long_run_compares_its_plan_with_what_it_takes(palette_dataset, tmp_path, monkeypatch):
    for module in (planning, loop):
        monkeypatch.setattr(module, "AFTER_STEPS", 3)
    said = []
    pretrain(palette_dataset, small_config(epochs=3), tmp_path, say=said.append)
    _target, planned, compared = said
    assert planned.startswith("planned: 0.00 h for all 12 steps at ")
    assert "GFLOP/s of a large product (fp32)" in planned
    assert compared.startswith("after 3 steps: ")
    assert "of what was planned" in compared
    assert "model FLOPs utilisation" in compared
    assert "waiting for data" in compared


def test_a_short_run_is_not_kept_waiting_by_a_plan(palette_dataset, tmp_path):
    said = []
    pretrain(palette_dataset, small_config(), tmp_path, say=said.append)
    assert not [line for line in said if "planned" in line]


# TensorBoard.


READ = """
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
for name in sorted(events.Tags()["scalars"]):
    print(name, len(events.Scalars(name)))
"""


def test_tensorboard_gets_every_step(palette_dataset, tmp_path):
    config = small_config()
    machine = replace(config.machine, tensorboard=True)
    pretrain(palette_dataset, replace(config, machine=machine), tmp_path)
    command = [sys.executable, "-c", READ, str(tmp_path / "tensorboard")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counts = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    for name in ("loss", "grad_norm", "lr", "chips_per_s", "data_wait"):
        assert counts[name] == "8"
    assert counts["val_loss"] == "2"


def test_without_tensorboard_asking_for_it_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    TensorBoard(None, 0).write(1, {"loss": 1.0})
    with pytest.raises(ConfigError, match=r"pip install bharateo\[tensorboard\]"):
        TensorBoard(tmp_path, 0)


# Being asked to end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_keeps_every_step_and_goes_on(palette_dataset, tmp_path, number):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pretrain(palette_dataset, small_config(), whole)
    taken = []

    def end(step, num_steps, note):
        taken.append(step)
        if step == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="stopped after step 4 of 8, all of them kept") as error:
        pretrain(palette_dataset, small_config(), stopped, end)
    assert error.value.signal == number
    pretrain(palette_dataset, small_config(), stopped, lambda step, *_: taken.append(step))
    assert taken == list(range(1, 9))
    model = "model.safetensors"
    assert (stopped / model).read_bytes() == (whole / model).read_bytes()


def test_a_second_ctrl_c_ends_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopWish() as wish:
        os.kill(os.getpid(), signal.SIGINT)
        assert wish.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_no_handler_is_set():
    found = []

    def look():
        with StopWish():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]


# Parts of a batch.


def test_parts_of_a_batch_give_the_losses_of_the_whole(reflectance_dataset, tmp_path):
    config = small_config()
    losses = []
    for size in (None, 5):
        machine = replace(config.machine, micro_batch=size)
        pretrain(reflectance_dataset, replace(config, machine=machine), tmp_path / str(size))
        rows = (tmp_path / str(size) / "history.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_several_masks_of_a_chip_are_presentations_of_their_own(reflectance_dataset, tmp_path):
    config = small_config(masks_per_chip=4, chips_per_epoch=32)
    trainer = loop.Trainer(reflectance_dataset, config, tmp_path)
    raw = trainer.loader.load(0)
    batch, mask = trainer.prepare(raw)
    assert (len(raw.image), len(batch.image)) == (4, 16)
    assert len({tuple(row) for row in mask.order.tolist()}) == 16
    assert torch.equal(batch.chip.view(4, 4), batch.chip[::4, None].expand(-1, 4))
    pretrain(reflectance_dataset, config, tmp_path)
