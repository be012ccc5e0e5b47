"""What a page and a model card read of a run's folder: typed, or refused in a line by its key."""

import json
import os

import pytest
from made_up_run import write_run
from test_probe_section import record  # noqa: F401

from bharateo.errors import RunError
from bharateo.report import html
from bharateo.sensor import WORLDCOVER_PALETTE
from damage import change


@pytest.fixture
def run(make_dataset, make_run, record, tmp_path):  # noqa: F811
    files = make_run(make_dataset(WORLDCOVER_PALETTE), provenance={"why": "A test."})
    folder = write_run(tmp_path / "run", files)
    (folder / "probes.json").write_text(json.dumps(record.model_dump()))
    assert html.read_run(folder).probes is not None
    return folder


def refused(run, said):
    with pytest.raises(RunError, match=said) as refusal:
        html.read_run(run)
    text = str(refusal.value)
    assert str(run) in text
    assert text.isprintable() and len(text) < 500


@pytest.mark.parametrize(
    ("name", "path", "value", "said"),
    [
        ("evaluation.json", "splits", {}, "splits"),
        ("evaluation.json", "splits.test.model", None, "splits.test.model"),
        ("evaluation.json", "splits.test.num_chips", "24", "num_chips: .* not '24'"),
        ("evaluation.json", "splits.test.num_blocks", -1, "num_blocks: .* not -1"),
        (
            "evaluation.json",
            "splits.test.model.masked_mae",
            "low",
            r"masked_mae\S*: .* 'low'",
        ),
        ("evaluation.json", "splits.test.model.masked_mae", float("nan"), r"masked_mae\S*: .* nan"),
        ("evaluation.json", "splits.test.model.masked_mae_ci95", [1], "masked_mae_ci95"),
        ("evaluation.json", "splits.test.model.confusion_masked", [[1]], "confusion_masked"),
        ("evaluation.json", "splits.test.baselines", [], "baselines"),
        ("evaluation.json", "dataset.path", "d\0", "dataset.path"),
        ("evaluation.json", "dataset", ..., "dataset is missing"),
        ("evaluation.json", "bootstrap", {"level": "all"}, "bootstrap.level"),
        ("probes.json", "budgets", [], "budgets"),
        ("probes.json", "budgets", [5], "has not a result for every budget"),
        ("probes.json", "levels.patch.results.0.macro_f1", 1, "macro_f1"),
        ("probes.json", "levels.patch.results.0.macro_f1.ci95", [0.1], "ci95"),
        ("probes.json", "levels.patch.zones.worst", "nowhere", "worst is no zone"),
        ("probes.json", "levels.patch.examples", {}, "examples.train is missing"),
        ("probes.json", "skipped", None, "skipped"),
        ("provenance.json", "why", 3, "why: .* not 3"),
        ("contract.json", "model.num_heads", -4, "model.num_heads: .* not -4"),
        ("contract.json", "statistics", ..., "statistics is missing"),
    ],
)
def test_a_value_that_cannot_be_shown_is_refused_by_key(run, name, path, value, said):
    change(run / name, path, value)
    refused(run, rf"{name}: .*{said}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name",
    ["evaluation.json", "probes.json", "provenance.json", "contract.json", "history.jsonl",
     "config.yaml"],
)  # fmt: skip
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    refused(run, f"{name} cannot be read")


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000, "9" * 5000, '"a"'])
@pytest.mark.parametrize("name", ["evaluation.json", "probes.json", "provenance.json"])
def test_what_is_no_record_is_refused(run, name, text):
    (run / name).write_text(text)
    refused(run, name)
