"""This tree against another one, in turns: build, loader, training, embed.

    git worktree add ../before REVISION
    python benchmarks/against.py ../before --write

A turn is a process of its own that runs one tree's code on the same files; the order changes every
round. It does its work once small and once whole, and the difference counts, without starting up.
Compared is processor time, which other work on the machine disturbs least; the clock's stands
beside it. A ratio above 1 says that this tree is the faster.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".md")

TURN = """
import contextlib, io, json, runpy, shutil, sys, time
from pathlib import Path
import torch
folder, out = Path(sys.argv[1]), Path(sys.argv[2])

def bharateo(*words):
    shutil.rmtree(out, ignore_errors=True)
    sys.argv = ["bharateo", *map(str, words)]
    try:
        runpy.run_module("bharateo", run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
{work}
times = []
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(sys.stderr):
    for amount in {amounts}:
        before = time.process_time(), time.perf_counter()
        work(amount)
        times.append((time.process_time() - before[0], time.perf_counter() - before[1]))
print(json.dumps([whole - small for small, whole in zip(*times)]))
"""

TURNS = {
    "build, 8 times WorldCover of 5,120 x 5,120 px": (
        """
def work(times):
    for _ in range(times):
        bharateo("build", "configs/v0.yaml", "--roi", "delhi=77.2,28.6,5120",
                 "--worldcover-root", folder / "mirror", "--output", out)
""",
        (1, 9),
    ),
    "loader, 1,000 batches of 64, ten bands": (
        """
from bharateo.chips.store import Dataset
from bharateo.config import Config, TrainingConfig
from bharateo.training.loader import Loader
dataset = Dataset.open(folder / "noise")
loader = Loader(dataset, Config(training=TrainingConfig(batch_size=64)),
                len(dataset.indices("train")), torch.device("cpu"))
def work(steps):
    for _ in loader.steps(0, steps):
        pass
""",
        (10, 1010),
    ),
    "training, 60 steps of 64, ten bands": (
        """
def work(epochs):
    bharateo("pretrain", "configs/sample.yaml", "--dataset", folder / "dataset", "--output", out,
             "--epochs", epochs, "--set", "training.chips_per_epoch=640",
             "--set", "training.warmup_epochs=0")
""",
        (1, 7),
    ),
    "embed, 2,048 x 2,048 px": (
        """
def work(side):
    out.parent.joinpath("vectors.tif").unlink(missing_ok=True)
    bharateo("embed", folder / "run", folder / f"{side}.tif",
             "--output", out.parent / "vectors.tif", "--allow", "statistics")
""",
        (128, 2048),
    ),
}


def main() -> None:
    """Print the table, and keep it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the other tree: a folder with src/bharateo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="turns whose names begin with these words")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {TABLE.name}")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name))
        for what, (work, amounts) in TURNS.items():
            if not options.only or what.startswith(tuple(options.only)):
                rows.append(row(what, work, amounts, options, Path(name)))
                print(rows[-1], flush=True)
    if options.write:
        TABLE.write_text(
            f"# Against {revision(options.other)}, in turns\n\n{datetime.date.today()}, "
            f"{os.cpu_count()} cores ({platform.machine()}), {options.rounds} rounds in turns; "
            "seconds of processor time (of the clock), medians; ratio: the other tree's processor "
            "time over this one's, median and range of the rounds.\n\n"
            "| work | before | now | ratio |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )


def row(
    what: str, work: str, amounts: tuple[int, int], options: argparse.Namespace, folder: Path
) -> str:
    """One line of the table: both trees in turns, the order changing."""
    found: dict[Path, list[list[float]]] = {options.other.resolve(): [], HERE: []}
    program = TURN.replace("{work}", work).replace("{amounts}", repr(amounts))
    for number in range(options.rounds):
        for tree in list(found)[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                done = subprocess.run(
                    [sys.executable, "-c", program, folder, Path(out) / "out"],
                    cwd=tree, env={**os.environ, "PYTHONPATH": str(tree / "src")}, check=True,
                    stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
            found[tree].append(json.loads(done.stdout.splitlines()[-1]))
    before, now = found.values()
    ratios = [one[0] / two[0] for one, two in zip(before, now, strict=True)]
    texts = [
        f"{statistics.median(cpu for cpu, _ in times):.2f} "
        f"({statistics.median(clock for _, clock in times):.2f})"
        for times in (before, now)
    ]
    spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    return f"| {what} | {' | '.join(texts)} | {spread} |"


def revision(tree: Path) -> str:
    """The commit that a tree is at."""
    call = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def make_files(folder: Path) -> None:
    """A WorldCover tile, chips of noise, the packaged scene's dataset, a run on it, two rasters."""
    import numpy as np
    import rasterio

    import bharateo
    from generated import generated_dataset

    sys.path.insert(0, str(HERE / "tests"))
    from worldcover_tiles import patchy_codes, write_tile

    # Delhi: 16,800 pixels below the upper edge, 26,400 from the left one.
    write_tile(folder / "mirror", "N27E075", {(14_000, 24_000): patchy_codes(6144, 6144)})
    generated_dataset(folder / "noise", 700)
    few = ["training.epochs=1", "training.chips_per_epoch=256", "training.warmup_epochs=0"]
    config = bharateo.load_config(HERE / "configs" / "sample.yaml", few)
    dataset = bharateo.build(config, folder / "dataset")
    bharateo.pretrain(config, dataset, folder / "run")
    scene, _ = bharateo.write_sample(folder / "sample")
    with rasterio.open(scene) as file:
        pixels, profile, names = file.read(), file.profile, file.descriptions
        scales, offsets = file.scales, file.offsets
    for side in (128, 2048):
        profile.update(height=side, width=side, driver="GTiff", blockxsize=128, blockysize=128)
        with rasterio.open(folder / f"{side}.tif", "w", **profile) as file:
            file.descriptions, file.scales, file.offsets = names, scales, offsets
            rows, cols = (np.arange(side) % size for size in pixels.shape[1:])
            file.write(pixels[:, rows][:, :, cols])


if __name__ == "__main__":
    main()
