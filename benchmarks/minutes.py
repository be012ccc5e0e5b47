"""Minutes to a given quality: the recipe of ``configs/geotiff-chips.yaml`` and the one before it.

The recipe before is the same network with a linear embedding of patches, whole squares as chips,
three quarters hidden, no jitter, less decay, and no question to the encoder's tokens. Each is
trained from the start for ever more steps, with a schedule of its own, in turns, and its frozen
tokens are probed as ``ablate`` does it. Compared is processor time of the training on one thread,
which other work disturbs least.

    python benchmarks/minutes.py DATASET OUTPUT [--write]

Trainings and probes that OUTPUT holds already are used again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bharateo.chips.store import Dataset
from bharateo.config import Config, load_config
from bharateo.evaluation.ablation import ProbeRecord, kept, probe
from bharateo.files import write_json, write_text
from bharateo.training.loop import pretrain
from bharateo.training.run import Run

TABLE = Path(__file__).with_suffix(".md")
PRESET = Path(__file__).parents[1] / "configs" / "geotiff-chips.yaml"
SMALL = ("model.width=128", "model.num_heads=4", "machine.threads=1")
BEFORE = (
    "model.embedding=linear",
    "model.chip_px=128",
    "model.mask_ratio=0.75",
    "heads.landcover.options.encoder=0",
    "training.weight_decay=0.05",
    "training.jitter=0",
)
RECIPES = {"before": (*SMALL, *BEFORE), "now": SMALL}
EPOCHS = (5, 10, 20, 40)


def trained(config: Config, dataset: Dataset, folder: Path) -> float:
    """Processor seconds of a training, which is done where it is not there yet."""
    taken = folder.parent / f"{folder.name}.json"
    if not taken.exists():
        before = time.process_time()
        pretrain(dataset, config, folder)
        write_json(taken, {"seconds": time.process_time() - before})
    return float(json.loads(taken.read_text())["seconds"])


def rows(dataset: Dataset, output: Path) -> Iterable[list[str]]:
    """Recipe, steps, minutes and scores, the recipes in turns."""
    output.mkdir(parents=True, exist_ok=True)
    for epochs in EPOCHS:
        for name, settings in RECIPES.items():
            config = load_config(PRESET, settings)
            config = replace(
                config,
                training=replace(
                    config.training, epochs=epochs, warmup_epochs=min(3.0, epochs / 8)
                ),
            )
            folder = output / f"{name}-{epochs}"
            seconds = trained(config, dataset, folder)
            record: ProbeRecord = kept(
                output / f"{folder.name}-probe.json", partial(probe, Run.open(folder))
            )
            cells = np.sum([*record.confusion.values()], axis=0)
            loss = sum(record.log_loss.values()) / record.num_test
            steps = epochs * -(-len(dataset.indices("train")) // config.training.batch_size)
            yield [
                name, str(steps), f"{seconds / 60:.1f}", f"{record.val_log_loss or 0:.3f}",
                f"{loss:.3f}", f"{np.trace(cells) / cells.sum():.3f}",
            ]  # fmt: skip


def main() -> None:
    """Train, probe, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    args = parser.parse_args()
    head = ["recipe", "steps", "core-minutes", "val log-loss", "test log-loss", "accuracy"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    print(*lines, sep="\n")
    for row in rows(Dataset.open(args.dataset), args.output):
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    if args.write:
        title = (
            f"# Minutes to a given quality\n\n{datetime.date.today()}, one seed, one thread.\n\n"
        )
        write_text(TABLE, title + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
