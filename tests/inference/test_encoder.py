import pytest
import torch

from bharateo.errors import ConfigError, ContractError, RunError
from bharateo.inference.encoder import (
    CHIPS_AT_ONCE,
    FrozenEncoder,
    all_visible,
    device_of,
    over_views,
)
from bharateo.models.patches import patchify
from bharateo.training.run import Run
from models.tiny_models import HEADS, random_batch, tiny_heads, tiny_model, with_pixels


def encoder(name="v0", heads=HEADS):
    model = tiny_model(name)
    return FrozenEncoder(model, tiny_heads(model, heads))


@pytest.mark.parametrize("name", ["v0", "seed"])
def test_features_are_the_models_own_vectors_of_chips_without_a_mask(name):
    frozen = encoder(name)
    batch, _ = random_batch(frozen.model)
    features = frozen.features(batch.image, batch.valid)
    assert features.shape == (3, frozen.num_tokens, frozen.width)
    if name == "seed":  # one encoder for all: its tokens are what the heads get
        mask = all_visible(3, frozen.num_tokens)
        with torch.no_grad():
            tokens = frozen.model(batch.image, batch.valid, mask)
        torch.testing.assert_close(features, tokens.values)


def test_images_of_other_sizes_than_chips_have_features_where_places_go_on():
    frozen = encoder()
    image, valid = torch.rand(2, 3, 40, 24), torch.ones(2, 40, 24, dtype=torch.bool)
    assert frozen.features(image, valid).shape == (2, 15, frozen.width)
    frozen.model.encoder = torch.nn.Identity()  # tokens no longer mix
    whole = frozen.features(image, valid)
    rows = frozen.features(image[:, :, :16], valid[:, :16])
    torch.testing.assert_close(rows, whole[:, :6])  # the same pixels at the same places
    below = frozen.features(image[:, :, 8:], valid[:, 8:])
    assert not torch.allclose(below[:, :3], whole[:, 3:6])


def test_what_knows_chips_alone_refuses_images_of_other_sizes():
    image, valid = torch.rand(2, 3, 40, 40), torch.ones(2, 40, 40, dtype=torch.bool)
    with pytest.raises(ContractError, match="learned the places in chips of 32 px"):
        encoder("seed").features(image, valid)
    with pytest.raises(ContractError, match=r"is of chips, \(32, 32\) px; got \(40, 40\)"):
        encoder().class_probabilities(image, valid)


def test_tokens_are_row_major():
    frozen = encoder()
    batch, _ = random_batch(frozen.model, chips=1)
    frozen.model.encoder = torch.nn.Identity()  # tokens no longer mix
    before = frozen.features(batch.image, batch.valid)
    px = frozen.patch_px
    image = batch.image.clone()
    image[:, :, px : 2 * px, 2 * px : 3 * px] += 1
    moved = (frozen.features(image, batch.valid) - before).abs().amax(2)[0]
    assert moved.nonzero().flatten().tolist() == [frozen.grid + 2]


@pytest.mark.parametrize("name", ["v0", "seed"])
def test_what_an_invalid_pixel_holds_changes_no_feature_and_no_class(name):
    frozen = encoder(name)
    batch, _ = random_batch(frozen.model, all_valid=False)
    other = with_pixels(batch, ~batch.valid, 1e6)
    for ask in (frozen.features, frozen.class_probabilities):
        assert torch.equal(ask(batch.image, batch.valid), ask(other.image, batch.valid))


def test_a_chip_gets_the_same_features_in_any_company():
    frozen = encoder()
    batch, _ = random_batch(frozen.model, chips=CHIPS_AT_ONCE + 3)
    together = frozen.features(batch.image, batch.valid)
    alone = frozen.features(batch.image[-1:], batch.valid[-1:])
    torch.testing.assert_close(together[-1:], alone)


def test_class_probabilities_are_those_of_the_runs_own_head():
    frozen = encoder()
    batch, _ = random_batch(frozen.model)
    shares = frozen.class_probabilities(batch.image, batch.valid)
    torch.testing.assert_close(shares.sum(2), torch.ones(3, frozen.num_tokens))
    with torch.no_grad():
        mask = all_visible(3, frozen.num_tokens)
        tokens = frozen.model(batch.image, batch.valid, mask)
        logits = frozen.heads["landcover"].predict(tokens.values)
    assert torch.equal(shares.argmax(2), logits.argmax(2))


def test_a_run_without_a_land_cover_head_has_no_classes_of_its_own():
    frozen = encoder(heads={"pixels": HEADS["pixels"]})
    batch, _ = random_batch(frozen.model)
    with pytest.raises(RunError, match=r"heads\.landcover.*probe"):
        frozen.class_probabilities(batch.image, batch.valid)


# Read out over views.


def test_turned_or_flipped_a_chip_has_the_same_vectors_in_other_places():
    """Of patches that come to lie on patches; of the encoder as it is that is not so."""
    frozen = encoder()
    batch, _ = random_batch(frozen.model, all_valid=False)
    image, valid = batch.image, batch.valid

    def grids(predict, turned):
        values = predict(turned(image), turned(valid))
        return turned(values.transpose(1, 2).unflatten(2, (frozen.grid, frozen.grid)))

    mean = over_views(frozen.features, frozen.patch_px)
    for turned in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        as_it_is = grids(mean, lambda x: x)
        torch.testing.assert_close(grids(mean, turned), as_it_is, atol=1e-5, rtol=1e-4)
        plain = grids(frozen.features, lambda x: x)
        assert not torch.allclose(grids(frozen.features, turned), plain, atol=1e-3)


def test_a_mean_over_views_is_over_all_eight():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    seen = []

    def predict(image, valid):
        seen.append(image.clone())
        return image.flatten(2).transpose(1, 2)  # each token says its own pixel

    found = over_views(predict, 1)(image, image[:, 0] >= 0)
    assert torch.equal(found, image.flatten(2).transpose(1, 2))
    assert len({tuple(each.flatten().tolist()) for each in seen}) == 8


def test_views_lie_a_quarter_of_a_patch_aside_in_four_directions():
    """Tokens that say where their patch lies say their own place over all views, but at edges."""
    row, col = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image, valid = torch.stack([row, col])[None], torch.ones(1, 32, 32, dtype=torch.bool)
    first = []

    def predict(image, valid):
        found = patchify(image, 8).unflatten(2, (2, -1)).mean(3)
        first.append(tuple(found[0, 0].tolist()))
        return found

    grid = over_views(predict, 8)(image, valid).unflatten(1, (4, 4))
    own = predict(image, valid).unflatten(1, (4, 4))
    torch.testing.assert_close(grid[:, 1:-1, 1:-1], own[:, 1:-1, 1:-1])
    near, far = 3.5 + 2, 27.5 - 2  # 2 px of 8 inwards from each corner, each seen twice
    assert sorted(first[:8]) == sorted(2 * [(a, b) for a in (near, far) for b in (near, far)])


@pytest.mark.parametrize("band_set", [None, "two"])
def test_energies_stand_beside_the_vectors_read_out_like_them(band_set):
    """Those that the embedding measures, of all bands or of a set's own."""
    model = tiny_model(embedding="energies", band_sets={"two": ("B02", "B03")})
    frozen = FrozenEncoder(model, band_set=band_set)
    batch, _ = random_batch(model, all_valid=False)
    image, valid = batch.image[:, 1:] if band_set else batch.image, batch.valid
    both = frozen.read_out("views+energies")(image, valid)
    measure = model.embed.energies if band_set is None else model.embed.of_sets[0][0]
    places = [1, 2] if band_set else [0, 1, 2]
    alone = over_views(
        lambda image, valid: measure(
            frozen.model.normalise(
                patchify(image, frozen.patch_px), patchify(valid[:, None], frozen.patch_px), places
            ),
            patchify(valid[:, None], frozen.patch_px),
        ),
        frozen.patch_px,
    )(image, valid)
    views = frozen.read_out("views")(image, valid)
    assert both.shape == (3, frozen.num_tokens, frozen.width + measure.size)
    torch.testing.assert_close(both, torch.cat([views, alone], 2))
    assert alone.std() > 0.1


def test_energies_of_an_embedding_that_has_none_are_refused():
    with pytest.raises(ConfigError, match=r"'linear'.* give --readout views"):
        encoder().read_out("views+energies")


# Where it computes.


def test_everything_is_brought_to_the_device_and_only_numbers_come_back():
    """On a device without storage all is computed, as long as nothing stays behind, up to the last
    step: there is nothing to bring back.
    """
    model = tiny_model()
    frozen = FrozenEncoder(model, tiny_heads(model), torch.device("meta"))
    batch, _ = random_batch(model)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        frozen.class_probabilities(batch.image, batch.valid)
    assert {each.device.type for each in frozen.model.parameters()} == {"meta"}
    assert {each.device.type for each in model.parameters()} == {"cpu"}  # others go on with it


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["v0", "seed"])
def test_a_gpu_says_what_the_cpu_says(name):
    model = tiny_model(name)
    heads = tiny_heads(model)
    here, there = FrozenEncoder(model, heads), FrozenEncoder(model, heads, torch.device("cuda"))
    batch, _ = random_batch(model, chips=CHIPS_AT_ONCE + 3, all_valid=False)
    for each in ("features", "class_probabilities"):
        found = getattr(there, each)(batch.image, batch.valid)
        assert found.device.type == "cpu"
        expected = getattr(here, each)(batch.image, batch.valid)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "num_gpus", "device"),
    [("auto", 1, "cuda"), ("cuda", 1, "cuda"), ("cpu", 1, "cpu"), (None, 1, "cuda"),
     ("auto", 0, "cpu"), ("cuda", 0, "cpu")],
)  # fmt: skip
def test_a_run_computes_where_its_configuration_says_if_that_is_here(
    said, num_gpus, device, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    if said:
        (tmp_path / "config.yaml").write_text(f"machine:\n  device: {said}\n")
    run = object.__new__(Run)
    object.__setattr__(run, "path", tmp_path)
    assert device_of(run).type == device
    object.__setattr__(run, "device", torch.device("cpu"))
    assert device_of(run).type == "cpu"
