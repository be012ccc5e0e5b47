"""How often the intervals of a survey hold, and whether change is told from noise.

Surveys are drawn again and again on rasters whose truth is known: a map of six classes, one of a
rare class alone, and WorldCover's Delhi (where it is: BHARATEO_TEST_DATA, ../shared/data), which
stands for the truth while errors are planted into a map of it. The other two are made up. An honest
95 % interval holds the truth in 95 of 100 surveys.

    python benchmarks/survey.py [--surveys 2000] [--total 1000] [--tries 100]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

from bharateo.landcover import WORLDCOVER
from bharateo.progress import unseen
from bharateo.survey.change import measure_change
from bharateo.survey.estimators import Estimate, Sample, ratio, share
from bharateo.survey.ground import ClassMap, Zoning
from bharateo.survey.sample import SamplePlan

AT_ONCE = 250
"""Surveys side by side."""

DELHI = (77.10, 28.72)
"""The north-west corner of the window, of the Yamuna's banks and the town."""

FLIPS = 0.12
"""The share of cells in which a map is wrong, in the tries of change."""


@dataclass(frozen=True)
class Ground:
    """Every cell's true class, and what a map says of it: shares (cell cls) and the likeliest."""

    name: str
    classes: tuple[str, ...]
    truth: np.ndarray
    shares: np.ndarray

    @property
    def mapped(self) -> np.ndarray:
        """The classes of the map."""
        return self.shares.argmax(1)


def seen(
    truth: np.ndarray, parts: np.ndarray, clear: float, rng: np.random.Generator
) -> np.ndarray:
    """What a map makes of a truth: the probabilities of its classes, which are calibrated."""
    num = len(parts)
    signal = np.eye(num, dtype=np.float32)[truth] * clear
    signal += rng.normal(size=signal.shape).astype(np.float32)
    logits = clear * signal + np.log(parts).astype(np.float32)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def grounds(rng: np.random.Generator) -> Iterator[Ground]:
    """The three rasters; Delhi only where it is."""
    for name, parts, clear in (
        ("six classes", np.array([0.35, 0.3, 0.2, 0.1, 0.044, 0.006]), 2.6),
        ("a rare class", np.array([0.992, 0.008]), 2.8),
    ):
        truth = rng.choice(len(parts), 1_000_000, p=parts)
        names = tuple(f"class {number}" for number in range(1, len(parts) + 1))
        yield Ground(name, names, truth, seen(truth, parts, clear, rng))
    here = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("BHARATEO_TEST_DATA", here)) / "worldcover-mirror"
    tiles = sorted(root.glob("v200/2021/map/*N27E075*"))
    if not tiles:
        print(f"no Delhi: {root} is absent")
        return
    with rasterio.open(tiles[0]) as file:
        row, col = file.index(*DELHI)
        codes = file.read(1, window=Window(col, row, 1200, 1200)).ravel()
    present, truth = np.unique(codes[codes > 0], return_inverse=True)
    names = tuple(WORLDCOVER.describe(int(code)) for code in present)
    parts = np.bincount(truth) / truth.size
    yield Ground("WorldCover's Delhi", names, truth, seen(truth, parts, 2.6, rng))


def survey(ground: Ground, total: int, surveys: int, rng: np.random.Generator) -> None:
    """Draw surveys as ``bharateo sample --total`` does, and print how often intervals hold."""
    mapped, truth = ground.mapped, ground.truth
    num = len(ground.classes)
    cells = np.bincount(mapped, minlength=num)
    present = np.flatnonzero(cells)
    points, _ = SamplePlan(total=total).points(cells[present], cells[present] * 1.0, None)
    of_stratum = [np.flatnonzero(mapped == code) for code in present]
    stratum = np.repeat(np.arange(present.size), points)
    sample = Sample(stratum, cells[present] * 1.0, cells[present])
    found: dict[tuple[str, str], list[Estimate]] = {}
    for first in range(0, surveys, AT_ONCE):
        drawn = np.stack([
            np.concatenate([
                rng.choice(each, count, replace=False, shuffle=False)
                for each, count in zip(of_stratum, points, strict=True)
            ])
            for _ in range(min(AT_ONCE, surveys - first))
        ])  # fmt: skip
        answers, classes = truth[drawn], mapped[drawn]
        found.setdefault(("all", "overall"), []).append(share(sample, answers == classes))
        for code, name in enumerate(ground.classes):
            is_class, guess = answers == code, ground.shares[drawn, code].astype(float)
            own = present == code
            figures = {
                "area": share(sample, is_class),
                "helped": share(sample, is_class, guess, float(ground.shares[:, code].mean())),
            }
            if own.any():
                inside = sample.inside(own)
                figures["users"] = share(sample.within(own), is_class[:, inside])
                figures["producers"] = ratio(
                    sample, is_class & (classes == code), is_class, own, ~own
                )
            for figure, estimate in figures.items():
                found.setdefault((name, figure), []).append(estimate)

    def holds(name: str, figure: str, true: float) -> str:
        low, high = (
            np.concatenate([getattr(each, end) for each in found[name, figure]])
            for end in ("low", "high")
        )
        told = np.isfinite(low)
        held = ((low <= true + 1e-12) & (true - 1e-12 <= high))[told].mean()
        return f"{100 * held:.1f}"

    def width(name: str, figure: str) -> float:
        return float(np.mean([(each.high - each.low).mean() for each in found[name, figure]]))

    for code, name in enumerate(ground.classes):
        part = float((truth == code).mean())
        narrower = 1 - width(name, "helped") / width(name, "area")
        users = producers = "-"
        if (name, "users") in found:
            users = holds(name, "users", float((truth == code)[mapped == code].mean()))
            producers = holds(name, "producers", float((mapped == code)[truth == code].mean()))
        print(
            f"| {ground.name} | {name} | {100 * part:.2f} | {holds(name, 'area', part)} | "
            f"{holds(name, 'helped', part)} | {100 * narrower:.0f} | {users} | {producers} |",
            flush=True,
        )
    overall = holds("all", "overall", float((truth == mapped).mean()))
    print(f"| {ground.name} | overall accuracy | | {overall} | | | | |", flush=True)


def tries_of_change(tries: int, rng: np.random.Generator) -> None:
    """Maps of unchanged ground, and of ground of which 2 % has changed, told from a repeat."""
    shape, change = (480, 480), 0.02
    truth = rng.choice(4, (60, 60), p=[0.5, 0.35, 0.14, 0.01]).repeat(8, 0).repeat(8, 1)
    after = truth.copy()
    after[40:136, 40:88] = (truth[40:136, 40:88] + 2) % 4
    assert abs((after != truth).mean() - change) < 1e-9

    def noisy(ground: np.ndarray) -> np.ndarray:
        field = gaussian_filter(rng.normal(size=shape), 1.5)  # errors come in clumps
        wrong = field > np.quantile(field, 1 - FLIPS)
        return np.where(wrong, (ground + rng.integers(1, 4, shape)) % 4, ground)

    alarms = told = held = 0
    with tempfile.TemporaryDirectory() as folder:

        def written(name: str, classes: np.ndarray) -> ClassMap:
            path = Path(folder, f"{name}.tif")
            with rasterio.open(
                path, "w", driver="GTiff", crs="EPSG:32643", width=shape[1], height=shape[0],
                count=1, dtype="uint8", transform=Affine(10, 0, 4e5, 0, -10, 2e6),
            ) as file:  # fmt: skip
                file.write(classes.astype(np.uint8), 1)
            return ClassMap(path)

        for _ in range(tries):
            before, again = written("before", noisy(truth)), written("again", noisy(truth))
            zoning = Zoning.of(before.geobox, None, None)
            for ground in (truth, after):
                second = written("second", noisy(ground))
                record = measure_change(before, second, [again], None, zoning, unseen)
                (row,) = record.zones
                if ground is truth:
                    alarms += row.found
                elif row.hectares_changed is not None:
                    told += 1
                    low, high = row.hectares_changed.low, row.hectares_changed.high
                    held += low <= change * row.hectares <= high
    print(f"| unchanged | {tries} | {alarms} | |")
    print(f"| {100 * change:.0f} % changed | {tries} | {told} | {held} |")


def main() -> None:
    """Draw, estimate, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--surveys", type=int, default=2000)
    parser.add_argument("--total", type=int, default=1000)
    parser.add_argument("--tries", type=int, default=100)
    options = parser.parse_args()
    rng = np.random.default_rng(20)
    print(
        "| ground | class | % of it | area holds | model-assisted holds | narrower by % | user's "
        "holds | producer's holds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for ground in grounds(rng):
        survey(ground, options.total, options.surveys, rng)
    print("\n| ground | tries | change found | truth in the interval |")
    print("|---|---|---|---|")
    tries_of_change(options.tries, rng)


if __name__ == "__main__":
    main()
