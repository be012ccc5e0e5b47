import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from bharateo.errors import DatasetError
from bharateo.evaluation import probes
from bharateo.evaluation.probes import (
    NEIGHBOURS,
    STRENGTHS,
    fit_forest,
    fit_linear,
    fit_nearest,
    load_probe,
    log_losses,
    macro_f1,
    save_probe,
)

FITS = (fit_linear, fit_nearest, fit_forest)


def blobs(num=120, classes=(0, 3, 5), dim=6, spread=1.0, seed=0):
    """Examples around a centre for every class, on scales that differ by feature."""
    centres = np.random.default_rng(7).normal(size=(8, dim)) * 2
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, num)
    values = centres[labels] + rng.normal(size=(num, dim)) * spread
    return (values * 10.0 ** np.arange(dim)).astype(np.float32), labels


@pytest.mark.parametrize("fit", FITS)
def test_a_probe_finds_classes_that_lie_apart_and_names_them_by_their_ids(fit):
    probe = fit(*blobs(), *blobs(60, seed=1))
    values, labels = blobs(80, seed=2)
    predicted = probe.predict(values)
    assert {*predicted} == {0, 3, 5}
    assert (predicted == labels).mean() > 0.9


@pytest.mark.parametrize("classes", [(0, 3, 5), (2, 4)])
def test_the_linear_probe_is_scikit_learns_logistic_regression(classes):
    values, labels = blobs(classes=classes)
    probe = fit_linear(values, labels, strengths=(0.1,))
    scaled = (values - values.mean(0)) / values.std(0)
    reference = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8).fit(scaled, labels)
    expected = reference.predict_proba(scaled)
    assert probe.probabilities(values) == pytest.approx(expected, abs=2e-3)
    assert probe.classes.tolist() == list(classes)
    assert probe.probabilities(values).sum(1) == pytest.approx(np.ones(len(values)), abs=1e-5)


@pytest.mark.parametrize("fit", [fit_linear, fit_nearest])
def test_standardisation_sees_the_training_examples_alone(fit):
    values, labels = blobs()
    probe = fit(values, labels, *blobs(60, seed=1))
    shifted, others = blobs(60, seed=1)
    again = fit(values, labels, shifted + 1000, others)
    assert np.array_equal(probe.mean, again.mean)
    assert np.array_equal(probe.std, again.std)
    assert probe.mean == pytest.approx(values.mean(0), rel=1e-4)


def test_a_feature_that_is_constant_in_training_cannot_decide_anything():
    values, labels = blobs()
    constant = np.hstack([values, np.full((len(values), 1), 0.3, np.float32)])
    queries, _ = blobs(40, seed=2)
    for fit in FITS:
        probe = fit(constant, labels)
        low, high = (
            probe.predict(np.hstack([queries, np.full((40, 1), x, np.float32)])) for x in (0.3, 0.4)
        )
        assert np.array_equal(low, high)


def test_regularisation_is_the_one_with_the_least_log_loss_on_validation():
    values, labels = blobs(60, spread=3.0)
    val, val_labels = blobs(200, spread=3.0, seed=1)
    chosen = fit_linear(values, labels, val, val_labels)
    losses = {}
    for strength in STRENGTHS:
        alone = fit_linear(values, labels, strengths=(strength,))
        losses[strength] = log_loss(val_labels, alone.probabilities(val), labels=alone.classes)
    assert losses[chosen.chosen] == pytest.approx(min(losses.values()), abs=0.005)
    assert max(losses.values()) > min(losses.values()) + 0.05
    found = log_losses(chosen, val, val_labels).mean()
    assert found == pytest.approx(losses[chosen.chosen], abs=0.005)


def test_a_class_that_was_never_shown_costs_as_much_as_the_least_probability():
    probe = fit_linear(*blobs())
    queries, labels = blobs(10, seed=2)
    losses = log_losses(probe, queries, np.full_like(labels, 6))
    assert losses == pytest.approx(np.full(10, -np.log(probes.LEAST_PROBABILITY)))


def test_neighbours_are_chosen_on_validation_and_vote():
    values, labels = blobs(300, spread=4.0)
    val = blobs(300, spread=4.0, seed=1)
    probe = fit_nearest(values, labels, *val)
    nearest = probe.nearest_labels(val[0])
    scores = {num: macro_f1(val[1], probes._vote(nearest[:, :num])) for num in NEIGHBOURS}
    assert len({*scores.values()}) > 1
    assert scores[probe.chosen] == max(scores.values())


def test_of_classes_with_equal_votes_that_of_the_nearest_wins():
    votes = np.array([[5, 3, 3, 5], [3, 5, 5, 3], [1, 2, 2, 1], [0, 7, 7, 7]])
    assert probes._vote(votes).tolist() == [5, 3, 1, 7]


def test_few_examples_are_all_the_neighbours_there_are():
    probe = fit_nearest(*blobs(6, classes=(0, 3)))
    assert probe.nearest_labels(blobs(4, seed=2)[0]).shape == (4, 6)


@pytest.mark.parametrize("fit", FITS)
def test_without_validation_the_middle_choice_is_taken(fit):
    middle = {
        fit_linear: STRENGTHS[len(STRENGTHS) // 2],
        fit_nearest: NEIGHBOURS[1],
        fit_forest: probes.LEAVES[1],
    }
    assert fit(*blobs()).chosen == middle[fit]


@pytest.mark.parametrize("fit", FITS)
def test_labels_of_one_class_are_refused(fit):
    values, labels = blobs()
    with pytest.raises(DatasetError, match=r"two classes, its 120 labels are of \[4\]"):
        fit(values, np.full_like(labels, 4))


@pytest.mark.parametrize("fit", FITS)
def test_the_same_examples_give_the_same_probe(fit):
    queries, _ = blobs(50, spread=3.0, seed=3)
    first, again = (fit(*blobs(spread=3.0), *blobs(60, spread=3.0, seed=1)) for _ in range(2))
    assert np.array_equal(first.predict(queries), again.predict(queries))


def test_macro_f1_is_over_the_classes_that_occur():
    true = np.array([0, 0, 1, 1])
    # class 0: 1 of 1 found, 1 missed; class 1: both found; 7 is nobody's class
    assert macro_f1(true, np.array([0, 7, 1, 1])) == pytest.approx((2 / 3 + 1) / 2)


# On disk.


def test_a_probe_comes_back_from_its_file_as_it_was(tmp_path):
    probe = fit_linear(*blobs())
    save_probe(tmp_path / "probe.safetensors", probe, {"features": "encoder"})
    loaded, about = load_probe(tmp_path / "probe.safetensors")
    queries, _ = blobs(20, seed=3)
    assert np.array_equal(loaded.probabilities(queries), probe.probabilities(queries))
    assert (loaded.chosen, about.model_extra) == (probe.chosen, {"features": "encoder"})


def test_a_file_that_is_no_probe_is_refused(tmp_path):
    path = tmp_path / "probe.safetensors"
    save_probe(path, fit_linear(*blobs()), {})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="holds no linear probe"):
        load_probe(path)
    path.write_bytes(b"\x80\x04\x95cos\nsystem\n.")  # the beginning of a pickle
    with pytest.raises(DatasetError, match="holds no linear probe"):
        load_probe(path)
    with pytest.raises(DatasetError, match="holds no linear probe"):
        load_probe(tmp_path / "none")
    save_file({"weight": np.zeros((2, 2))}, path, {"other": "x"})
    with pytest.raises(DatasetError, match="holds no linear probe"):
        load_probe(path)


def test_a_probe_whose_parts_do_not_fit_is_refused(tmp_path):
    path = tmp_path / "probe.safetensors"
    save_probe(path, fit_linear(*blobs()), {})
    with safe_open(path, "np") as file:
        arrays, head = {name: file.get_tensor(name) for name in probes._ARRAYS}, file.metadata()
    for name, wrong in (("bias", arrays["bias"][:-1]), ("weight", arrays["weight"][0])):
        save_file({**arrays, name: np.ascontiguousarray(wrong)}, path, head)
        with pytest.raises(DatasetError, match="shapes"):
            load_probe(path)
