import json
from dataclasses import replace

import numpy as np
import pytest

import bharateo
from bharateo.config import HeadConfig, SplitConfig
from bharateo.errors import ConfigError, ContractError, RunError
from bharateo.evaluation import ablation
from bharateo.evaluation.ablation import (
    BANDS,
    TARGET,
    WEIGHT,
    Factor,
    ablate,
    controls,
    default_factors,
    grid,
    quick,
    targets,
)
from bharateo.evaluation.features import HUMBLE, MAKERS
from bharateo.models.targets import TARGETS
from bharateo.sensor import SENTINEL2_L2A
from bharateo.training.planning import Cost
from bharateo.training.run import Run
from small_datasets import PLAN, contents, many_bands, small_config, small_dataset

CONFIG = small_config(epochs=1)
FACTORS = [Factor(WEIGHT, (0, 0.2)), Factor(BANDS, ("B01",))]


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("two") / "d", many_bands(2), regions=("west",))


@pytest.fixture(scope="module")
def done(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    return folder, ablated(grid(CONFIG, dataset, FACTORS), dataset, folder, 2)


def ablated(*what):
    """The table as plain values."""
    return ablate(*what).model_dump(mode="json")


def names(cells):
    return [cell.name for cell in cells]


# The grid.


def test_one_factor_is_changed_at_a_time_around_the_base(dataset):
    cells = grid(CONFIG, dataset, [Factor(WEIGHT, (0, 0.2, 0.5)), Factor(TARGET, ("mode",))])
    assert names(cells) == ["base", f"{WEIGHT}=0", f"{WEIGHT}=0.5", f"{TARGET}=mode"]
    assert cells[0].config == CONFIG
    assert cells[0].settings == {WEIGHT: 0.2, TARGET: "fraction"}
    assert cells[3].settings == {WEIGHT: 0.2, TARGET: "mode"}


def test_what_is_trained_alike_is_one_cell(dataset):
    """Without the head its target means nothing, and 0.2 is the base's weight."""
    factors = [Factor(WEIGHT, (0, 0.2)), Factor(TARGET, ("mode", "fraction"))]
    cells = grid(CONFIG, dataset, factors, full=True)
    assert names(cells) == ["base", f"{WEIGHT}=0", f"{TARGET}=mode"]


def test_a_cell_has_the_same_folder_in_every_grid(dataset):
    factors = [Factor(WEIGHT, (0, 0.5)), Factor(TARGET, ("mode",)), Factor(BANDS, ("B01+B02",))]
    some, every = (names(grid(CONFIG, dataset, factors, full)) for full in (False, True))
    assert f"{WEIGHT}=0.5,{TARGET}=mode" in every
    assert f"{WEIGHT}=0" in {*some} & {*every}


@pytest.mark.parametrize("key", ["training.seed", "machine.threads", "data.seed"])
def test_keys_that_change_no_training_are_not_varied(dataset, key):
    with pytest.raises(ConfigError, match=f"--vary {key}: vary keys of model"):
        grid(CONFIG, dataset, [Factor(key, (1, 2))])


def test_a_weight_of_nothing_takes_the_head_out(dataset):
    _, without = grid(CONFIG, dataset, [Factor(WEIGHT, (0,))])
    assert list(without.config.heads) == ["pixels"]
    with pytest.raises(ConfigError, match="nothing to learn"):
        grid(without.config, dataset, [Factor("heads.pixels.weight", (0,))])


def test_all_bands_are_the_base(dataset):
    cells = grid(CONFIG, dataset, [Factor(BANDS, ("B01+B02", "B02"))])
    assert names(cells) == ["base", f"{BANDS}=B02"]
    assert cells[0].settings == {BANDS: "all"}


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (Factor("training.learning_rate", (1,)), "unknown key 'learning_rate'"),
        (Factor(TARGET, ("most",)), None),  # the head refuses it, when it is built
        (Factor(BANDS, ("B09",)), "'B09' is unknown"),
        (Factor("training.lr", ("fast",)), "lr"),
    ],
)
def test_a_wrong_key_or_value_is_refused(dataset, factor, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        ablate(grid(CONFIG, dataset, [factor])[1:], dataset, tmp_path, 1)


def test_factors_are_read_as_yaml_and_bands_as_names():
    assert Factor.parse("training.lr=0.001,2e-3").values == (0.001, 0.002)
    assert Factor.parse("heads.landcover.weight=0,0.5") == Factor(WEIGHT, (0, 0.5))
    assert Factor.parse("bands=rgb,B08+B11") == Factor(BANDS, ("rgb", "B08+B11"))
    for text in ("bands", "=1", "bands=", "bands=rgb,,10band"):
        with pytest.raises(ConfigError, match="is not KEY=VALUE"):
            Factor.parse(text)


def test_the_usual_sets_of_bands_are_compared_where_they_are_there(dataset, monkeypatch):
    assert [factor.key for factor in default_factors(dataset)] == [WEIGHT, TARGET]
    for bands, sets in (
        (("B02", "B03", "B04"), None),
        (("B02", "B03", "B04", "B08"), ("rgb", "rgbn")),
        (SENTINEL2_L2A.band_names, ("rgb", "rgbn", "10band")),
    ):
        monkeypatch.setattr(dataset, "sensor", SENTINEL2_L2A.with_bands(bands))
        found = {factor.key: factor.values for factor in default_factors(dataset)}
        assert found.get(BANDS) == sets


def test_the_smallest_grid_is_short_and_asks_one_thing(dataset):
    config, factors = quick(replace(CONFIG, training=replace(CONFIG.training, epochs=40)))
    assert config.training.epochs == 10
    assert len(grid(config, dataset, factors)) == 2


def test_controls_learn_of_labels_alone_and_without_labels_for_the_same_arithmetic(dataset):
    config = replace(CONFIG, training=replace(CONFIG.training, epochs=30))
    base, supervised, label_free = grid(config, dataset, [], also=controls(config, 2))
    assert base.config == config
    assert list(supervised.config.heads) == ["landcover"]
    assert supervised.config.model == replace(config.model, mask_ratio=0)
    assert list(label_free.config.heads) == ["pixels"]
    assert label_free.config.model == config.model
    # an encoder that sees every patch takes longer, a network with a head less is faster
    assert supervised.config.training.epochs < 30 <= label_free.config.training.epochs
    budget = 30 * Cost.of(config, 2).training
    for cell in (supervised, label_free):
        spent = cell.config.training.epochs * Cost.of(cell.config, 2).training
        assert spent == pytest.approx(budget, rel=0.1)


def test_controls_of_one_kind_of_heads_are_refused():
    without = replace(CONFIG, heads={"pixels": CONFIG.heads["pixels"]})
    with pytest.raises(ConfigError, match="--controls needs a head that learns from labels"):
        controls(without, 2)


@pytest.mark.slow
def test_targets_are_learned_without_labels_for_the_same_arithmetic(dataset):
    config = replace(CONFIG, training=replace(CONFIG.training, epochs=300))
    base, *others = grid(config, dataset, [], also=targets(config, 2))
    asked = [
        (head, each.options["target"])
        for cell in others
        for head, each in cell.config.heads.items()
    ]
    assert asked == [("pixels", "pixels"), ("pixels", "correction"),
                     *(("features", target) for target in TARGETS)]  # fmt: skip
    assert base.config == config
    budget = 300 * Cost.of(config, 2).training
    for cell in others:
        spent = cell.config.training.epochs * Cost.of(cell.config, 2).training
        assert spent == pytest.approx(budget, rel=0.01)


# Running it.


def test_every_cell_is_a_run_of_its_settings(done):
    folder, record = done
    runs = {run: Run.open(folder / run) for cell in record["cells"] for run in cell["runs"]}
    assert len(runs) == 6
    assert list(runs[f"{WEIGHT}=0/seed-42"].heads) == ["pixels"]
    assert runs[f"{BANDS}=B01/seed-43"].sensor.band_names == ("B01",)
    assert runs["base/seed-43"].sensor.band_names == ("B01", "B02")


def test_a_run_on_some_bands_opens_its_dataset_in_these_bands(done):
    own = Run.open(done[0] / f"{BANDS}=B01/seed-43").own_dataset()
    assert own.sensor.band_names == ("B01",)


def test_the_table_is_written_for_people_and_programs(done):
    folder, record = done
    assert json.loads((folder / "ablation.json").read_text()) == record
    text = (folder / "ablation.md").read_text()
    assert "| landcover weight | bands | accuracy | balanced accuracy | macro F1 |" in text
    assert text.count("\n| ") == 2 + 3
    assert f"{record['cells'][1]['scores']['macro_f1']['mean']:.3f}" in text


def test_scores_are_those_of_the_runs(done):
    """Against scikit-learn, on the sum of the blocks."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    folder, record = done
    for cell in record["cells"]:
        for number, run in enumerate(cell["runs"]):
            blocks = json.loads((folder / run / "probe.json").read_text())["confusion"].values()
            cells = np.sum(list(blocks), 0)
            true, predicted = np.repeat(np.indices((8, 8)).reshape(2, -1), cells.ravel(), axis=1)
            scores = {name: each["per_seed"][number] for name, each in cell["scores"].items()}
            assert scores["accuracy"] == pytest.approx(accuracy_score(true, predicted))
            balanced = balanced_accuracy_score(true, predicted)
            assert scores["balanced_accuracy"] == pytest.approx(balanced)


def test_every_cell_is_set_against_the_humble_bar_of_its_bands(done):
    folder, record = done
    bars = {path.name: json.loads(path.read_text()) for path in folder.glob("humble-*.json")}
    assert len(bars) == 2  # of both bands, and of one
    for cell in record["cells"]:
        against = cell["against_bar"]
        assert against["features"] in HUMBLE
        own = [json.loads((folder / run / "probe.json").read_text()) for run in cell["runs"]]
        (bar,) = [
            each for each in bars.values()
            if cell["scores"]["accuracy"]["mean"] - against["accuracy"]["mean"]
            == pytest.approx(share_right(each))
        ]  # fmt: skip
        assert bar["features"] == against["features"]
        assert np.mean([share_right(each) for each in own]) == pytest.approx(
            cell["scores"]["accuracy"]["mean"]
        )
        ours, theirs = (
            np.mean([sum(each["log_loss"].values()) / each["num_test"] for each in some])
            for some in (own, [bar])
        )
        assert against["log_loss"]["mean"] == pytest.approx(ours - theirs)
        low, high = against["macro_f1"]["ci95"]
        assert low < against["macro_f1"]["mean"] < high
    assert "macro F1 against humble bar |" in (folder / "ablation.md").read_text()


def test_the_humble_bar_is_the_one_with_the_least_log_loss_on_val(done):
    run = Run.open(done[0] / "base" / "seed-42")
    own = run.own_dataset()
    reached = {
        name: ablation.probe(run, MAKERS[name](run, own, 0, "token")).val_log_loss
        for name in HUMBLE
    }
    assert ablation.humble_bar(run).features == min(reached, key=reached.get)


def share_right(probed):
    cells = np.sum(list(probed["confusion"].values()), 0)
    return np.trace(cells) / cells.sum()


@pytest.mark.slow
def test_controls_are_trained_and_scored_beside_the_configuration(dataset, tmp_path):
    cells = grid(CONFIG, dataset, [], also=controls(CONFIG, 2))
    record = ablated(cells, dataset, tmp_path, 1)
    heads = [[*Run.open(tmp_path / cell["runs"][0]).heads] for cell in record["cells"]]
    assert heads == [["pixels", "landcover"], ["landcover"], ["pixels"]]
    assert len([*tmp_path.glob("humble-*.json")]) == 1
    text = (tmp_path / "ablation.md").read_text()
    assert "| pixels weight | mask_ratio | epochs | landcover weight | accuracy" in text


def test_colours_are_a_target_where_the_configuration_asks_for_them():
    def rebuilt(config):
        asked = [each.get("heads.pixels.options.target") for each in targets(config, 3)]
        return [each for each in asked if each]

    colours = {"pixels": HeadConfig(1.0, {"target": "palette"})}
    assert rebuilt(CONFIG) == ["pixels", "correction"]
    assert rebuilt(replace(CONFIG, heads=CONFIG.heads | colours)) == [
        "pixels",
        "correction",
        "palette",
    ]


@pytest.mark.slow
def test_targets_are_trained_and_scored_beside_the_configuration(dataset, tmp_path):
    cells = grid(CONFIG, dataset, [], also=targets(CONFIG, 2))
    assert len(cells) == 1 + 2 + len(TARGETS)
    record = ablate(cells[:4], dataset, tmp_path, 1)  # with a correction, and with energies
    for cell in record.cells:
        (run,) = cell.runs
        scores = bharateo.evaluate(tmp_path / run).splits["test"].model
        (head,) = [name for name in ("pixels", "features") if cell.settings[f"heads.{name}.weight"]]
        assert scores.value({"pixels": "masked_mae", "features": "feature_mse"}[head]) > 0


@pytest.mark.slow
def test_a_killed_ablation_goes_on_and_ends_as_one_that_ran_through(done, dataset, tmp_path):
    """Killed in the middle of a training, before a probe, and in the second cell."""
    cells = grid(CONFIG, dataset, FACTORS[:1])
    for number in (0.3, 0.9, 1.5):

        def told(now, total, note, number=number):
            if now >= number:
                raise Killed

        with pytest.raises(Killed):
            ablate(cells, dataset, tmp_path, 1, told)
        assert not (tmp_path / "ablation.json").exists()
    record = ablated(cells, dataset, tmp_path, 1)
    for mine, whole in zip(record["cells"], done[1]["cells"], strict=False):
        for metric, scores in mine["scores"].items():
            assert scores["per_seed"] == whole["scores"][metric]["per_seed"][:1]
    runs = tmp_path / "base" / "seed-42"
    before = contents(runs)
    more = ablated(grid(CONFIG, dataset, FACTORS[1:]), dataset, tmp_path, 1)
    assert [cell["name"] for cell in more["cells"]] == ["base", f"{BANDS}=B01"]
    assert contents(runs) == before


def test_finished_cells_are_not_scored_again(done, dataset, monkeypatch):
    folder, record = done
    before = contents(folder)
    monkeypatch.setattr(ablation, "probe", lambda *_: pytest.fail("it is probed again"))
    assert ablated(grid(CONFIG, dataset, FACTORS), dataset, folder, 2) == record
    assert contents(folder) == before


@pytest.mark.parametrize("what", ["dataset", "config", "code_version"])
def test_another_ablations_folder_is_refused(done, dataset, what, monkeypatch, tmp_path):
    config = CONFIG
    if what == "dataset":
        dataset = small_dataset(tmp_path / "d", many_bands(2), regions=("east",))
    elif what == "config":
        config = small_config(epochs=2)
    else:
        monkeypatch.setattr(ablation, "__version__", "0.0.0")
    with pytest.raises(RunError, match=f"another ablation: {what} differ"):
        ablate(grid(config, dataset, FACTORS), dataset, done[0], 2)


def test_vectors_are_read_out_as_asked_for(done, dataset, tmp_path):
    cells = grid(CONFIG, dataset, [])
    ablate(cells, dataset, tmp_path, 1, readout="views")
    plain, views = (
        json.loads((folder / "base" / "seed-42" / "probe.json").read_text())
        for folder in (done[0], tmp_path)
    )
    assert plain["val_log_loss"] != views["val_log_loss"]
    with pytest.raises(RunError, match="readout differ"):
        ablate(cells, dataset, tmp_path, 1)


def test_another_machine_section_is_no_other_ablation(done, dataset):
    config = replace(CONFIG, machine=replace(CONFIG.machine, prefetch=0))
    assert ablate(grid(config, dataset, FACTORS), dataset, done[0], 2).seeds == [42, 43]


def test_a_dataset_without_test_ground_is_refused(tmp_path):
    plan = replace(PLAN, split=SplitConfig(60, 8, 0.2, 0.0))
    dataset = small_dataset(tmp_path / "d", many_bands(2), plan)
    with pytest.raises(ContractError, match="no chip in its test split"):
        ablate(grid(CONFIG, dataset, FACTORS), dataset, tmp_path / "a", 1)


def test_a_dataset_without_validation_ground_is_probed_all_the_same(tmp_path):
    plan = replace(PLAN, split=SplitConfig(60, 8, 0.0, 0.3))
    dataset = small_dataset(tmp_path / "d", many_bands(2), plan)
    record = ablated(grid(CONFIG, dataset, [])[:1], dataset, tmp_path / "a", 1)
    assert len(record["cells"]) == 1
    assert record["cells"][0]["against_bar"] is None


def test_the_examples_are_the_same_in_every_cell(done):
    folder, record = done
    probes = [
        json.loads((folder / run / "probe.json").read_text())
        for cell in record["cells"]
        for run in cell["runs"]
    ]
    true = [
        {block: np.sum(cells, 1).tolist() for block, cells in each["confusion"].items()}
        for each in probes
    ]
    assert all(each == true[0] for each in true)
