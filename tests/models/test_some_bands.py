"""Models that take sets of bands in place of all."""

from dataclasses import replace

import pytest
import torch
from test_mae import RUBBISH
from tiny_models import TINY, random_batch, randomised, tiny_heads

from bharateo.config import HeadConfig
from bharateo.errors import ConfigError
from bharateo.inference.encoder import FrozenEncoder
from bharateo.models.embedding import EMBEDDINGS
from bharateo.models.mae import MODELS, build_model
from bharateo.models.objective import Objective
from bharateo.models.patches import all_visible

BANDS = ("B02", "B03", "B04", "B08", "B11")
SETS = {"rgb": ("rgb",), "two": ("B11", "B03")}
PLACES = {"rgb": (2, 1, 0), "two": (4, 1)}
MEAN, STD = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.6, 0.7, 0.8, 0.9]

every = pytest.mark.parametrize("embedding", EMBEDDINGS)
both_models = pytest.mark.parametrize("name", MODELS)


def model_of(name="v0", embedding="linear", sets=SETS):
    """A tiny model of five bands that takes sets of them, every weight random."""
    torch.manual_seed(0)
    config = replace(TINY, name=name, embedding=embedding, band_sets=sets)
    model = build_model(config, MEAN, STD, BANDS)
    noise = torch.rand(8, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    model.embed.fit(*model.every_patch(noise, torch.ones(8, 32, 32, dtype=torch.bool)), 0)
    return randomised(model)


# What the encoder is shown.


@both_models
@every
@pytest.mark.parametrize("rubbish", RUBBISH)
def test_absent_bands_change_no_token(name, embedding, rubbish):
    model = model_of(name, embedding)
    batch, mask = random_batch(model, all_valid=False)
    for band_set, places in PLACES.items():
        absent = [place for place in range(5) if place not in places]
        other = batch.image.clone()
        other[:, absent] = rubbish
        expected = model(batch.image, batch.valid, mask, band_set)
        found = model(other, batch.valid, mask, band_set)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.encoded, expected.encoded)


@both_models
@every
def test_bands_that_are_there_change_tokens(name, embedding):
    model = model_of(name, embedding)
    batch, mask = random_batch(model)
    for band_set, places in PLACES.items():
        before = model(batch.image, batch.valid, mask, band_set).encoded
        for place in places:
            other = batch.image.clone()
            other[:, place] += 1
            assert not torch.equal(model(other, batch.valid, mask, band_set).encoded, before)


@both_models
@every
def test_images_of_a_set_are_encoded_as_its_bands_among_all(name, embedding):
    model = model_of(name, embedding)
    batch, _ = random_batch(model, all_valid=False)
    mask = all_visible(3, model.num_tokens)
    for band_set, places in PLACES.items():
        among_all = model(batch.image, batch.valid, mask, band_set).encoded
        alone = model.encode(batch.image[:, list(places)], batch.valid, mask, band_set)
        torch.testing.assert_close(alone, among_all, rtol=1e-5, atol=1e-5)
        frozen = FrozenEncoder(model, band_set=band_set)
        assert torch.equal(frozen.features(batch.image[:, list(places)], batch.valid), alone)


def test_absent_bands_stay_targets():
    model = model_of()
    heads = tiny_heads(model, {"pixels": HeadConfig(1.0)})
    batch, mask = random_batch(model)
    tokens = model(batch.image, batch.valid, mask, "two")
    _, count = heads["pixels"](tokens, batch, model)["rec_smooth_l1"]
    assert count == mask.masked.numel() * 5 * model.config.patch_px**2


def test_in_a_linear_embedding_a_vector_stands_for_what_is_absent():
    model = model_of()
    batch, mask = random_batch(model)
    patches, pixels = model.patches(batch.image, batch.valid, mask.visible)
    at_mean = patches.clone().unflatten(2, (5, -1))
    at_mean[:, :, [3, 4]] = 0
    found = model.embed(model.of_set(patches, "rgb"), pixels, "rgb")
    expected = model.embed(at_mean.flatten(2), pixels) + model.embed.absent[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_energies_of_a_set_are_those_of_a_model_of_its_bands():
    model = model_of(embedding="energies")
    noise = torch.rand(8, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(8, 32, 32, dtype=torch.bool)
    for number, places in enumerate(PLACES.values()):
        chosen = list(places)
        mean, std = ([each[place] for place in chosen] for each in (MEAN, STD))
        alone = build_model(replace(TINY, embedding="energies"), mean, std)
        alone.embed.fit(*alone.every_patch(noise[:, chosen], valid), 0)
        expected = alone.embed.energies.state_dict()
        found = model.embed.of_sets[number][0].state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


# What training needs of them.


@both_models
@every
def test_every_weight_has_a_gradient_whatever_is_shown(name, embedding):
    model = model_of(name, embedding)
    weights = {"pixels": HeadConfig(1.0), "landcover": HeadConfig(0.2)}
    objective = Objective(model, tiny_heads(model, weights), weights)
    batch, mask = random_batch(model)
    for band_set in (None, *SETS):
        objective.zero_grad()
        loss, _ = objective(batch, mask, objective.counts(batch, mask), band_set)
        loss.backward()
        for parameter_name, parameter in objective.named_parameters():
            assert parameter.grad is not None, parameter_name
        moved = {n for n, p in model.embed.named_parameters() if p.grad.abs().max() > 0}
        own = {"rgb": "0", "two": "1"}.get(band_set)
        of_sets = [n for n in moved if n.startswith(("absent.", "of_sets."))]
        assert bool(of_sets) == (band_set is not None)
        assert all(n.split(".")[1] == own for n in of_sets)


@every
def test_without_sets_weights_have_the_names_they_always_had(embedding):
    plain, with_sets = (
        model_of(embedding=embedding, sets=each).state_dict() for each in ({}, SETS)
    )
    more = {*with_sets} - {*plain}
    assert {*plain} < {*with_sets}
    assert all(name.split(".")[1] in ("absent", "of_sets") for name in more)


def test_weights_do_not_depend_on_the_order_sets_are_written_in():
    first, second = model_of(), model_of(sets=dict(reversed(SETS.items())))
    batch, mask = random_batch(first)
    second.load_state_dict(first.state_dict())
    for band_set in SETS:
        results = [each(batch.image, batch.valid, mask, band_set) for each in (first, second)]
        assert torch.equal(results[0].values, results[1].values)


# What is refused.


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"odd": ("B09",)}, r"model.band_sets.odd: B09 is none of the bands B02, B03"),
        ({"odd": ("10band",)}, r"model.band_sets.odd: B05 is none of the bands B02, B03"),
        ({"odd": ("rgb", "B04")}, r"model.band_sets.odd: .*names a band twice"),
        ({"odd": BANDS}, r"model.band_sets.odd holds all 5 bands.*leave it out"),
        ({"a": ("rgb",), "b": ("B02", "B03", "B04")}, r"model.band_sets.b holds the bands of a"),
    ],
)
def test_sets_that_are_none_are_refused(sets, said):
    with pytest.raises(ConfigError, match=said):
        model_of(sets=sets)
