"""What a report says of pixels is of the dataset used, whatever the run's config says."""

from dataclasses import replace

import pytest

from bharateo.chips import build as building
from bharateo.chips.store import RECIPE_FILE, Dataset
from bharateo.config import Config, DataConfig, TrainingConfig, to_yaml
from bharateo.display import Display
from bharateo.errors import DatasetError, RunError
from bharateo.files import write_json
from bharateo.plain_yaml import read_yaml
from bharateo.report.html import article
from bharateo.training.loop import take_folder
from bharateo.verbs import pipeline
from small_datasets import PLAN, made_up, small_config, small_dataset


def test_a_configs_data_section_of_another_place_is_not_the_recipe(dataset, make_run):
    """The run's configuration is v0's, whose data are three regions of India."""
    page = article(make_run(dataset), dataset, [])
    for wrong in ("delhi_ncr", "mathura_belt", "bharateo build"):
        assert wrong not in page
    assert "How the dataset was built is not written in its folder" in page
    assert dataset.path.name in page


def test_the_recipe_is_the_datasets_own_where_its_folder_has_one(dataset, make_run):
    (dataset.path / RECIPE_FILE).write_text("data:\n  rois: [some_other_place]\n")
    page = article(make_run(dataset), dataset, [])
    assert "some_other_place" in page and "bharateo build config.yaml" in page
    assert "delhi_ncr" not in page
    assert "batch_size" in page  # the training's own sections are still there


def test_a_run_keeps_the_data_section_of_its_dataset_not_of_its_configuration(tmp_path):
    dataset = small_dataset(tmp_path / "dataset")
    config = replace(small_config(), data=DataConfig(rois=("delhi_ncr",)))
    take_folder(tmp_path / "unknown", config, dataset)
    assert "delhi_ncr" not in (tmp_path / "unknown" / "config.yaml").read_text()
    (dataset.path / RECIPE_FILE).write_text("data: {source: sample}\n")
    dataset = Dataset.open(dataset.path)
    take_folder(tmp_path / "run", config, dataset)
    there = read_yaml(tmp_path / "run" / "config.yaml")
    assert there["data"] == {"source": "sample"} and there["training"]["batch_size"] == 16
    take_folder(tmp_path / "run", config, dataset)  # the same run, whatever its data section says
    (tmp_path / "run" / "history.jsonl").write_text("")
    with pytest.raises(RunError, match=r"training\.epochs"):
        take_folder(tmp_path / "run", replace(config, training=TrainingConfig(epochs=9)), dataset)


def test_a_training_that_kept_nothing_does_not_stand_in_the_way_of_the_next(tmp_path):
    dataset = small_dataset(tmp_path / "dataset")
    take_folder(tmp_path / "run", small_config(), dataset)
    take_folder(tmp_path / "run", small_config(seed=7), dataset)
    assert read_yaml(tmp_path / "run" / "config.yaml")["training"]["seed"] == 7
    (tmp_path / "run" / "diverged.json").write_text("{}")
    with pytest.raises(RunError, match=r"training\.seed.*choose another: --output .*run-2$"):
        take_folder(tmp_path / "run", small_config(), dataset)


@pytest.mark.parametrize("text", ["a: [", "data: 3", "- 1"])
def test_a_damaged_recipe_is_refused_with_its_file(dataset, make_run, text):
    (dataset.path / RECIPE_FILE).write_text(text)
    with pytest.raises(DatasetError, match=r"recipe\.yaml.*restore the file, or delete it"):
        article(make_run(dataset), dataset, [])


def test_a_run_scored_elsewhere_is_not_said_to_be_trained_there(dataset, make_run):
    region = dataset.regions[0]
    files = make_run(dataset, own_dataset=False, provenance={"why": "because of the training"})
    opening = article(files, dataset, []).split('<main id="main"')[0]
    trained = opening.split("was trained for")[1].split(".")[0]
    assert region not in trained
    assert "because of the training" not in opening


def test_a_damaged_config_is_one_named_line(dataset, make_run):
    files = make_run(dataset)
    for text in ("a: [", "", "- 1"):
        with pytest.raises(RunError, match=r"config\.yaml"):
            article(replace(files, config=text), dataset, [])


def test_a_build_leaves_its_recipe_with_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("bharateo.sources.open_recipe", lambda *_: made_up())
    config = replace(Config(), data=DataConfig(source="geotiff", plan=PLAN))
    dataset = pipeline.build(config, tmp_path / "dataset", Display(quiet=True))
    kept = (dataset.path / RECIPE_FILE).read_text()
    assert "source: geotiff" in kept and "size_px: 48" in kept
    assert kept in to_yaml(config)


def test_a_build_killed_before_its_last_file_has_its_recipe_already(tmp_path, monkeypatch):
    def killed(path, value):
        if path.name == "dataset.json":
            raise KeyboardInterrupt
        write_json(path, value)

    monkeypatch.setattr(building, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        building.build(made_up(), PLAN, tmp_path / "dataset", 0, recipe_text="data: {}")
    assert (tmp_path / "dataset" / RECIPE_FILE).read_text() == "data: {}"
    monkeypatch.undo()
    other = replace(PLAN, min_valid_fraction=0.3)
    built = building.build(made_up(), other, tmp_path / "dataset", 0)
    assert not (built.path / RECIPE_FILE).exists(), "it was the other plan's"
