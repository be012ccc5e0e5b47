"""Search, scored: of the patches most like a patch, how many are of its class?

Patches ask among those of the same split, and none of the asking patch's own block of ground
counts, so that what is found lies elsewhere. Where fewer lie elsewhere than are asked for, all of
them count. Features are standardised over all of them and compared by cosine, as ``search`` does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bharateo.chips.store import Dataset
from bharateo.errors import DatasetError
from bharateo.evaluation.features import MAKERS, Features, extract
from bharateo.evaluation.intervals import interval, resampled_blocks
from bharateo.evaluation.probes import standardisation
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.results import Precision, Retrieval
from bharateo.training.run import Run

MOST_QUERIES = 100
"""Patches of a class that ask."""

_QUERIES_AT_ONCE = 64


def precision_at(
    features: Features, k: int = 20, most_queries: int = MOST_QUERIES, seed: int = 0
) -> dict[str, Precision]:
    """Precision among the ``k`` nearest patches, by name of the asking patches' class.

    The same seed draws the same asking patches whatever the features are.

    Raises:
        DatasetError: there is one block of ground, so nothing lies elsewhere.
    """
    if len(np.unique(features.block)) < 2:
        raise DatasetError(
            "all labelled patches are of one block of ground, so none lies elsewhere: build the "
            "dataset with smaller data.plan.split.block_px, or score another one"
        )
    mean, std = standardisation(features.values)
    scaled = (features.values - mean) / std
    unit = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-6)
    _, block = np.unique(features.block, return_inverse=True)
    most = min(k, len(block))
    scores = {}
    for each in BHARATEO_CLASSES:
        right = features.labels == each.id
        drawn = np.random.default_rng((seed, each.id)).permutation(np.flatnonzero(right))
        asking = np.sort(drawn[:most_queries])
        if not len(asking):
            continue
        own_block = block[asking]
        elsewhere = own_block[:, None] != block
        hits = np.empty(len(asking))
        for start in range(0, len(asking), _QUERIES_AT_ONCE):
            some = slice(start, start + _QUERIES_AT_ONCE)
            similarity = np.where(elsewhere[some], unit[asking[some]] @ unit.T, -np.inf)
            nearest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
            counted = np.take_along_axis(elsewhere[some], nearest, 1)
            hits[some] = (right[nearest] & counted).sum(1) / counted.sum(1)
        chance = (elsewhere & right).sum(1) / elsewhere.sum(1)
        blocks = np.unique(own_block)
        sums = np.array([[hits[own_block == b].sum(), (own_block == b).sum()] for b in blocks])
        resampled = resampled_blocks(len(blocks), f"precision/{len(blocks)}") @ sums
        ci95, why_none = interval(hits.mean(), resampled[:, 0] / resampled[:, 1], len(blocks))
        scores[each.name] = Precision(
            precision=float(hits.mean()),
            ci95=ci95,
            chance=float(chance.mean()),
            num_queries=len(asking),
            num_blocks=len(blocks),
            neighbours=min(k, int(elsewhere.sum(1).min())),
            no_interval=why_none,
        )
    return scores


def retrieval_record(
    run: Run,
    dataset: Dataset,
    split: str,
    k: int,
    seed: int = 0,
    on_step: Callable[[float, float, str], None] = lambda *told: None,
) -> Retrieval:
    """Precision of the run's features and of every humble extractor.

    Raises:
        ContractError: the run must not be fed this dataset.
        DatasetError: the split has no labelled patches, or one block of ground.
    """
    run.check(dataset)
    config, scores = run.model.config, {}
    for number, (name, make) in enumerate(MAKERS.items()):
        on_step(number, len(MAKERS), name)
        extractor = make(run, dataset, seed, "token")
        features = extract(dataset, split, extractor, config.chip_px, config.patch_px, seed)
        scores[name] = precision_at(features["patch"], k, seed=seed)
    return Retrieval(split=split, k=k, seed=seed, scores=scores)


def retrieval_rows(record: Retrieval) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: a row a class, a column an extractor."""
    names = list(record.scores)

    def cell(score: Precision) -> str:
        bounds = score.ci95
        return (
            f"{score.precision:.3f}"
            + (f" ({bounds[0]:.3f}-{bounds[1]:.3f})" if bounds else "")
            + (f" of {score.neighbours}" if score.neighbours < record.k else "")
        )

    rows = [
        [name, f"{first.num_queries}", f"{first.chance:.3f}"]
        + [cell(record.scores[features][name]) for features in names]
        for name, first in record.scores[names[0]].items()
    ]
    return [name.replace("_", " ") for name in ("class", "queries", "chance", *names)], rows
