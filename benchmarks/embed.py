"""Speed, memory and share of the model when a raster is embedded, each in a process of its own.

The raster: 930 x 947 px of ten bands, and 20,000 x 20,000 px made by repeating it (a tiled, zstd
compressed GeoTIFF in a temporary folder). The run: ``configs/sample.yaml`` (nano) on the packaged
sample, trained for four steps, since speed does not depend on what weights hold (it is another
season and level, which the contract notices: ``allow``). Times are of the whole verb with a COG at
the end, without loading PyTorch; the model's are those in the encoder.

Run: ``python benchmarks/embed.py > benchmarks/embed.md`` (ten minutes; needs 7 GB of disk).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

import bharateo
from bharateo.config import load_config
from bharateo.display import Display

DATA = Path(os.environ.get("BHARATEO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
RASTER = DATA / "s2-multiband" / "aberystwyth_20210527_10band.tif"
CONFIG = Path(__file__).parents[1] / "configs" / "sample.yaml"
SIDE_PX, BLOCK_PX = 20_000, 512

CHILD = """
import json, sys, time
from pathlib import Path
import bharateo
from bharateo.display import Display
from bharateo.inference.encoder import FrozenEncoder
from bharateo.training.run import Run
from bharateo.reading import Reading

run, location, output, precision = sys.argv[1:]
in_model, features = [0.0], FrozenEncoder.features

def timed(self, image, valid):
    started = time.perf_counter()
    answer = features(self, image, valid)
    in_model[0] += time.perf_counter() - started
    return answer

FrozenEncoder.features = timed
opened, started, busy = Run.open(run), time.perf_counter(), time.process_time()
reading = Reading(scale=0.001, offset=0.0, allow=frozenset({"statistics"}))
bharateo.embed(opened, location, output, precision=precision, reading=reading,
               display=Display(quiet=True))
seconds = time.perf_counter() - started
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's memory too
peak = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"seconds": seconds, "busy": time.process_time() - busy, "model": in_model[0],
                  "peak_mb": peak * 1024 / 1e6}))
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=SIDE_PX, help="pixels of the large raster")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    options = parser.parse_args()
    if not RASTER.exists():
        sys.exit(f"{RASTER} is not there: set BHARATEO_TEST_DATA")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, large = trained(folder), folder / "large.tif"
        repeat(RASTER, large, options.side)
        rows = [measured(run, raster, precision, folder)
                for raster in (RASTER, large) for precision in options.precisions]  # fmt: skip
    print(report(rows))


def trained(folder: Path) -> Path:
    """A run of ten bands."""
    few = ["training.epochs=1", "training.chips_per_epoch=256", "training.warmup_epochs=0"]
    config, display = load_config(CONFIG, few), Display(quiet=True)
    dataset = bharateo.build(config, folder / "dataset", display)
    bharateo.pretrain(config, dataset, folder / "run", display)
    return folder / "run"


def repeat(small: Path, large: Path, side_px: int) -> None:
    """A square raster of copies of a small one, side by side."""
    with rasterio.open(small) as file:
        pixels, profile, names = file.read(), file.profile, file.descriptions
    profile.update(height=side_px, width=side_px, tiled=True, blockxsize=BLOCK_PX,
                   blockysize=BLOCK_PX, compress="zstd", zstd_level=1, bigtiff="IF_SAFER",
                   num_threads="ALL_CPUS")  # fmt: skip
    cols = np.arange(side_px) % pixels.shape[2]
    with rasterio.Env(GDAL_CACHEMAX=512 << 20), rasterio.open(large, "w", **profile) as file:
        file.descriptions = names
        for top in range(0, side_px, BLOCK_PX):
            rows = np.arange(top, min(top + BLOCK_PX, side_px)) % pixels.shape[1]
            window = Window(0, top, side_px, len(rows))
            file.write(pixels[:, rows][:, :, cols], window=window)


def measured(run: Path, raster: Path, precision: str, folder: Path) -> str:
    """A row of the table."""
    output = folder / f"{raster.stem}-{precision}.tif"
    call = [sys.executable, "-c", CHILD, str(run), str(raster), str(output), precision]
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    with rasterio.open(raster) as file:
        height, width, area_km2 = *file.shape, file.width * file.height * file.res[0] ** 2 / 1e6
    return (
        f"| {height:,} x {width:,} | {precision} | {found['seconds']:,.1f} | "
        f"{area_km2 / found['seconds']:,.0f} | {found['busy']:,.1f} | "
        f"{found['model'] / found['seconds']:.0%} | "
        f"{found['peak_mb']:,.0f} | {output.stat().st_size / 1e6:,.1f} |"
    )


def report(rows: list[str]) -> str:
    """The table as markdown."""
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    conditions = (
        f"{datetime.date.today()}, {os.cpu_count()} cores ({platform.machine()}), {threads} "
        "threads, ten bands at 10 m, nano model (width 128, depth 4), windows at half a chip, "
        "float16 COG of 128 bands.\n"
    )
    head = [
        (
            "| raster, px | precision | s | km²/s | core-seconds | in the model "
            "| peak memory, MB | COG, MB |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(["# Embedding a raster\n", conditions, *head, *rows])


if __name__ == "__main__":
    main()
