import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bharateo.errors import ConfigError
from bharateo.handover.timm_weights import timm_arguments, timm_state, write_timm
from bharateo.inference.encoder import FrozenEncoder
from handover.timm_reference import VisionTransformer
from handover.tiny_run import chips_of, tiny_run
from small_datasets import contents


@pytest.fixture(params=["v0", "seed"])
def run(request, reflectance_dataset, tmp_path):
    return tiny_run(tmp_path / "run", reflectance_dataset, request.param)


def loaded(run, transformer=VisionTransformer):
    """The transformer with the run's weights, every name and shape its own."""
    model = transformer(**timm_arguments(run), norm_layer=partial(nn.LayerNorm, eps=1e-5)).eval()
    model.load_state_dict(timm_state(run), strict=True)
    return model


def features(run, image):
    valid = torch.ones(len(image), *image.shape[2:], dtype=torch.bool)
    return FrozenEncoder.of_run(run).features(image, valid)


def test_timms_forward_pass_gives_the_encoders_features_of_physical_values(
    run, reflectance_dataset
):
    image, _ = chips_of(run, reflectance_dataset)
    with torch.no_grad():
        torch.testing.assert_close(loaded(run)(image), features(run, image), atol=1e-5, rtol=1e-5)


def test_a_set_of_bands_is_a_model_of_these_bands(reflectance_dataset, tmp_path):
    whole = tiny_run(tmp_path / "run", reflectance_dataset, band_sets={"one": ("B02",)})
    some = whole.of_set("one")
    image, _ = chips_of(some, reflectance_dataset.with_bands(["B02"]))
    with torch.no_grad():
        torch.testing.assert_close(loaded(some)(image), features(some, image), atol=1e-5, rtol=1e-5)
    write_timm(some, tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [1, 32, 32]


def test_timm_itself_agrees_where_it_can_be_imported(run, reflectance_dataset):
    timm = pytest.importorskip("timm", reason="timm needs torchvision", exc_type=ImportError)
    image, _ = chips_of(run, reflectance_dataset)
    with torch.no_grad():
        found = loaded(run, timm.models.VisionTransformer)(image)
        torch.testing.assert_close(found, features(run, image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("embedding", ["energies", "stem"])
def test_an_embedding_that_timm_lacks_is_refused_and_nothing_is_written(
    embedding, reflectance_dataset, tmp_path
):
    run = tiny_run(tmp_path / "other", reflectance_dataset, embedding=embedding)
    with pytest.raises(ConfigError, match=rf"embedding is '{embedding}': use .* --to onnx"):
        write_timm(run, tmp_path / "timm")
    assert not (tmp_path / "timm").exists()


def test_the_folder_says_how_timm_builds_the_model(run, tmp_path):
    write_timm(run, tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    stored = load_file(tmp_path / "timm" / "model.safetensors")
    assert config["model_args"] == timm_arguments(run)
    assert config["pretrained_cfg"]["input_size"] == [2, 32, 32]
    assert config["bharateo"]["sensor"]["unit"] == "reflectance"
    assert stored.keys() == timm_state(run).keys()
    before = contents(tmp_path / "timm")
    write_timm(run, tmp_path / "timm")
    assert contents(tmp_path / "timm") == before


def test_a_runs_own_weights_are_not_replaced(run):
    before = contents(run.path)
    with pytest.raises(ConfigError, match="folder of a run"):
        write_timm(run, run.path)
    assert contents(run.path) == before
