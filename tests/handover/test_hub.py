import hashlib
import importlib
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from bharateo.errors import ConfigError, ContractError, RunError
from bharateo.evaluation.evaluate import evaluate
from bharateo.evaluation.probing import probe_run
from bharateo.files import write_json
from bharateo.handover import hub
from bharateo.handover.card import EVALUATION_FILE, PROBES_FILE
from bharateo.handover.hub import BharatEOEncoder, save_folder
from bharateo.inference.encoder import FrozenEncoder
from bharateo.training.contract import CONTRACT_FILE, MODEL_FILE, Kept
from bharateo.training.run import Run
from handover.tiny_run import chips_of, tiny_run
from report.made_up_run import split_scores
from small_datasets import contents


@pytest.fixture
def run(reflectance_dataset, tmp_path):
    return tiny_run(tmp_path / "run", reflectance_dataset)


@pytest.fixture
def folder(run, tmp_path):
    BharatEOEncoder(run).save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


class Ran(Exception):
    """Something in a file was executed."""


class Trap:
    def __reduce__(self):
        return (_spring, ())


def _spring():
    raise Ran


# Round trips.


def test_a_folder_gives_back_the_same_features(run, folder, reflectance_dataset):
    image, valid = chips_of(run, reflectance_dataset)
    encoder = BharatEOEncoder.from_pretrained(folder)
    with torch.no_grad():
        found = encoder(image, valid)
    assert torch.equal(found, FrozenEncoder.of_run(run).features(image, valid))
    assert (encoder.bands, encoder.unit) == (("B01", "B02"), "reflectance")


def test_a_folder_is_a_run(run, folder):
    again = Run.open(folder)
    assert all(
        torch.equal(value, again.heads.state_dict()[name])
        for name, value in run.heads.state_dict().items()
    )
    assert again.contract.statistics == run.contract.statistics


def test_saving_twice_gives_the_same_bytes(run, folder):
    before = contents(folder)
    assert before.keys() == {"model.safetensors", "config.json", "contract.json", "README.md"}
    BharatEOEncoder.from_pretrained(folder).save_pretrained(folder)
    names = before.keys() - {"README.md"}  # which is titled by the folder
    assert {name: contents(folder)[name] for name in names} == {n: before[n] for n in names}


def test_pixels_that_are_no_number_are_missing_unless_told_otherwise(run, reflectance_dataset):
    image, valid = chips_of(run, reflectance_dataset)
    image[:, 1].masked_fill_(~valid, torch.nan)
    encoder = BharatEOEncoder(run)
    with torch.no_grad():
        found = encoder(image)
        assert found.isfinite().all()
        assert torch.equal(found, encoder(image, valid))


def test_a_repository_is_read_by_the_names_of_its_files_alone(run, folder, monkeypatch):
    asked = []

    def fetch(repository, name, **options):
        asked.append((repository, name))
        return str(folder / name)

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    encoder = BharatEOEncoder.from_pretrained("someone/a-run")
    assert encoder.width == run.model.config.width
    assert {name for _, name in asked} == {"config.json", "contract.json", "model.safetensors"}
    assert {repository for repository, _ in asked} == {"someone/a-run"}


def test_the_mixin_uploads_the_same_folder(run, folder, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, **options):
            uploaded.update(contents(Path(folder_path)))

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    BharatEOEncoder(run).push_to_hub("someone/a-run")
    assert uploaded == contents(folder)


def test_the_bands_of_a_set_are_taken_alone(reflectance_dataset, tmp_path):
    whole = tiny_run(tmp_path / "run", reflectance_dataset, band_sets={"one": ("B02",)})
    BharatEOEncoder(whole).save_pretrained(tmp_path / "hub")
    image, valid = chips_of(whole, reflectance_dataset)
    encoder = BharatEOEncoder.from_pretrained(tmp_path / "hub", bands=["B02"])
    with torch.no_grad():
        found = encoder(image[:, 1:], valid)
    expected = FrozenEncoder.of_run(whole.of_set("one")).features(image[:, 1:], valid)
    assert torch.equal(found, expected)
    assert "- one: B02" in (tmp_path / "hub" / "README.md").read_text()
    said = r"bands: .* takes B01, B02, or of these alone one \(B02\), not \('B01',\)"
    refused(tmp_path / "hub", said, ContractError, bands=["B01"])


# What is refused.


def refused(folder, match, error=RunError, **expected):
    with pytest.raises(error, match=match):
        BharatEOEncoder.from_pretrained(folder, **expected)


def test_changed_weights_are_refused(folder):
    content = bytearray((folder / MODEL_FILE).read_bytes())
    content[-1] ^= 1  # one bit of one weight
    (folder / MODEL_FILE).write_bytes(content)
    refused(folder, "SHA-256 is another")


def test_weights_cut_short_are_refused(folder):
    content = (folder / MODEL_FILE).read_bytes()
    (folder / MODEL_FILE).write_bytes(content[:-100])
    refused(folder, rf"{len(content) - 100} bytes of {len(content)}")


@pytest.mark.parametrize("write", [pickle.dumps, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_in_place_of_the_weights_is_refused_and_not_executed(write, folder):
    with (folder / MODEL_FILE).open("wb") as file:
        if write is torch.save:
            torch.save({"model": Trap()}, file)
        else:
            file.write(pickle.dumps(Trap()))
    refused(folder, "is a pickle.*nothing in it was executed")


def test_a_pickle_beside_missing_weights_is_not_a_way_out(folder):
    (folder / MODEL_FILE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(folder, "model.safetensors does not hold")


def test_weights_that_begin_like_a_pickle_are_safetensors_all_the_same(run, tmp_path):
    """The length of the header comes first, and its lowest byte may be a pickle's first."""
    content = (run.path / MODEL_FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    padded = length + (0x80 - length) % 256
    spaces = b" " * (padded - length)
    content = (
        padded.to_bytes(8, "little") + content[8 : 8 + length] + spaces + content[8 + length :]
    )
    assert content[0] == 0x80
    (run.path / MODEL_FILE).write_bytes(content)
    weights = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(run.path, weights=weights, dataset={"path": "inside", "fingerprint": ""})
    BharatEOEncoder.from_pretrained(run.path)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (folder / MODEL_FILE).rename(tmp_path / "elsewhere.safetensors")
    (folder / MODEL_FILE).symlink_to(tmp_path / "elsewhere.safetensors")
    refused(folder, "link out of the folder")


@pytest.mark.parametrize("path", ["../../private", "/etc"])
def test_a_dataset_outside_the_folder_is_refused(path, folder):
    change(folder, dataset={"path": path, "fingerprint": ""})
    refused(folder, "leads out of the folder")


def test_a_contract_that_is_none_is_refused(folder):
    contract = json.loads((folder / CONTRACT_FILE).read_text())
    for name in ("model", "sensor", "dataset"):
        write_json(folder / CONTRACT_FILE, {k: v for k, v in contract.items() if k != name})
        refused(folder, f"{CONTRACT_FILE}: {name} is missing")


def test_a_contract_without_a_checksum_is_refused(folder):
    contract = json.loads((folder / CONTRACT_FILE).read_text())
    del contract["weights"]
    write_json(folder / CONTRACT_FILE, contract)
    refused(folder, "no checksum")


def test_other_bands_and_units_than_expected_are_refused(folder):
    refused(folder, "bands: .*B02.*, not .*B04", ContractError, bands=["B04", "B01"])
    refused(folder, "unit: .* takes reflectance, not DN", ContractError, unit="DN")
    BharatEOEncoder.from_pretrained(folder, bands=["B01", "B02"], unit="reflectance")


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 2, 32, 41), (1, 2, 32, 0), (2, 32, 32)])
def test_images_of_another_shape_are_refused(shape, run):
    with pytest.raises(ContractError, match=r"\(2, rows, cols\).* of 8 px, .* are B01, B02"):
        BharatEOEncoder(run)(torch.zeros(shape))


def test_images_of_any_whole_number_of_patches_are_taken(run):
    image = torch.rand(2, 2, 48, 24)
    valid = torch.rand(2, 48, 24) < 0.9
    found = BharatEOEncoder(run).features(image, valid)
    assert found.shape == (2, 18, run.model.config.width) and not found.requires_grad
    assert torch.equal(found, FrozenEncoder.of_run(run).features(image, valid))
    for dtype in (torch.bfloat16, torch.float16):
        halves = BharatEOEncoder(run).to(dtype).features(image, valid)
        assert halves.dtype == dtype
        assert torch.nn.functional.cosine_similarity(halves.float(), found, dim=2).min() > 0.99


def test_a_run_may_be_read_from_its_own_folder(run):
    """Training names its dataset by the way there from the run; a folder from afar must not."""
    change(run.path, dataset={"path": "../dataset", "fingerprint": ""})
    refused(run.path, "leads out of the folder")
    (run.path / "config.yaml").write_text("")
    assert BharatEOEncoder.from_pretrained(run.path).bands == ("B01", "B02")


def test_neither_a_folder_nor_a_repository_is_one_error(tmp_path, monkeypatch):
    refused(tmp_path / "nowhere", "no folder here, and no repository")


def test_a_training_folder_is_not_written_over(run):
    (run.path / "config.yaml").write_text("")
    before = contents(run.path)
    with pytest.raises(ConfigError, match="folder of a training"):
        save_folder(run, run.path)
    assert contents(run.path) == before


def test_without_the_hub_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "bharateo.handover.hub")
    with pytest.raises(ConfigError, match=r"pip install 'bharateo\[hub\]'"):
        importlib.import_module("bharateo.handover.hub")


def change(folder, **fields):
    contract = json.loads((folder / CONTRACT_FILE).read_text())
    write_json(folder / CONTRACT_FILE, contract | fields)


# The card.


def card(folder):
    header, body = (folder / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    return yaml.safe_load(header), body


def test_the_card_is_written_from_the_run(run, folder):
    header, body = card(folder)
    assert header["library_name"] == "bharateo"
    assert header["license"] == "other"  # nobody's labels have no licence
    mean = run.contract.statistics.mean
    assert f"| B01 | 10 |  | {mean[0]:.5g} |" in body
    assert "**reflectance**" in body
    assert "offset -0.1" in body or "+ -0.1" in body
    assert "Labels by nobody" in body
    presented = run.contract.presented
    tokens = presented.chips_per_epoch * presented.epochs * 16
    assert f"| token presentations | {tokens:,} tokens |" in body
    assert "no score is known" in body
    assert "None" not in body


def test_the_card_says_which_weights_were_kept(run, tmp_path):
    kept = Kept(rule="best", epoch=2, val_loss=0.123456, average=0.05)
    chosen = replace(run, contract=run.contract.model_copy(update={"kept": kept}))
    BharatEOEncoder(chosen).save_pretrained(tmp_path / "hub")
    _, body = card(tmp_path / "hub")
    said = (
        "| weights | after epoch 2, as a moving average (training.average 0.05), with the lowest "
        "validation loss (0.1235) |"
    )
    lines = body.splitlines()
    assert said in lines
    assert "|" in lines[lines.index(said) - 1]
    assert lines[lines.index(said) + 1 :][:2] == ["", "## How well it does"]
    assert BharatEOEncoder.from_pretrained(tmp_path / "hub").contract.kept == kept
    BharatEOEncoder(run).save_pretrained(tmp_path / "plain")
    assert body.replace(f"{said}\n", "") == card(tmp_path / "plain")[1]


def test_the_card_shows_the_scores_beside_their_baselines(run, tmp_path):
    dataset = {"name": "d", "path": "d", "fingerprint": "f"}
    scores = {"dataset": dataset, "splits": {"test": split_scores((0.041, 0.801))}}
    write_json(run.path / "evaluation.json", scores)
    save_folder(run, tmp_path / "scored", "apache-2.0")
    header, body = card(tmp_path / "scored")
    assert header["license"] == "apache-2.0"
    assert "| **this run** | 0.041 (0.011-0.071) | 0.801 (0.771-0.831) |" in body
    assert "| nearest visible token | 0.060 (0.030-0.090) | 0.750 (0.720-0.780) |" in body
    assert "no score is known" not in body


def test_the_card_shows_the_probes_beside_those_on_simpler_features(run, tmp_path):
    def result(features, probe, budget, mean):
        score = {"mean": mean, "ci95": [mean - 0.02, mean + 0.02]}
        metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), score)
        return {"features": features, "probe": probe, "budget": budget, **metrics}

    results = [
        result("encoder", "linear", 5, 0.33),
        result("encoder", "linear", "all", 0.61),
        result("band_statistics", "forest", 5, 0.33),
        result("band_statistics", "forest", "all", 0.52),
    ]
    counted = {key: {"num_examples": 9, "num_blocks": 3} for key in ("train", "test")}
    level = {"examples": counted, "results": results, "differences": [],
             "zones": {"per_zone": {}, "worst": None}}  # fmt: skip
    record = {"pretraining_heads": {}, "own_dataset": True, "most": {"train_examples": 9},
              "draws_per_budget": 1, "features": {}, "budgets": [5, "all"], "zones": "block",
              "skipped": {}, "levels": {"patch": level}}  # fmt: skip
    write_json(run.path / "probes.json", record)
    save_folder(run, tmp_path / "probed")
    _, body = card(tmp_path / "probed")
    assert "| **encoder** | linear | 0.610 (0.590-0.630) |" in body
    assert "| band_statistics | forest | 0.520 (0.500-0.540) |" in body
    assert "0.330" not in body


def test_the_records_of_the_evaluations_are_the_ones_the_card_reads(
    run, reflectance_dataset, tmp_path
):
    evaluate(run, reflectance_dataset, run.path / EVALUATION_FILE)
    probe_run(run, reflectance_dataset, run.path / PROBES_FILE, budgets=["all"],
              levels=["patch"], features=["encoder", "band_statistics"])  # fmt: skip
    save_folder(run, tmp_path / "scored")
    _, body = card(tmp_path / "scored")
    assert "| **this run** |" in body
    assert "| **encoder** | linear |" in body
    assert "| band_statistics | forest |" in body


def test_labels_under_creative_commons_give_the_card_its_licence(run, tmp_path):
    change(run.path, attribution=["Licence: CC BY 4.0"])
    save_folder(Run.open(run.path), tmp_path / "shared")
    assert card(tmp_path / "shared")[0]["license"] == "cc-by-4.0"
