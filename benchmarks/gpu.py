"""Training speed on whatever machine this is, GPU or not, as a Markdown table.

Needs torch 2.8 or newer, numpy, pyarrow, jaxtyping, pydantic, pyyaml and safetensors, and this
repository; no raster package:

    pip install --no-deps . && pip install numpy pyarrow jaxtyping pydantic \\
        pyyaml safetensors
    python benchmarks/gpu.py                      # on a GPU: all sizes in bf16, compiled
    python benchmarks/gpu.py --sizes base --batch 1024 --steps 50
    python benchmarks/gpu.py --write              # keeps the dated table in gpu.md

Every row is the product's own training step on generated chips of ten bands: loading from disk or
from where they are kept (``machine.resident``), converting, turning and masking on the device,
forward, backward, AdamW, and reading the numbers of the step before. "MFU" is model FLOPs
(bharateo.training.planning) over the FLOP/s that a large product reaches here; on a machine whose
data sheet is known, over that peak as well. "waiting" is the share of the time in which the loader
had not delivered.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import tempfile
import time
from pathlib import Path

import torch

from bharateo.config import SIZES, Config, parse_config
from bharateo.training.engine import open_engine
from bharateo.training.loop import Trainer
from bharateo.training.planning import DTYPES, MACHINES, Cost, gemm_peak, wait_for
from generated import generated_dataset

TABLE = Path(__file__).with_suffix(".md")
HEADER = (
    "| size | batch | compiled | resident | chips/s | TFLOP/s | MFU | of data sheet | waiting "
    "| memory, GB |"
)


def configuration(size: str, batch: int, compiled: bool, resident: str, precision: str) -> Config:
    """A run of a size with the optimiser that all of the field has."""
    return parse_config(
        {
            "model": {"size": size},
            "training": {
                "batch_size": batch,
                "optimiser": "adamw",
                "precision": precision,
                "epochs": 1000,
            },
            "machine": {"compile": compiled, "resident": resident},
        }
    )


def measure(config: Config, folder: Path, num_chips: int, steps: int) -> dict[str, float]:
    """Chips a second over so many steps, after five to warm up, and what the loader cost."""
    dataset = generated_dataset(folder / "dataset", num_chips)
    with open_engine(config) as engine:
        trainer = Trainer(dataset, config, folder / "run", engine)
        began, waited, launched = 0.0, 0.0, []
        for step, raw in trainer.loader.steps(0, 5 + steps):
            if step == 5:
                wait_for(engine.device)
                began, waited = time.perf_counter(), trainer.loader.wait_s
            launched.append(trainer.step(step, raw))
            if len(launched) > engine.asynchronous:  # read as the product does, one step late
                trainer.finish(launched.pop(0))
        wait_for(engine.device)
        seconds = time.perf_counter() - began
        cuda = engine.device.type == "cuda"
        return {
            "chips_per_s": steps * config.training.batch_size / seconds,
            "waiting": (trainer.loader.wait_s - waited) / seconds,
            "memory": torch.cuda.max_memory_allocated() / 1e9 if cuda else float("nan"),
        }


def data_sheet(name: str) -> float | None:
    """The bf16 peak of a GPU of this name, FLOP/s."""
    for machine in MACHINES.values():
        if machine.title.split()[1] in name:
            return machine.peak["bf16"]
    return None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES) if cuda
                        else ["nano", "tiny"])  # fmt: skip
    parser.add_argument("--batch", type=int, default=1024 if cuda else 64)
    parser.add_argument("--steps", type=int, default=40 if cuda else 4)
    parser.add_argument("--chips", type=int, default=8192 if cuda else 512, help="in the dataset")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {TABLE.name}")
    options = parser.parse_args()
    with open_engine(configuration("nano", 1, False, "off", options.precision)) as engine:
        peak = gemm_peak(engine.device, DTYPES[engine.precision])
        device, precision = engine.device, engine.precision
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or "processor"
    sheet = data_sheet(name) if precision == "bf16" else None
    lines = [
        (
            f"{datetime.date.today()}, {name}, torch {torch.__version__}, {precision}; a large "
            f"product reaches {peak / 1e12:,.2f} TFLOP/s."
        ),
        "",
        HEADER,
        "|" + "---|" * (HEADER.count("|") - 1),
    ]
    print("\n".join(lines), flush=True)
    ways = [(False, "off"), (True, "off"), (True, "device")] if cuda else [(False, "off")]
    for size in options.sizes:
        for compiled, resident in ways:
            config = configuration(size, options.batch, compiled, resident, options.precision)
            with tempfile.TemporaryDirectory() as folder:
                found = measure(config, Path(folder), options.chips, options.steps)
            flops = Cost.of(config, 10).training
            reached = found["chips_per_s"] * flops
            lines.append(
                f"| {size} | {options.batch} | {'yes' if compiled else 'no'} | {resident} "
                f"| {found['chips_per_s']:,.0f} | {reached / 1e12:,.3g} | {reached / peak:.0%} "
                f"| {f'{reached / sheet:.0%}' if sheet else 'not known'} "
                f"| {found['waiting']:.1%} | {found['memory']:.1f} |"
            )
            print(lines[-1], flush=True)
    if options.write:
        TABLE.write_text("# Training on this machine\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
