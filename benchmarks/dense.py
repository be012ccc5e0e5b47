"""What a dense head on a run reaches beside a forest and a U-Net, and what pretraining is worth.

    python benchmarks/dense.py RUN FOLDER [--steps 300] [--squares 10 100 all] [--seeds 1] [--quick]

RUN was pretrained on a dataset that is still there. Heads are trained by ``bharateo finetune`` on
the labels of so many of the dataset's squares, on RUN (with a random forest and a U-Net beside it)
and on the same network untrained; FOLDER keeps all of them, and a benchmark that is run again goes
on. It prints the rows of ``dense.md``: scores on test ground, means over seeds, and how far the
head on RUN lies from each, with the interval of the first seed. With ``--quick`` the forest and the
U-Net are left out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bharateo
from bharateo.evaluation.comparison import shown
from bharateo.evaluation.finetune import METRICS
from bharateo.inference.dense import HEAD
from bharateo.models.mae import build_model
from bharateo.training.run import Run, save_run


def untrained(run: Run, folder: Path, seed: int) -> Run:
    """A run with the same network before its first step; what is fitted and not trained is kept."""
    if not (folder / "contract.json").exists():
        mean, std = run.model.normalise.mean.tolist(), run.model.normalise.std.tolist()
        torch.manual_seed(seed)
        fresh = build_model(run.model.config, mean, std, run.model.band_names)
        fresh.load_state_dict(dict(run.model.named_buffers()), strict=False)
        dataset = run.contract.dataset
        path = str((run.path / dataset.path).resolve())
        contract = run.contract.model_copy(
            update={"dataset": dataset.model_copy(update={"path": path})}
        )
        both = nn.ModuleDict({"model": fresh, "heads": run.heads})
        folder.mkdir(parents=True, exist_ok=True)
        save_run(folder, both.state_dict(), contract)
    return Run.open(folder)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", default="worldcover")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--squares", nargs="+", default=["10", "100", "all"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    run = Run.open(given.run)
    print("| squares | what | accuracy | macro-F1 | mean IoU |\n|---|---|---|---|---|")
    for squares in given.squares:
        scores, against = defaultdict(list), {}
        for seed in range(given.seeds):
            fresh = untrained(run, given.folder / f"untrained-{seed}", seed)
            made = {
                name: bharateo.finetune(
                    which, given.labels, given.folder / f"{name}-{squares}-{seed}",
                    steps=given.steps, squares=None if squares == "all" else int(squares),
                    quick=given.quick or name == "untrained", seed=seed,
                )
                for name, which in (("trained", run), ("untrained", fresh))
            }  # fmt: skip
            other = made["untrained"].scores[HEAD]
            every = {**made["trained"].scores, "dense head, encoder untrained": other}
            for name, each in every.items():
                scores[name].append([getattr(each, metric).mean for metric in METRICS])
            against = against or dict(made["trained"].against)
        for name, values in scores.items():
            row = [f"{value:.3f}" for value in np.mean(values, axis=0)]
            if name in against:
                row = [
                    f"{value} ({shown(diff.mean, diff.ci95, '+')})"
                    for value, diff in zip(
                        row, (getattr(against[name], metric) for metric in METRICS), strict=True
                    )
                ]
            print(f"| {squares} | {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
