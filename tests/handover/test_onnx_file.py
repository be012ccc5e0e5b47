import json

import jaxtyping
import onnx
import onnxruntime
import pytest
import torch

from bharateo.errors import ConfigError, RunError
from bharateo.handover import onnx_file
from bharateo.handover.onnx_file import TOLERANCE, write_onnx
from bharateo.inference.encoder import FrozenEncoder
from bharateo.models.patches import Mask, mask_from_noise, patchify
from bharateo.training.contract import TrainStatistics
from bharateo.training.run import Run
from handover.tiny_run import chips_of, tiny_run


@pytest.fixture(scope="module")
def run(encoder):
    return Run.open(encoder.with_name("run"))


@pytest.fixture(scope="module")
def autoencoder(run):
    path = run.path.with_name("autoencoder.onnx")
    with pytest.MonkeyPatch.context() as patch:
        # While it is exported, the number of visible tokens is a symbol, not an int.
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        write_onnx(run, path, "autoencoder")
    return path


def answers(path, **inputs):
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(each) for name, each in zip(names, found, strict=True)}


@pytest.mark.parametrize("num_chips", [1, 7])
def test_onnxruntime_gives_the_encoders_features(num_chips, run, encoder, reflectance_dataset):
    image, valid = (each[-num_chips:] for each in chips_of(run, reflectance_dataset))
    valid[0, 3:20, 5:9] = False
    expected = FrozenEncoder.of_run(run).features(image, valid)
    found = answers(encoder, image=image, valid=valid)["features"]
    scale = expected.square().mean().sqrt()
    assert (found - expected).abs().max() < TOLERANCE * scale


@pytest.mark.parametrize("embedding", ["energies", "stem"])
@pytest.mark.slow
def test_every_embedding_of_patches_is_exported(embedding, reflectance_dataset, tmp_path):
    """The whole graph is compared with PyTorch before it is written."""
    other = tiny_run(tmp_path / "run", reflectance_dataset, depth=1, embedding=embedding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        assert write_onnx(other, tmp_path / "autoencoder.onnx", "autoencoder") < TOLERANCE


@pytest.mark.parametrize("embedding", ["linear", "energies"])
@pytest.mark.slow
def test_an_encoder_of_a_set_of_bands_is_exported(embedding, reflectance_dataset, tmp_path):
    whole = tiny_run(tmp_path / "run", reflectance_dataset, depth=1, embedding=embedding,
                     band_sets={"one": ("B02",)})  # fmt: skip
    some, image = whole.of_set("one"), torch.rand(4, 1, 32, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        assert write_onnx(some, tmp_path / "one.onnx") < TOLERANCE
        assert write_onnx(whole, tmp_path / "all.onnx") < TOLERANCE
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "one.onnx").metadata_props}
    assert metadata["bands"] == "B02"
    assert json.loads(metadata["mean"]) == [whole.model.normalise.mean[1].item()]
    valid = torch.ones(4, 32, 32, dtype=torch.bool)
    found = answers(tmp_path / "one.onnx", image=image, valid=valid)["features"]
    expected = FrozenEncoder.of_run(some).features(image, valid)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="leave out --bands one, or export the encoder"):
        write_onnx(some, tmp_path / "mae.onnx", "autoencoder")


@pytest.mark.parametrize("num_masked", [1, 12])
def test_onnxruntime_rebuilds_and_classifies_what_is_masked(
    num_masked, run, autoencoder, reflectance_dataset
):
    image, valid = (each[:4] for each in chips_of(run, reflectance_dataset))
    mask = mask_from_noise(
        torch.rand(4, 16, generator=torch.Generator().manual_seed(0)), num_masked
    )
    found = answers(autoencoder, image=image, valid=valid, visible=mask.visible, masked=mask.masked)
    with torch.no_grad():
        tokens = run.model(image, valid, mask)
        classes = run.heads["landcover"].predict(tokens.values).softmax(2)
        pixels = run.heads["pixels"].predict(tokens.masked)
    torch.testing.assert_close(found["classes"], mask.restore(classes), atol=1e-5, rtol=1e-4)
    normalised = run.model.normalise.model_units(found["reconstruction"].movedim(1, 3)).movedim(
        3, 1
    )
    rebuilt = patchify(normalised, 8).gather(1, mask.masked[..., None].expand(-1, -1, 128))
    torch.testing.assert_close(rebuilt, pixels, atol=1e-4, rtol=1e-4)


def test_visible_pixels_come_back_as_they_were(run, autoencoder, reflectance_dataset):
    image, valid = (each[:4] for each in chips_of(run, reflectance_dataset))
    order = torch.arange(16).expand(4, 16)
    mask = Mask(order, 12)
    found = answers(autoencoder, image=image, valid=valid, visible=mask.visible, masked=mask.masked)
    known = valid[:, None] & (torch.arange(32) < 24)[:, None]  # the upper three rows of patches
    same = torch.where(known, found["reconstruction"] - image, 0)
    assert same.abs().max() < 1e-5


def test_the_file_says_what_it_may_be_fed(run, encoder):
    told = {each.key: each.value for each in onnx.load(encoder).metadata_props}
    assert told["bands"] == "B01,B02"
    assert told["unit"] == "reflectance"
    assert (told["chip_px"], told["patch_px"]) == ("32", "8")
    assert json.loads(told["mean"]) == run.model.normalise.mean.tolist()
    statistics = json.dumps(json.loads(told["contract"])["statistics"])
    assert TrainStatistics.model_validate_json(statistics) == run.contract.statistics


def test_the_file_holds_no_path_of_this_machine(run, encoder, autoencoder):
    for path in (encoder, autoencoder):
        content = path.read_bytes()
        assert str(run.path.parent).encode() not in content
        assert b"/src/bharateo" not in content


def test_the_same_run_gives_the_same_bytes(run, encoder, tmp_path):
    write_onnx(run, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == encoder.read_bytes()


def test_a_file_that_does_not_agree_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_exported", lambda *told: b"")
    monkeypatch.setattr(onnx_file, "largest_difference", lambda *told: 2 * TOLERANCE)
    with pytest.raises(RunError, match=r"onnxruntime differs from PyTorch by 2\.0e-04"):
        write_onnx(run, tmp_path / "wrong.onnx")
    assert not (tmp_path / "wrong.onnx").exists()


def test_a_missing_package_is_named_with_its_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"onnxscript is not installed.*bharateo\[onnx\]"):
        write_onnx(run, tmp_path / "no.onnx")
