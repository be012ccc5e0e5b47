"""Muon's steps against PyTorch's, in turns in one process, on the matrices of transformer blocks.

Both do the same mathematics. PyTorch's iterates in bf16, one matrix after the other; ours in the
precision the processor is fast in, matrices of one shape together.

    OMP_NUM_THREADS=1 python benchmarks/muon.py --write

Times are medians over rounds in which the two take turns, so that drift of the machine hits both.
One thread, because several wait for each other as soon as the machine has anything else to do.
`--write` keeps the table.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from bharateo.memory import keep_freed_memory
from bharateo.training.optimisers import Muon, fast_dtype

MODELS = {  # (width, blocks) of encoder and decoder, rounds
    "nano": (((128, 4), (128, 2)), 11),
    "tiny": (((192, 12), (192, 2)), 5),
    "small": (((384, 12), (256, 4)), 1),
}
TABLE = Path(__file__).with_suffix(".md")


def matrices(halves: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """Random weights and gradients: queries, keys and values; output; two layers of MLP."""
    torch.manual_seed(0)
    weights = []
    for width, depth in halves:
        shapes = [(3, 1), (1, 1), (4, 1), (1, 4)] * depth
        weights += [torch.randn(rows * width, cols * width) for rows, cols in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return weights


def in_turns(first: Optimizer, second: Optimizer, rounds: int) -> list[float]:
    """Median milliseconds a step of each, taking turns."""
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for each, optimiser in zip(times, (first, second), strict=True):
            began = time.perf_counter()
            optimiser.step()
            each.append((time.perf_counter() - began) * 1e3)
    return [statistics.median(each) for each in times]


def main() -> None:
    """Measure every model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"keep the table in {TABLE.name}")
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for name, (halves, rounds) in MODELS.items():
        ours = Muon(matrices(halves))
        theirs = torch.optim.Muon(matrices(halves), adjust_lr_fn="match_rms_adamw")
        mine, other = in_turns(ours, theirs, rounds)
        sizes = " + ".join(f"{width} x {depth}" for width, depth in halves)
        rows.append(f"| {name} | {sizes} | {mine:.1f} | {other:.1f} | {other / mine:.2f} |")
        print(rows[-1], flush=True)
    dtype = str(fast_dtype(torch.device("cpu"))).removeprefix("torch.")
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}, {dtype} for ours"
    )
    lines = [
        machine,
        "",
        "| model | width x blocks | ours, ms a step | torch.optim.Muon, ms a step | ratio |",
        "|---|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if options.write:
        TABLE.write_text("# Muon's steps, in turns\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
