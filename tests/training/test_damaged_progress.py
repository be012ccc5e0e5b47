"""What a stopped training left, damaged or of somebody else: resumed, or refused in a line."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bharateo.errors import RunError
from bharateo.training.contract import CHECKPOINT_FILE, Epoch, Event, read_rows
from bharateo.training.loop import pretrain
from bharateo.training.run import load_checkpoint
from small_datasets import small_config


@pytest.fixture(scope="module")
def stopped(palette_dataset, tmp_path_factory):
    """A run with a checkpoint, and no contract."""
    run = pretrain(palette_dataset, small_config(epochs=1), tmp_path_factory.mktemp("r") / "run")
    (run.path / "contract.json").unlink()
    return run.path


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def rewrite(run, edit=lambda state: None, progress=None):
    """The checkpoint with other tensors, or another header."""
    file = run / CHECKPOINT_FILE
    with safe_open(file, "pt") as opened:
        kept = opened.metadata()["progress"]
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    edit(state)
    save_file(state, file, {"progress": kept if progress is None else progress})


def refused(read, said):
    with pytest.raises(RunError, match=said) as refusal:
        read()
    text = str(refusal.value)
    assert "to train from the start" in text
    assert text.isprintable() and len(text) < 500


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        ({"sums": {}}, "step is missing"),
        ({"step": "3", "sums": {}}, "step: .* not '3'"),
        ({"step": -3, "sums": {}}, "step: .* not -3"),
        ({"step": 1.5, "sums": {}}, "step: .* not 1.5"),
        ({"step": 1}, "sums is missing"),
        ({"step": 1, "sums": {"loss": [1.0]}}, "sums.loss"),
        ({"step": 1, "sums": {"loss": ["a", 1]}}, "sums.loss.0"),
        ({"step": 1, "sums": {"loss": [1.0, -1]}}, "sums.loss.1"),
        ([], "the whole"),
        (None, "the whole"),
    ],
)
def test_progress_that_cannot_be_is_refused_by_key(run, progress, said):
    rewrite(run, progress=json.dumps(progress))
    refused(lambda: load_checkpoint(run), said)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000])
def test_progress_that_is_no_json_is_refused(run, text):
    rewrite(run, progress=text)
    refused(lambda: load_checkpoint(run), "is damaged")


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_the_checkpoint_is_not_waited_for(run):
    (run / CHECKPOINT_FILE).unlink()
    os.mkfifo(run / CHECKPOINT_FILE)
    refused(lambda: load_checkpoint(run), "no ordinary file")


def first_of(state, optimiser):
    return next(
        name for name in sorted(state) if name.startswith("optimiser.") == optimiser and
        state[name].ndim == 2
    )  # fmt: skip


@pytest.mark.parametrize("optimiser", [False, True])
@pytest.mark.parametrize("way", ["missing", "more", "shape", "nan"])
def test_a_checkpoint_of_another_model_is_refused_by_the_tensor(
    run, palette_dataset, way, optimiser
):
    def edit(state):
        name = first_of(state, optimiser)
        if way == "missing":
            del state[name]
        elif way == "more":
            state[f"{'optimiser.x' if optimiser else 'x'}.{name}"] = torch.zeros(2)
        elif way == "shape":
            state[name] = state[name][:1].clone()
        else:
            state[name][0, 0] = float("nan")

    rewrite(run, edit)
    resume = lambda: pretrain(palette_dataset, small_config(epochs=1), run)  # noqa: E731
    refused(resume, "is not of this model")


def test_a_checkpoint_beyond_the_end_is_refused(run, palette_dataset):
    rewrite(run, progress=json.dumps({"step": 10**6, "sums": {}}))
    refused(lambda: pretrain(palette_dataset, small_config(epochs=1), run), "is of step 1000000 of")


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [
        (Epoch, "{", "line 2 is damaged"),
        (Epoch, "[]", "line 2: the whole"),
        (Epoch, '{"loss": 1.0}', "line 2: epoch is missing"),
        (Epoch, '{"epoch": "1"}', "line 2: epoch: .* not '1'"),
        (Epoch, '{"epoch": 1, "loss": "low"}', "line 2: loss: .* not 'low'"),
        (Epoch, '{"epoch": 1, "loss": NaN}', "line 2: loss: .* not nan"),
        (Epoch, "[" * 100_000, "nested too deep"),
        (Event, '{"spike": "loss"}', "line 2: step is missing"),
        (Event, '{"step": -1}', "line 2: step: .* not -1"),
    ],
)
def test_a_line_that_cannot_be_is_refused_by_its_number(tmp_path, kind, line, said):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"epoch": 1, "step": 1}\n' + line + "\n")
    with pytest.raises(RunError, match=said) as refusal:
        read_rows(file, kind)
    assert str(file) in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_a_history_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "history.jsonl")
    with pytest.raises(RunError, match="no ordinary file"):
        read_rows(tmp_path / "history.jsonl", Epoch)
    assert read_rows(tmp_path / "none.jsonl", Epoch) == []
