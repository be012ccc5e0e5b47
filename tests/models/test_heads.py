from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import pixels_of, random_batch, tiny_heads, tiny_model, with_pixels
from torch import nn

from bharateo.config import HeadConfig
from bharateo.errors import ConfigError
from bharateo.landcover import IGNORE, patch_class_counts
from bharateo.landcover import patch_mode as patch_mode_of_arrays
from bharateo.models.heads import HEADS, Head, build_heads, patch_mode
from bharateo.models.mae import MODELS, Tokens
from bharateo.models.patches import take_tokens

every_head = pytest.mark.parametrize("head_name", HEADS)
every_model = pytest.mark.parametrize("model_name", MODELS)


def head_on(model, name, **options):
    return tiny_heads(model, {name: HeadConfig(1.0, options)})[name]


def loss_and_sums(head, tokens, batch, model):
    """The mean over the head's targets, and its sums."""
    sums = head(tokens, batch, model)
    total, count = sums[head.loss_metric]
    assert count == head.count(batch, tokens.mask, model)
    return total / count.clamp(min=1), sums


def some_counts(values):
    return torch.tensor(values, dtype=torch.int64)


# Every head.


@every_head
@every_model
@pytest.mark.parametrize("all_valid", [True, False])
def test_the_loss_is_finite_and_its_gradient_reaches_the_encoder(head_name, model_name, all_valid):
    model = tiny_model(model_name)
    head = head_on(model, head_name)
    batch, mask = random_batch(model, all_valid=all_valid)
    loss, _ = loss_and_sums(head, model(batch.image, batch.valid, mask), batch, model)
    assert loss.ndim == 0
    assert loss.isfinite()
    loss.backward()
    for parameter in (*model.encoder.parameters(), *model.embed.parameters(), *head.parameters()):
        assert parameter.grad.abs().max() > 0


@every_head
def test_only_the_loss_carries_a_gradient(head_name):
    model = tiny_model()
    head = head_on(model, head_name)
    batch, mask = random_batch(model, all_valid=False, all_labelled=False)
    sums = head(model(batch.image, batch.valid, mask), batch, model)
    carrying = {name for name, (total, _) in sums.items() if total.requires_grad}
    assert carrying == {head.loss_metric}
    assert not any(count.requires_grad for _, count in sums.values())


@every_head
def test_sums_of_two_halves_add_up_to_those_of_the_whole(head_name):
    model = tiny_model()
    head = head_on(model, head_name)
    batch, mask = random_batch(model, chips=4, all_valid=False, all_labelled=False)

    def sums_of(part):
        some = type(batch)(*(getattr(batch, name)[part] for name in batch.__dataclass_fields__))
        tokens = model(some.image, some.valid, replace(mask, order=mask.order[part]))
        return head(tokens, some, model)

    whole, first, second = (sums_of(slice(*part)) for part in ((0, 4), (0, 1), (1, 4)))
    for name, pair in whole.items():
        for both, one, other in zip(pair, first[name], second[name], strict=True):
            torch.testing.assert_close(both, one + other, rtol=1e-5, atol=1e-5)


@every_head
def test_nothing_to_learn_from_gives_no_loss_and_no_gradient(head_name):
    model = tiny_model()
    head = head_on(model, head_name)
    batch, mask = random_batch(model)
    nothing = replace(
        batch,
        valid=torch.zeros_like(batch.valid),
        class_counts=torch.zeros_like(batch.class_counts),
    )
    loss, sums = loss_and_sums(head, model(nothing.image, nothing.valid, mask), nothing, model)
    loss.backward()
    assert loss.item() == 0
    assert all(total == 0 and count == 0 for total, count in sums.values())
    assert all(not p.grad.any() for p in head.parameters())


def test_an_unknown_head_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"heads\.pixel is not a head; known are pixels, features, landcov"
    ):
        build_heads({"pixel": HeadConfig()}, tiny_model())


@every_head
def test_an_unknown_option_is_refused_by_name(head_name):
    with pytest.raises(ConfigError, match=rf"heads\.{head_name}\.options: .*'betta'"):
        build_heads({head_name: HeadConfig(1.0, {"betta": 0.1})}, tiny_model())


def test_an_unknown_target_is_refused():
    with pytest.raises(
        ConfigError, match="target: input should be 'mode' or 'fraction', not 'share'"
    ):
        build_heads({"landcover": HeadConfig(1.0, {"target": "share"})}, tiny_model())


@every_head
def test_a_step_sums_what_is_measured_chip_by_chip(head_name):
    """The reference of heads that take a faster way."""
    model = tiny_model()
    head = head_on(model, head_name)
    batch, mask = random_batch(model, chips=5, all_valid=False, all_labelled=False)
    sums = [way(head, model(batch.image, batch.valid, mask), batch, model)
            for way in (type(head).forward, Head.forward)]  # fmt: skip
    measured = head.measure(
        mask.restore(head.predict(model(batch.image, batch.valid, mask).values)),
        head.target(batch, model), mask.hidden, model,
    )  # fmt: skip
    assert list(sums[0]) == list(measured)
    assert head.count(batch, mask, model) == sums[0][head.loss_metric][1]
    for name, (total, count) in measured.items():
        assert total.shape == count.shape == (5,)
        for each in sums:
            torch.testing.assert_close(each[name][0], total.sum(), rtol=1e-5, atol=1e-5)
            assert each[name][1] == count.sum()
    gradients = [torch.autograd.grad(each[head.loss_metric][0], [*head.parameters()])
                 for each in sums]  # fmt: skip
    for fast, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-4, atol=1e-5)


@every_head
def test_every_metric_is_measured_or_taken_from_the_confusion(head_name):
    model = tiny_model()
    head = head_on(model, head_name)
    batch, mask = random_batch(model, all_labelled=False)
    target = head.target(batch, model)
    measured = head.measure(target.float(), target, mask.hidden, model)
    wanted = [metric.name for metric in head.metrics if not metric.mean_over_classes]
    assert [*measured] == wanted
    assert head.loss_metric in measured
    assert all(metric.meaning and metric.title for metric in head.metrics)
    if head.confusion_key:
        perfect = head.confusion(target.float(), target, mask.hidden)
        assert not (perfect - perfect.diagonal(dim1=1, dim2=2).diag_embed()).any()


@every_head
def test_layers_of_a_map_are_what_is_predicted_of_each_token_by_itself(head_name):
    model = tiny_model()
    head = head_on(model, head_name)
    decoded = torch.randn(2, 5, model.decoded_width)
    predicted = head.predict(decoded)
    torch.testing.assert_close(head.predict(decoded.flip(1)).flip(1), predicted)
    if head.layers():
        assert sum(layer.num_values for layer in head.layers()) == predicted.shape[2]
    for layer in head.layers():
        assert layer.num_values in (1, head_px(model), len(layer.classes))


def head_px(model):
    return model.config.patch_px**2


# Pixels.


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_pixel_loss_is_smooth_l1_over_valid_scalars_of_masked_patches(beta):
    model = tiny_model(num_bands=2)
    head = head_on(model, "pixels", beta=beta)
    batch, mask = random_batch(model, chips=2, all_valid=False)
    tokens = model(batch.image, batch.valid, mask)
    loss, sums = loss_and_sums(head, tokens, batch, model)
    predicted = head.predict(tokens.masked).detach()
    mean, std = model.normalise.mean, model.normalise.std
    losses, errors = [], []
    for chip in range(2):
        for place, token in enumerate(mask.masked[chip].tolist()):
            row, col = token // 4 * 8, token % 4 * 8
            guess = predicted[chip, place].view(2, 8, 8)
            square = batch.image[chip, :, row : row + 8, col : col + 8]
            known = batch.valid[chip, row : row + 8, col : col + 8]
            for band in range(2):
                target = (square[band] - mean[band]) / std[band]
                for distance in (guess[band] - target).abs()[known].tolist():
                    small = distance < beta
                    losses.append(distance**2 / (2 * beta) if small else distance - beta / 2)
                    errors.append(distance * float(std[band]))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert sums["masked_mae"][0].item() / sums["masked_mae"][1].item() == pytest.approx(
        np.mean(errors), rel=1e-5
    )
    assert sums["masked_mae"][1].item() == len(errors)


def test_pixels_of_visible_patches_are_no_targets():
    model = tiny_model()
    head = head_on(model, "pixels")
    batch, mask = random_batch(model)
    other = with_pixels(batch, pixels_of(~mask.hidden, 8), 9.0)
    first, second = (model(each.image, each.valid, mask) for each in (batch, other))
    second = replace(second, values=first.values)  # what the encoder made of them is another matter
    expected, found = (loss_and_sums(head, each, batch, model)[0] for each in (first, second))
    assert torch.equal(found, expected)


# Land cover.


def test_the_encoders_classes_are_of_its_own_vectors_of_labelled_visible_patches():
    model = tiny_model()
    head = tiny_heads(model, {"landcover": HeadConfig(1.0, {"encoder": 2.0})})["landcover"]
    batch, mask = random_batch(model, all_labelled=False)
    tokens = model(batch.image, batch.valid, mask)
    total, count = head(tokens, batch, model)["esa_ce_encoder"]
    counts = take_tokens(batch.class_counts, mask.visible)
    logits = head.encoded(model.encode(batch.image, batch.valid, mask))
    labelled = counts.sum(2) > 0
    shares = counts[labelled] / counts[labelled].sum(1, keepdim=True)
    expected = torch.nn.functional.cross_entropy(logits[labelled], shares, reduction="sum")
    torch.testing.assert_close(total, expected)
    assert count == labelled.sum() < counts.shape[0] * counts.shape[1]


def test_asking_the_encoder_changes_nothing_that_is_predicted_or_measured():
    model = tiny_model()
    batch, mask = random_batch(model, all_labelled=False)
    tokens = model(batch.image, batch.valid, mask)
    found = []
    for options in ({}, {"encoder": 0.0}, {"encoder": 1.0}):
        torch.manual_seed(0)
        found.append(build_heads({"landcover": HeadConfig(1.0, options)}, model)["landcover"])
    plain, none, asked = (head(tokens, batch, model) for head in found)
    assert none == plain
    assert asked.keys() - plain.keys() == {"esa_ce_encoder"}
    assert found[0].state_dict().keys() == found[1].state_dict().keys()
    found[2].load_state_dict(found[0].state_dict(), strict=False)
    asked = found[2](tokens, batch, model)
    assert all(torch.equal(asked[name][0], plain[name][0]) for name in plain)


def test_a_weight_of_the_encoders_classes_below_zero_is_refused():
    with pytest.raises(ConfigError, match=r"heads.landcover.options.*encoder"):
        build_heads({"landcover": HeadConfig(1.0, {"encoder": -1.0})}, tiny_model())


def without_patches(values, mask):
    """Tokens for a head that does not look at their patches."""
    nothing = torch.zeros(*values.shape[:2], 0)
    encoded = values[:, : mask.num_visible]
    return Tokens(values, mask, nothing, nothing.bool(), encoded)


def forced(model, head, logits, mask):
    """Tokens that the head turns into these logits (row-major)."""
    head.norm = nn.Identity()
    head.linear = nn.Identity()
    return without_patches(take_tokens(logits, mask.order), mask)


def test_the_fraction_loss_is_the_cross_entropy_with_the_shares():
    model = tiny_model()
    head = head_on(model, "landcover", target="fraction")
    batch, mask = random_batch(model, chips=1)
    counts = torch.zeros_like(batch.class_counts)
    counts[0, 3, 1], counts[0, 3, 4] = 30, 10  # three quarters of one class, one of another
    counts[0, 9, 0] = 1  # one labelled pixel counts as one patch
    logits = torch.zeros(1, 16, 8)
    logits[0, 3, 1] = 2.0
    tokens = forced(model, head, logits, mask)
    loss, sums = loss_and_sums(head, tokens, replace(batch, class_counts=counts), model)
    log_sum = np.log(np.exp(2) + 7)
    first = -(0.75 * (2 - log_sum) + 0.25 * (0 - log_sum))
    assert loss.item() == pytest.approx((first + np.log(8)) / 2)
    assert sums["esa_ce"][1].item() == 2


def test_the_mode_loss_is_the_cross_entropy_with_the_most_frequent_class():
    model = tiny_model()
    head = head_on(model, "landcover", target="mode")
    batch, mask = random_batch(model, chips=1)
    counts = torch.zeros_like(batch.class_counts)
    counts[0, 3, 4], counts[0, 3, 1] = 20, 20  # a tie: the lower id, 1
    counts[0, 9, 7] = 5
    logits = torch.zeros(1, 16, 8)
    logits[0, 3, 1] = 2.0
    tokens = forced(model, head, logits, mask)
    loss, _ = loss_and_sums(head, tokens, replace(batch, class_counts=counts), model)
    expected = (np.log(np.exp(2) + 7) - 2 + np.log(8)) / 2
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("target", ["mode", "fraction"])
def test_tokens_without_a_label_give_no_gradient(target):
    model = tiny_model()
    head = head_on(model, "landcover", target=target)
    batch, mask = random_batch(model, all_labelled=False)
    values = torch.randn(3, 16, model.decoded_width, requires_grad=True)
    loss, _ = loss_and_sums(head, without_patches(values, mask), batch, model)
    loss.backward()
    labelled = take_tokens(batch.class_counts, mask.order).sum(2) > 0
    assert not labelled.all()
    assert not values.grad[~labelled].any()
    assert values.grad[labelled].abs().sum(1).min() > 0


@pytest.mark.parametrize("target", ["mode", "fraction"])
def test_accuracies_count_visible_and_masked_tokens_apart(target):
    model = tiny_model()
    head = head_on(model, "landcover", target=target)
    batch, mask = random_batch(model, chips=2, all_labelled=False)
    logits = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    sums = head(forced(model, head, logits, mask), batch, model)
    right, labelled = Counter(), Counter()
    for chip in range(2):
        for token in range(16):
            pixels = batch.class_counts[chip, token].tolist()
            if sum(pixels) == 0:
                continue
            good = logits[chip, token].argmax().item() == pixels.index(max(pixels))
            part = "masked" if mask.hidden[chip, token] else "visible"
            for name in ("esa_acc", f"esa_acc_{part}"):
                right[name] += good
                labelled[name] += 1
    for name in ("esa_acc", "esa_acc_masked", "esa_acc_visible"):
        assert [part.item() for part in sums[name]] == [right[name], labelled[name]]
    assert sums["esa_ce"][1].item() == labelled["esa_acc"]


def test_ties_go_to_the_lowest_id_and_no_label_is_ignored():
    counts = some_counts([[[0, 3, 0, 3, 0, 0, 0, 3], [0] * 8, [1, 0, 0, 0, 0, 0, 0, 2], [4] * 8]])
    assert patch_mode(counts).tolist() == [[1, IGNORE, 7, 0]]


@given(st.integers(0, 2**32))
def test_the_mode_of_tensors_and_of_arrays_is_the_same(seed):
    counts = np.random.default_rng(seed).integers(0, 3, (2, 9, 8))
    counts[0, :4] = 0
    expected = patch_mode_of_arrays(counts)
    assert patch_mode(torch.from_numpy(counts)).tolist() == expected.tolist()


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 8]))
def test_labels_counted_at_once_are_those_of_a_double_loop(seed, patch_px):
    """The first experiment's own way: a ``Counter`` for every patch."""
    rng = np.random.default_rng(seed)
    class_ids = rng.choice([0, 1, 2, 7, IGNORE], (2, 3 * patch_px, 2 * patch_px)).astype(np.uint8)
    counts = patch_class_counts(class_ids, patch_px)
    for chip in range(2):
        for row in range(3):
            for col in range(2):
                rows, cols = slice(row * patch_px, None), slice(col * patch_px, None)
                patch = class_ids[chip, rows, cols][:patch_px, :patch_px]
                expected = Counter(patch[patch != IGNORE].tolist())
                got = counts[chip, row * 2 + col]
                assert {cls: n for cls, n in enumerate(got.tolist()) if n} == expected
