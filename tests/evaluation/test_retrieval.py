import numpy as np
import pytest

from bharateo.errors import DatasetError
from bharateo.evaluation.features import MAKERS, Features
from bharateo.evaluation.retrieval import precision_at, retrieval_record, retrieval_rows
from bharateo.results import Retrieval
from handover.tiny_run import tiny_run

NUM_PLACES, NUM_BLOCKS = 600, 6


def features(values, labels, block):
    return Features(
        values.astype(np.float32),
        labels.astype(np.int64),
        np.array([f"block-{each}" for each in block]),
        np.arange(len(labels)),
    )


@pytest.fixture
def places():
    """Labels of three classes, spread over blocks of ground."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 5], NUM_PLACES, p=[0.6, 0.3, 0.1])
    return labels, rng.integers(0, NUM_BLOCKS, NUM_PLACES), rng


def test_features_that_tell_the_classes_apart_find_them_all(places):
    labels, block, rng = places
    told = np.eye(8)[labels][:, [0, 1, 5]] + rng.normal(size=(NUM_PLACES, 3)) * 0.01
    scores = precision_at(features(told, labels, block), k=20)
    assert scores.keys() == {"tree", "cropland", "water"}
    for score in scores.values():
        assert score.precision == 1
        assert score.ci95 == (1, 1)
        assert score.num_blocks == NUM_BLOCKS
    assert scores["water"].num_queries == (labels == 5).sum()


def test_features_that_say_nothing_find_as_many_as_chance(places):
    labels, block, rng = places
    scores = precision_at(features(rng.normal(size=(NUM_PLACES, 20)), labels, block), k=20)
    for name, number in (("tree", 0), ("cropland", 1), ("water", 5)):
        low, high = scores[name].ci95
        assert low - 0.03 < (labels == number).mean() < high + 0.03
        assert scores[name].chance == pytest.approx((labels == number).mean(), abs=0.02)


def test_patches_of_the_same_block_do_not_count(places):
    """Features that know the block alone would otherwise find neighbours of the class."""
    _, block, rng = places
    labels = np.where(block < 3, 0, 1)  # every block is of one class
    labels[::10] = 1 - labels[::10]
    told = np.eye(NUM_BLOCKS)[block] * 10 + rng.normal(size=(NUM_PLACES, NUM_BLOCKS))
    everywhere = precision_at(features(told, labels, np.arange(NUM_PLACES)), k=20)
    elsewhere = precision_at(features(told, labels, block), k=20)
    assert everywhere["tree"].precision > 0.8
    assert elsewhere["tree"].precision < 0.6


def test_the_scale_of_a_dimension_does_not_matter(places):
    labels, block, rng = places
    told = np.eye(8)[labels] + rng.normal(size=(NUM_PLACES, 8))
    plain = precision_at(features(told, labels, block), k=5)
    scaled = precision_at(features((told + 3) * 10.0 ** np.arange(-4, 4), labels, block), k=5)
    for name, score in scaled.items():
        assert score.precision == pytest.approx(plain[name].precision, abs=0.02)


def test_the_asking_patchs_own_block_does_not_count_where_few_lie_elsewhere():
    """29 alike in one block and three others elsewhere: of 20 asked for there are three."""
    block = np.array([0] * 29 + [1] * 3)
    labels = np.array([0] * 29 + [0, 1, 1])
    told = np.eye(3)[labels] + np.random.default_rng(0).normal(size=(32, 3)) * 0.1
    tree = precision_at(features(told, labels, block), k=20)["tree"]
    # 29 find a tree among three; the last one finds 20 trees of 20.
    assert tree.precision == pytest.approx((29 * 1 / 3 + 1) / 30)
    assert tree.neighbours == 3
    assert precision_at(features(told, labels, block), k=2)["tree"].neighbours == 2


def test_few_blocks_have_no_interval_and_few_neighbours_are_shown():
    block, labels = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    told = np.random.default_rng(0).normal(size=(4, 3))
    found = precision_at(features(told, labels, block), k=20)
    assert found["tree"].ci95 is None
    assert found["tree"].no_interval == "too few blocks: 2 of them, an interval needs 5"
    _, rows = retrieval_rows(Retrieval(split="test", k=20, seed=0, scores={"encoder": found}))
    assert rows[0][3] == f"{found['tree'].precision:.3f} of 2"


def test_a_constant_dimension_adds_nothing(places):
    """Not even the rounding of its mean, blown up."""
    labels, block, rng = places
    told = (np.eye(8)[labels] + rng.normal(size=(NUM_PLACES, 8))).astype(np.float32)
    constant = np.full((NUM_PLACES, 3), 7123.4567, np.float32)
    plain = precision_at(features(told, labels, block), k=5)
    assert precision_at(features(np.hstack([told, constant]), labels, block), k=5) == plain


def test_a_single_block_is_refused(places):
    labels, block, rng = places
    with pytest.raises(DatasetError, match="one block of ground"):
        precision_at(features(rng.normal(size=(NUM_PLACES, 3)), labels, block * 0))


def test_a_run_is_scored_beside_every_humble_extractor(reflectance_dataset, tmp_path):
    run = tiny_run(tmp_path / "run", reflectance_dataset)
    record = retrieval_record(run, reflectance_dataset, "train", k=5)
    assert record.scores.keys() == MAKERS.keys()
    assert record == retrieval_record(run, reflectance_dataset, "train", k=5)
    head, rows = retrieval_rows(record)
    assert len(head) == 3 + len(MAKERS)
    assert {len(row) for row in rows} == {len(head)}
    encoder = record.scores["encoder"]
    asked = {name: {e.num_queries for e in (s[name] for s in record.scores.values())}
             for name in encoder}  # fmt: skip
    assert all(len(numbers) == 1 for numbers in asked.values())
