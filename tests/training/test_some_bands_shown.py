"""Training on sets of bands: which step shows which, and what comes of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bharateo.errors import ConfigError, ContractError, RunError
from bharateo.evaluation.features import Extractor, extract
from bharateo.inference.encoder import FrozenEncoder
from bharateo.training.data import drawn_band_set
from bharateo.training.loop import Trainer, pretrain
from bharateo.training.planning import Cost, measure_step
from bharateo.training.run import Run
from small_datasets import many_bands, small_config, small_dataset

NUM_STEPS = 8
SETS = {"two": ("B03", "B01"), "one": ("B02",)}


def with_sets(sets=SETS, embedding="energies", **training):
    config = small_config(**training)
    return replace(config, model=replace(config.model, embedding=embedding, band_sets=sets))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("four") / "d", many_bands(4))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    return pretrain(dataset, with_sets(epochs=1), tmp_path_factory.mktemp("run") / "run")


# Which set a step shows.


def test_half_of_the_steps_show_all_bands_and_the_others_every_set_alike():
    drawn = [drawn_band_set(SETS, 5, step) for step in range(4000)]
    assert drawn.count(None) == pytest.approx(2000, abs=100)
    for name in SETS:
        assert drawn.count(name) == pytest.approx(1000, abs=100)


def test_what_a_step_shows_follows_the_seed_and_not_the_order_of_the_sets():
    def shown(sets, seed):
        return [drawn_band_set(sets, seed, step) for step in range(50)]

    assert shown(SETS, 1) == shown([*reversed(SETS)], 1)
    assert shown(SETS, 1) != shown(SETS, 2)


def test_without_sets_every_step_shows_all_bands():
    assert {drawn_band_set({}, 5, step) for step in range(50)} == {None}


def test_the_parts_of_a_batch_show_one_set_and_add_up_to_the_whole(dataset, tmp_path):
    found = []
    for size in (None, 5):
        config = with_sets(batch_size=16, precision="fp32")
        config = replace(config, machine=replace(config.machine, micro_batch=size))
        trainer = Trainer(dataset, config, tmp_path)
        steps = trainer.loader.steps(0, NUM_STEPS)
        found.append([trainer.finish(trainer.step(*each)).loss for each in steps])
    assert {drawn_band_set(SETS, 42, step) for step in range(NUM_STEPS)} == {None, *SETS}
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("embedding", ["linear", "energies", "stem"])
def test_pixels_of_absent_bands_reach_no_weight_but_as_targets(dataset, tmp_path, embedding):
    """Without the pixel head nobody asks for them."""
    config = with_sets(embedding=embedding, batch_size=16, precision="fp32")
    config = replace(config, heads={"landcover": config.heads["landcover"]})
    step = next(each for each in range(100) if drawn_band_set(SETS, 42, each) == "one")
    results = []
    for rubbish in (0, 7):
        trainer = Trainer(dataset, config, tmp_path)
        raw = trainer.loader.load(step)
        raw.image.numpy()[:, [0, 2, 3]] += np.uint16(rubbish)
        launched = trainer.step(step, raw)
        weights = [each.detach().clone() for each in trainer.objective.parameters()]
        results.append([launched.totals, *weights])
    assert all(map(np.array_equal, *results))


@pytest.mark.slow
@pytest.mark.long
def test_every_set_is_a_compiled_graph_of_its_own_without_a_break():
    program = Path(__file__).with_name("sets_program.py")
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(program.parents[1])])
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shown"] == found["graphs"] == 11  # all bands, and ten sets
    assert found["apart"] < 1e-4


# What is refused before anything is trained.


def test_sets_of_bands_that_are_not_there_are_refused(dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"band_sets.rgb: B04 is none of the bands B01, B02"):
        pretrain(dataset.with_bands(["B01", "B02"]), with_sets({"rgb": ("rgb",)}), tmp_path)
    assert not [*tmp_path.iterdir()]


# The run.


def test_the_contract_spells_the_sets_out(dataset, tmp_path):
    made = pretrain(dataset, with_sets({"rgb": ("rgb",)}, epochs=1), tmp_path / "run")
    plain = json.loads((tmp_path / "run" / "contract.json").read_text())
    assert plain["model"]["band_sets"] == {"rgb": ["B04", "B03", "B02"]}
    rgb = made.of_set("rgb")
    assert rgb.sensor.band_names == ("B04", "B03", "B02")
    assert rgb.contract.statistics.mean == made.contract.statistics.mean[3:0:-1]
    assert rgb.own_dataset().sensor.band_names == ("B04", "B03", "B02")
    assert rgb.check(rgb.own_dataset()) == {}


def test_a_set_that_a_run_was_not_trained_on_is_refused_by_name(run):
    with pytest.raises(
        ContractError,
        match=r"on no set 'rgb' of bands; it takes B01, B02, B03, B04, or of these alone "
        r"two \(B03, B01\) or one \(B02\): choose",
    ):
        run.of_set("rgb")


def test_a_dataset_with_fewer_bands_meets_the_largest_set_it_holds(run, dataset):
    for held, expected in (
        (("B04", "B03", "B02", "B01"), (None, ("B01", "B02", "B03", "B04"))),
        (("B01", "B02", "B03"), ("two", ("B03", "B01"))),
        (("B02", "B04"), ("one", ("B02",))),
    ):
        met, there = run.meeting(dataset.with_bands(held))
        assert (met.band_set, there.sensor.band_names) == expected
        assert met.check(there) == {}
    with pytest.raises(ContractError, match=r"bands: the dataset .* holds B04, B03, and the run"):
        run.meeting(dataset.with_bands(["B04", "B03"]))


@pytest.mark.parametrize(
    "sets",
    [
        {"one": ["B09"]},
        {"one": ["B01", "B02", "B03", "B04"]},
        {"one": []},
        {"a b": ["B01"]},
        ["B01"],
    ],
)
def test_a_tampered_set_is_refused(run, tmp_path, sets):
    for name in ("contract.json", "model.safetensors", "config.yaml"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    plain = json.loads((tmp_path / "contract.json").read_text())
    plain["model"]["band_sets"] = sets
    (tmp_path / "contract.json").write_text(json.dumps(plain))
    with pytest.raises(RunError, match=r"contract.json.*model.band_sets"):
        Run.open(tmp_path)


def test_many_sets_take_no_memory_that_the_weights_do_not_fill(run, tmp_path, monkeypatch):
    for name in ("contract.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    plain = json.loads((tmp_path / "contract.json").read_text())
    plain["model"]["band_sets"] = {f"set{number}": ["B01"] for number in range(10_000)}
    (tmp_path / "contract.json").write_text(json.dumps(plain))
    monkeypatch.setattr("bharateo.training.run.build_model", pytest.fail)
    with pytest.raises(RunError, match=r"values of 20,6\d\d,\d\d\d or more"):
        Run.open(tmp_path)


def test_a_run_from_before_there_were_sets_opens_and_goes_on(dataset, tmp_path):
    config = small_config(epochs=1)
    pretrain(dataset, config, tmp_path)
    for name in ("contract.json", "config.yaml"):
        text = (tmp_path / name).read_text()
        assert "band_sets" in text
        if name == "contract.json":
            plain = json.loads(text)
            del plain["model"]["band_sets"]
            text = json.dumps(plain)
        else:
            text = text.replace("  band_sets: {}\n", "")
        assert "band_sets" not in text
        (tmp_path / name).write_text(text)
    assert pretrain(dataset, config, tmp_path).contract.model.band_sets == {}


# What it costs.


@pytest.mark.parametrize("embedding", ["linear", "energies", "stem"])
def test_the_cost_is_the_mean_over_what_steps_show(embedding):
    def cost(sets):
        return Cost.of(with_sets(sets, embedding), 4)

    every, one, both = cost({}), cost({"one": ("B02",)}), cost(SETS)
    two = cost({"two": SETS["two"]})
    of_one, of_two = (2 * each.training - every.training for each in (one, two))
    assert of_one < of_two < every.training
    assert both.training == pytest.approx(every.training / 2 + (of_one + of_two) / 4, abs=2)
    assert both.num_parameters > one.num_parameters > every.num_parameters


def test_a_plan_for_fewer_bands_than_its_sets_have_is_refused():
    with pytest.raises(ConfigError, match="names B03, B01, B02, more than 2 bands"):
        Cost.of(with_sets(), 2)


def test_speed_is_measured_with_sets_too():
    assert measure_step(with_sets(batch_size=4), 4, 4, seconds=0.0) > 0


# What it is worth.


@pytest.mark.slow
def test_a_set_tells_more_than_the_same_model_shown_the_mean_of_absent_bands(dataset, tmp_path):
    """Classes by the run's own head, from one band: of a run that was shown that band alone, and of
    the same run without sets, with the others at their mean.
    """
    settings = {"epochs": 20, "lr": 6e-3, "batch_size": 16, "precision": "fp32"}
    taught = pretrain(dataset, with_sets({"one": ("B02",)}, **settings), tmp_path / "sets")
    plain = pretrain(dataset, with_sets({}, **settings), tmp_path / "plain")
    whole = FrozenEncoder.of_run(plain)

    def filled(image, valid):
        mean = image.new_tensor(plain.contract.statistics.mean)[:, None, None]
        every = mean.repeat(len(image), 1, *image.shape[2:])
        every[:, 1] = image[:, 0]
        return whole.class_probabilities(every, valid)

    one = taught.of_set("one")
    right = {}
    for name, predict in (
        ("sets", FrozenEncoder.of_run(one).class_probabilities),
        ("mean", filled),
    ):
        found = extract(one.own_dataset(), "test", Extractor(name, predict), 32, 8)["patch"]
        right[name] = (found.values.argmax(1) == found.labels).mean()
    assert right["sets"] > right["mean"] + 0.1, right
