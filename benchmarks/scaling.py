"""Training speed by the number of ranks, under plain torchrun: DDP and FSDP2.

    python benchmarks/scaling.py --write                 # 1 and 2 ranks on this machine's cores
    python benchmarks/scaling.py --ranks 1 2 4 8 --size base --batch 1024     # on GPUs

Strong scaling: the global batch is the same on all, so that the mathematics is. Ranks share the
machine's cores evenly (``machine.threads``); the first rank's clock counts, over the same steps.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bharateo.chips.store import Dataset
from bharateo.config import SIZES, parse_config
from bharateo.training.engine import open_engine
from bharateo.training.loop import Trainer
from bharateo.training.planning import wait_for
from generated import generated_dataset

TABLE = Path(__file__).with_suffix(".md")
WARM_UP = 3


def work(folder: Path) -> None:
    """One rank: the job's steps; the first rank prints chips a second and the share of waiting."""
    job = json.loads((folder / "job.json").read_text())
    config = parse_config(job["config"])
    with open_engine(config) as engine:
        trainer = Trainer(Dataset.open(folder / "dataset"), config, folder / "run", engine)
        began = waited = 0.0
        for step, raw in trainer.loader.steps(0, WARM_UP + job["steps"]):
            if step == WARM_UP:
                wait_for(engine.device)
                began, waited = time.perf_counter(), trainer.loader.wait_s
            trainer.step(step, raw)
        wait_for(engine.device)
        seconds = time.perf_counter() - began
        if engine.first:
            chips = job["steps"] * config.training.batch_size
            print(f"RESULT {chips / seconds} {(trainer.loader.wait_s - waited) / seconds}")


def measure(
    folder: Path, num_ranks: int, parallel: str, options: argparse.Namespace
) -> list[float]:
    """Chips a second of so many ranks, and the share of the time waiting for data."""
    training = {"batch_size": options.batch, "optimiser": options.optimiser, "epochs": 1000}
    job = {
        "steps": options.steps,
        "config": {
            "model": {"size": options.size},
            "training": training,
            "machine": {"parallel": parallel},
        },
    }
    (folder / "job.json").write_text(json.dumps(job))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [
        "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks),
        "--master-addr", "127.0.0.1", "--master-port", port,
    ]  # fmt: skip
    command = [*(launcher if num_ranks > 1 else []), __file__, "--work", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if num_ranks > 1 else None
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, env=environment
    )
    line = next(each for each in done.stdout.splitlines() if each.startswith("RESULT"))
    return [float(number) for number in line.split()[1:]]


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--optimiser", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"keep the table in {TABLE.name}")
    options = parser.parse_args()
    ways = [(1, "ddp")] if 1 in options.ranks else []
    ways += [(n, way) for n in options.ranks if n > 1 for way in ("ddp", "fsdp")]
    best: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generated_dataset(folder / "dataset", 4 * options.batch)
        for _ in range(options.rounds):
            for way in ways:
                found = measure(folder, *way, options)
                best[way] = max(best.get(way, [0.0, 0.0]), found)
    lines = [
        (
            f"{datetime.date.today()}, {platform.machine()}, torch {torch.__version__}, "
            f"{torch.cuda.device_count()} GPUs, {os.cpu_count()} cores; `{options.size}`, "
            f"global batch {options.batch}, {options.optimiser}; best of {options.rounds} "
            "rounds in turns."
        ),
        "",
        "| ranks | way | chips/s | of one rank | waiting for data |",
        "|---|---|---|---|---|",
    ]
    one = best.get((1, "ddp"), [float("nan")])[0]
    for (num_ranks, parallel), (chips_per_s, waiting) in best.items():
        way = parallel if num_ranks > 1 else "alone"
        lines.append(
            f"| {num_ranks} | {way} | {chips_per_s:,.0f} | {chips_per_s / one:.2f} "
            f"| {waiting:.1%} |"
        )
    print("\n".join(lines))
    if options.write:
        TABLE.write_text("# Ranks\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
