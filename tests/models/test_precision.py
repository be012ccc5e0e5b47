"""Encoders in half precision: values are normalised in float32 and vectors come in the weights'."""

from dataclasses import replace

import pytest
import torch
from tiny_models import TINY, random_batch, tiny_heads, tiny_model

from bharateo.inference.encoder import FrozenEncoder
from bharateo.models.heads import LandCoverHead
from bharateo.models.mae import build_model

LOW = [torch.float16, torch.bfloat16]


def stored_like(model, chips=2):
    """An image of whole numbers of thousands, as sensors deliver them."""
    px = model.config.chip_px
    image = torch.randint(1, 9000, (chips, model.num_bands, px, px)).float()
    valid = torch.ones(chips, px, px, dtype=torch.bool)
    valid[0, :12, :9] = False
    return image, valid


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", ["v0", "seed"])
def test_an_encoder_in_half_precision_gives_vectors_in_it(name, dtype):
    torch.manual_seed(0)
    model = build_model(replace(TINY, name=name), [5000.0, 3000.0], [2500.0, 1200.0])
    image, valid = stored_like(model)
    whole = FrozenEncoder(model).features(image, valid)
    low = FrozenEncoder(model.to(dtype)).features(image, valid)
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), whole, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", LOW)
def test_whole_numbers_of_a_sensor_are_taken_as_they_are(dtype):
    model = build_model(TINY, [5000.0, 3000.0], [2500.0, 1200.0]).to(dtype)
    image, valid = stored_like(model)
    expected = FrozenEncoder(model).features(image, valid)
    assert torch.equal(FrozenEncoder(model).features(image.to(torch.uint16), valid), expected)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_the_statistics_stay_in_float32_wherever_a_model_goes(cast):
    model = build_model(TINY, [0.1234567, 4321.567], [0.7654321, 1234.567])
    before = {name: value.clone() for name, value in model.normalise.named_buffers()}
    getattr(model, cast)()
    assert next(model.encoder.parameters()).dtype != torch.float32
    for name, value in before.items():
        assert torch.equal(getattr(model.normalise, name), value)
        assert getattr(model.normalise, name).dtype == torch.float32
    assert {*model.to("meta").normalise.buffers()}.pop().is_meta


@pytest.mark.parametrize("dtype", LOW)
def test_its_classes_come_with_it(dtype):
    model = tiny_model()
    heads = tiny_heads(model)
    assert isinstance(heads["landcover"], LandCoverHead)
    batch, _ = random_batch(model)
    whole = FrozenEncoder(model, heads).class_probabilities(batch.image, batch.valid)
    low = FrozenEncoder(model.to(dtype), heads.to(dtype))
    found = low.class_probabilities(batch.image, batch.valid)
    torch.testing.assert_close(found.float(), whole, rtol=0.2, atol=0.02)
