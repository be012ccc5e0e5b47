import numpy as np
import pytest

from bharateo.evaluation.ablation import explained, rows
from bharateo.evaluation.comparison import compared
from bharateo.results import AblatedDataset, Ablation, AblationCell, AblationProbe


def confusions(rng, num_seeds, num_blocks, right, between_seeds=0.0, between_blocks=0.0):
    """Counts of two classes, 200 patches a block, with so much right on average."""
    shares = right + between_seeds * rng.standard_normal((num_seeds, 1))
    shares = shares + between_blocks * rng.standard_normal((1, num_blocks))
    hits = rng.binomial(100, np.clip(shares, 0, 1)[..., None], (num_seeds, num_blocks, 2))
    counts = np.zeros((num_seeds, num_blocks, 8, 8), np.int64)
    counts[..., 0, 0], counts[..., 1, 1] = hits[..., 0], hits[..., 1]
    counts[..., 0, 1], counts[..., 1, 0] = 100 - hits[..., 0], 100 - hits[..., 1]
    return counts


def ablation(found, seeds):
    """A table of these scores, the first being the base."""
    cells = [
        AblationCell(name=name, settings={}, runs=[], config="", scores=scores)
        for name, scores in found.items()
    ]
    return Ablation(
        code_version="0", dataset=AblatedDataset(name="d", fingerprint="f"),
        base=next(iter(found)),
        factors=[], seeds=seeds, cells=cells,
        probe=AblationProbe(num_train=1, num_test=1, num_blocks=4),
    )  # fmt: skip


def covers(number, **spread):
    rng = np.random.default_rng(number)
    found = compared({"base": confusions(rng, 3, 30, 0.7, **spread)}, "base", number)
    low, high = found["base"].accuracy.ci95
    return low <= 0.7 <= high


@pytest.mark.parametrize("spread", [{"between_blocks": 0.1}, {"between_seeds": 0.05}])
@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say(spread):
    """Also of three seeds, where resampling the seeds covered 0.70 and leaving them out 0.3."""
    hits = np.mean([covers(number, **spread) for number in range(100)])
    assert hits >= 0.90


def test_an_interval_is_wider_the_more_seeds_differ():
    rng = np.random.default_rng(0)
    alike = compared({"a": confusions(rng, 3, 20, 0.7)}, "a")["a"].macro_f1.ci95
    apart = compared({"a": confusions(rng, 3, 20, 0.7, 0.1)}, "a")["a"].macro_f1.ci95
    assert np.ptp(apart) > 3 * np.ptp(alike)


def test_the_part_of_few_seeds_is_students_t():
    """Two seeds of ground where all blocks are alike: only the seeds differ."""
    counts = np.zeros((2, 20, 8, 8), np.int64)
    counts[0, :, 0] = [6, 4, 0, 0, 0, 0, 0, 0]
    counts[1, :, 0] = [8, 2, 0, 0, 0, 0, 0, 0]
    low, high = compared({"a": counts}, "a")["a"].accuracy.ci95
    reach = 12.706 * 0.1  # quantile 0.975 of t with one degree, times the error of the mean
    assert (low, high) == pytest.approx((0.7 - reach, 0.7 + reach), rel=1e-3)


def test_pairs_of_seeds_and_blocks_are_compared():
    """What makes a block hard for both does not blur the difference."""
    rng = np.random.default_rng(0)
    base = confusions(rng, 3, 30, 0.6, 0.05, 0.15)
    better = base.copy()
    better[..., 0, 0] += 5
    better[..., 0, 1] -= 5
    found = compared({"base": base, "better": better}, "base")["better"].accuracy
    assert found.against_base == pytest.approx(5 / 200)
    assert found.against_base_ci95 == pytest.approx([5 / 200] * 2)
    assert np.ptp(found.ci95) > 0.05


def test_one_seed_has_an_interval_over_ground_alone_and_says_so():
    found = compared({"a": confusions(np.random.default_rng(0), 1, 20, 0.7, 0, 0.1)}, "a")["a"]
    assert found.accuracy.ci95[0] < found.accuracy.mean < found.accuracy.ci95[1]
    record = ablation({"a": found}, [1])
    assert "the intervals cover the ground alone" in explained(record)


def test_a_class_that_does_not_occur_has_no_part_in_the_mean():
    counts = confusions(np.random.default_rng(0), 1, 5, 1.0)
    found = compared({"a": counts}, "a")["a"]
    assert found.macro_f1.mean == found.balanced_accuracy.mean == 1.0


def test_too_few_blocks_have_no_interval_and_the_table_says_why():
    rng = np.random.default_rng(0)
    cells = {name: confusions(rng, 3, 4, 0.7) for name in ("base", "other")}
    found = compared(cells, "base")
    for scores in found.values():
        for score in (scores.accuracy, scores.balanced_accuracy, scores.macro_f1):
            assert score.ci95 is score.against_base_ci95 is None
            assert "too few blocks: 4" in score.no_interval
    record = ablation(found, [1, 2, 3])
    assert "no interval: too few blocks: 4" in explained(record)
    assert "[" not in "".join("".join(row) for row in rows(record))


def test_a_class_of_one_block_leaves_accuracy_its_interval_alone():
    counts = confusions(np.random.default_rng(0), 3, 20, 0.7, 0, 0.1)
    counts[:, 3, 5, 5] = 3
    found = compared({"a": counts}, "a")["a"]
    assert found.accuracy.ci95 and found.accuracy.no_interval is None
    assert found.macro_f1.ci95 is None
    assert found.macro_f1.no_interval == "water lies in one block only"
