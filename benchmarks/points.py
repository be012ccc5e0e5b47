"""Whether a score from a few points, told with its interval, is reached on other ground.

Draws points of every class, cross-validates a probe on them by location, fits it, and scores it on
ground elsewhere: points from the train split and the test split to score on (--ground splits), or a
fifth of all blocks, drawn anew each time, to score on and the others for points (--ground blocks).
An honest 95 % interval holds that score in about 95 of 100 draws. The same of what is chosen among
all kinds, their sums and --classifiers, beside what the best one's own score would have told.

    python benchmarks/points.py RUN [--points 5 20] [--draws 100] [--ground splits]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bharateo.chips.store import Dataset
from bharateo.evaluation.choice import CLASSIFIERS, choose
from bharateo.evaluation.cross_validation import cross_validate, fit_few, spatial_groups
from bharateo.evaluation.features import MAKERS
from bharateo.inference.encoder import CHIPS_AT_ONCE
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, patch_mode
from bharateo.training.data import cut, fixed_windows
from bharateo.training.run import Run

KINDS = ("encoder", "random_encoder", "band_statistics")
LEAST_PATCHES = 150
"""Of a class, for it to take part."""


@dataclass(frozen=True)
class Patches:
    """Labelled patches; ``places`` are rows and columns of pixels in the region."""

    features: dict[str, np.ndarray]
    labels: np.ndarray
    places: np.ndarray
    block: np.ndarray
    split: np.ndarray


def patches_of(run: Run, dataset: Dataset) -> Patches:
    """Every labelled patch of the dataset's evaluation windows."""
    chip_px, patch_px = run.contract.chip_px, run.contract.patch_px
    makers = {kind: MAKERS[kind](run, dataset, 1, "token") for kind in KINDS}
    windows = fixed_windows(list(range(dataset.num_chips)), dataset.size_px, chip_px)
    kept: dict[str, list[np.ndarray]] = {
        name: [] for name in (*KINDS, "labels", "places", "block", "split")
    }
    chips, grid = dataset.chips, chip_px // patch_px
    within = (np.stack(np.divmod(np.arange(grid**2), grid), 1) + 0.5) * patch_px
    for start in range(0, len(windows), CHIPS_AT_ONCE):
        some = windows[start : start + CHIPS_AT_ONCE]
        batch = cut(dataset, some, chip_px, patch_px)
        for kind, maker in makers.items():
            kept[kind].append(maker.features(batch.image, batch.valid).flatten(0, 1).numpy())
        kept["labels"].append(patch_mode(batch.class_counts.numpy()).reshape(-1))
        corner = [(chips.row[w.chip] + w.row, chips.col[w.chip] + w.col) for w in some]
        kept["places"].append((np.array(corner, float)[:, None] + within).reshape(-1, 2))
        of_chip = (chips.region + "/" + chips.block.astype(str)).to_numpy()[[w.chip for w in some]]
        kept["block"].append(np.repeat(of_chip, grid**2))
        kept["split"].append(np.repeat([chips.split[w.chip] for w in some], grid**2))
    joined = {name: np.concatenate(parts) for name, parts in kept.items()}
    common = np.flatnonzero(np.bincount(joined["labels"], minlength=256)[:IGNORE] >= LEAST_PATCHES)
    keep = np.isin(joined["labels"], common)
    labels = np.searchsorted(common, joined["labels"][keep]).astype(np.int64)
    print("classes:", ", ".join(f"{BHARATEO_CLASSES[c].name} ({int((labels == i).sum())})"
                                for i, c in enumerate(common)))  # fmt: skip
    return Patches({kind: joined[kind][keep] for kind in KINDS}, labels, joined["places"][keep],
                   joined["block"][keep], joined["split"][keep])  # fmt: skip


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Recall averaged over the classes that occur."""
    return float(np.mean([(predicted[true == cls] == cls).mean() for cls in np.unique(true)]))


def draw(
    patches: Patches,
    ground: str,
    num: int,
    radius: float,
    chip_px: int,
    rng: np.random.Generator,
    seed: int,
    classifiers: list[str],
) -> dict[str, tuple[float, float, float, float]]:
    """One person's points: of every kind of features the told score, its interval, the reached."""
    away, ours = patches.split == "test", patches.split == "train"
    if ground == "blocks":
        blocks = np.unique(patches.block)
        away = np.isin(patches.block, rng.choice(blocks, len(blocks) // 5, replace=False))
        ours = ~away
    classes = np.unique(patches.labels)
    while True:
        middle = patches.places[rng.integers(len(patches.places))]
        near = ours & (np.abs(patches.places - middle).max(1) < radius)
        pools = [np.flatnonzero(near & (patches.labels == cls)) for cls in classes]
        if min(map(len, pools)) >= num:
            break
    chosen = np.concatenate([rng.choice(pool, num, replace=False) for pool in pools])
    groups, _ = spatial_groups(patches.places[chosen], chip_px)
    labels = patches.labels[chosen]
    told = cross_validate({k: f[chosen] for k, f in patches.features.items()}, labels, groups, seed)
    found = {}
    for kind, features in patches.features.items():
        predicted = fit_few(features[chosen], labels).predict(features[away])
        reached = balanced_accuracy(patches.labels[away], predicted)
        found[kind] = (told[kind].value, told[kind].low, told[kind].high, reached)
    own = {kind: features[chosen] for kind, features in patches.features.items()}
    choice = choose(own, labels, groups, seed, classifiers=classifiers)
    fitted = choice.fit(own, labels)
    there = {kind: features[away] for kind, features in patches.features.items()}
    predicted = fitted(choice.chosen.columns(there)).argmax(1)
    reached = balanced_accuracy(patches.labels[away], predicted)
    score = choice.score
    found["chosen"] = (score.value, score.low, score.high, reached)
    found["chosen, its own score"] = (choice.chosen.value, score.low, score.high, reached)
    return found


def rows(
    patches: Patches,
    ground: str,
    num: int,
    radius: float,
    draws: int,
    chip_px: int,
    classifiers: list[str],
) -> None:
    """Print lines of the table for points of one density."""
    rng = np.random.default_rng(0)
    found = [
        draw(patches, ground, num, radius, chip_px, rng, seed, classifiers) for seed in range(draws)
    ]
    for kind in (*KINDS, "chosen", "chosen, its own score"):
        told, low, high, reached = np.array([each[kind] for each in found]).T
        inside = int(((low <= reached) & (reached <= high)).sum())
        where = "anywhere" if np.isinf(radius) else f"within {radius:.0f} px"
        print(
            f"| {num} | {where} | {kind} | {told.mean():.3f} | ± {(high - low).mean() / 2:.3f} | "
            f"{reached.mean():.3f} | {inside} of {draws} |",
            flush=True,
        )


def main() -> None:
    """Draw, score, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--points", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--radius", type=float, nargs="+", default=[np.inf, 800.0])
    parser.add_argument("--ground", choices=("splits", "blocks"), default="splits")
    parser.add_argument("--classifiers", nargs="+", default=[*CLASSIFIERS])
    options = parser.parse_args()
    run = Run.open(options.run)
    patches = patches_of(run, run.own_dataset())
    print("| points a class | where | features | told | interval | reached elsewhere | inside |")
    print("|---|---|---|---|---|---|---|")
    for num in options.points:
        for radius in options.radius:
            rows(patches, options.ground, num, radius, options.draws, run.contract.chip_px,
                 options.classifiers)  # fmt: skip


if __name__ == "__main__":
    main()
