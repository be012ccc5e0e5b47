"""One checkpoint on ever fewer bands, beside a specialist for each set of them.

Trains a configuration with ``model.band_sets`` once (for every seed), and for each of its sets, and
for all bands, a specialist: the same configuration without sets, trained on these bands alone, as
long. The specialist of all bands is also asked of every set with the mean in place of the bands it
lacks, which is what one can do without sets. All features are probed as ``ablate`` does it: a
linear probe of the patches, on the test ground; beside them the humble bar on the same bands.

    python benchmarks/band_ladder.py CONFIG DATASET OUTPUT [--seeds 3] [--set KEY=VALUE]

Trainings and probes that OUTPUT holds already are used again; the table is OUTPUT/ladder.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bharateo.chips.store import Dataset
from bharateo.config import Config, load_config
from bharateo.evaluation.ablation import ProbeRecord, humble_bar, kept, probe
from bharateo.evaluation.comparison import ResampledScores, shown
from bharateo.evaluation.features import Extractor, encoder
from bharateo.evaluation.intervals import resampled_blocks
from bharateo.evaluation.probe_table import features_name
from bharateo.files import write_text
from bharateo.landcover import NUM_CLASSES
from bharateo.sensor import named_bands
from bharateo.training.loop import pretrain
from bharateo.training.run import Run

ALL = "all bands"
COLUMNS = ("one checkpoint", "specialist", "absent bands at their mean", "humble bar")
METRICS = ("macro_f1", "accuracy")


def mean_filled(whole: Run, bands: tuple[str, ...]) -> Extractor:
    """The features of a run of all bands, from images of some: the others are at their mean."""
    own, places = encoder(whole), [whole.sensor.band_names.index(band) for band in bands]
    mean = torch.tensor(whole.contract.statistics.mean)[:, None, None]

    def features(image: Tensor, valid: Tensor) -> Tensor:
        filled = mean.to(image).expand(len(image), -1, *image.shape[2:]).clone()
        filled[:, places] = image
        return own.features(filled, valid)

    return Extractor("mean_filled", features)


def ladder(
    config: Config, dataset: Dataset, output: Path, seeds: int, say: Callable[[str], None] = print
) -> str:
    """Train, probe, and the table as Markdown."""
    sets = {ALL: dataset.sensor.band_names} | {
        name: named_bands(each)
        for name, each in sorted(config.model.band_sets.items(), key=lambda each: -len(each[1]))
    }
    alone = replace(config, model=replace(config.model, band_sets={}))
    found: dict[tuple[str, str], list[ProbeRecord]] = {}
    for seed in range(config.training.seed, config.training.seed + seeds):

        def trained(what: str, which: Config, seed: int = seed) -> Run:
            folder = output / what / f"seed-{seed}"
            say(f"{folder.relative_to(output)}")
            return pretrain(
                dataset, replace(which, training=replace(which.training, seed=seed)), folder
            )

        one, whole = trained(COLUMNS[0], config), trained(ALL, alone)
        for name, bands in sets.items():
            chosen = replace(alone.training, bands=() if name == ALL else bands)
            specialist = trained(name, replace(alone, training=chosen))
            asked = one if name == ALL else one.of_set(name)
            # Probes of a specialist's own dataset, which is that of its bands alone.
            makers: dict[str, Callable[[], ProbeRecord]] = {
                "one checkpoint": partial(probe, asked),
                "specialist": partial(probe, specialist),
                "absent bands at their mean": partial(probe, asked, mean_filled(whole, bands)),
                "humble bar": partial(humble_bar, specialist),
            }
            for column, make in makers.items():
                if column == "humble bar" and (name, column) in found:
                    continue  # nothing is trained for it
                if column == "absent bands at their mean" and name == ALL:
                    continue
                file = output / "probes" / f"{name}, {column}, seed {seed}.json"
                found.setdefault((name, column), []).append(kept(file, make))
    return table(sets, found)


def table(sets: dict[str, tuple[str, ...]], found: dict[tuple[str, str], list[ProbeRecord]]) -> str:
    """The ladder, a row a set of bands: scores, and what one checkpoint gains over the others."""
    every = [each for some in found.values() for each in some]
    blocks = sorted({block for each in every for block in each.confusion})
    times = resampled_blocks(len(blocks), 0)
    nothing = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)

    def scores(some: list[ProbeRecord]) -> ResampledScores:
        cells = [[each.confusion.get(block, nothing) for block in blocks] for each in some]
        return ResampledScores.of(np.array(cells), times)

    own = {key: scores(some) for key, some in found.items()}
    reasons: dict[str, None] = {}

    def cell(metric: str, name: str, column: str, rival: str | None = None) -> str:
        """A score, or what the first column gains over a rival."""
        if (name, column) not in own or (name, rival or column) not in own:
            return "the specialist"
        of = own[name, column]
        score = (of.minus(own[name, rival]) if rival else of).mean(metric)
        if score.no_interval:
            reasons[score.no_interval] = None
        return shown(score.mean, score.ci95, "+" if rival else "")

    first, tables = found[ALL, COLUMNS[0]], []
    for metric in METRICS:
        lines = [["bands", *COLUMNS, *(f"against {column}" for column in COLUMNS[1:])]]
        for name, bands in sets.items():
            line = [cell(metric, name, column) for column in COLUMNS]
            line[-1] += f" ({features_name(found[name, COLUMNS[-1]][0].features)})"
            gains = [cell(metric, name, COLUMNS[0], rival) for rival in COLUMNS[1:]]
            lines.append([f"{name} ({len(bands)})", *line, *gains])
        head, *rows = ("| " + " | ".join(line) + " |" for line in lines)
        tables += ["", f"{metric}:", "", head, "|" + "---|" * len(lines[0]), *rows]
    said = (
        f"A linear probe on {first[0].num_test:,} patches in {len(blocks)} blocks of test ground; "
        f"seeds: {len(first)}; 95 % intervals over ground and seeds, differences are paired."
    )
    if reasons:
        said += f" Where there is no interval: {'; '.join(reasons)}."
    return "\n".join([said, *tables, ""])


def main() -> None:
    """Train, probe, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    options = parser.parse_args()
    config = load_config(options.config, options.settings)
    if not config.model.band_sets:
        parser.error(
            "the configuration has no model.band_sets: add --set model.band_sets.rgb=[rgb]"
        )
    written = ladder(config, Dataset.open(options.dataset), options.output, options.seeds)
    write_text(options.output / "ladder.md", written)
    print(written)


if __name__ == "__main__":
    main()
