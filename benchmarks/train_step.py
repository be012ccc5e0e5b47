"""Training steps against what one would otherwise use, in turns, each in a process of its own.

- ``seed`` against a textbook implementation of the same model: nn.TransformerEncoder with the
  mask token put in at the input, heads on all tokens, a DataLoader with labels ready made, fp32.
- Every size, on ten bands, against transformers' ``ViTMAEForPreTraining`` of the same sizes:
  "same": our precision, our optimiser (fused AdamW, gradients clipped) and our allocator;
  "shipped": fp32, AdamW with its defaults, the allocator as it is.
- Against the machine: FLOP/s of the step's matrix products (bharateo.training.planning) as a share
  of those of a large product, which takes its turns with the others.

Ours is the product's whole step: read, convert, turn, count labels, mask, learn. ViTMAE is given
one batch ready made, again and again.

    python benchmarks/train_step.py --write
    python benchmarks/train_step.py --sizes tiny --profile     # which operations hold the rest

Times are medians over rounds in which all take turns, so that drift of the machine hits all.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bharateo.config import SIZES, Config, load_config, parse_config, preset_path
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, patch_class_counts, patch_mode
from bharateo.memory import keep_freed_memory
from bharateo.training.engine import Engine, autocast, resolve_precision
from bharateo.training.planning import Cost

ROUNDS = 9
BANDS = 10
TABLE = Path(__file__).with_suffix(".md")
Steps = Callable[[int], None]


def sized(size: str, batch: int, precision: str) -> Config:
    """A size with the optimiser that both sides use."""
    training = {
        "batch_size": batch, "optimiser": "adamw", "precision": precision, "epochs": 10_000,
    }  # fmt: skip
    return parse_config({"model": {"size": size}, "training": training})


def ours(config: Config, folder: Path, num_chips: int = 384, palette: bool = False) -> Steps:
    """Whole training steps of ours, reading included."""
    from bharateo.sensor import SENTINEL2_L2A, WORLDCOVER_PALETTE
    from bharateo.training.loop import Trainer
    from generated import generated_dataset

    sensor = WORLDCOVER_PALETTE if palette else SENTINEL2_L2A
    dataset = generated_dataset(folder / "dataset", num_chips, sensor=sensor)
    precision = resolve_precision(config.training.precision)
    trainer = Trainer(dataset, config, folder / "run", Engine(precision=precision))
    steps = trainer.loader.steps(0, trainer.num_steps)

    def run(count: int) -> None:
        for _ in range(count):
            trainer.step(*next(steps))

    return run


def vitmae(config: Config, shipped: bool) -> Steps:
    """Steps of transformers' ViTMAE of the same sizes on a ready-made batch."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size, batch = config.model, config.training.batch_size
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.num_heads,
            intermediate_size=size.mlp_ratio * size.width,
            image_size=size.chip_px,
            patch_size=size.patch_px,
            num_channels=BANDS,
            mask_ratio=size.mask_ratio,
            decoder_hidden_size=size.decoder_width,
            decoder_num_hidden_layers=size.decoder_depth,
            decoder_num_attention_heads=size.decoder_num_heads,
            decoder_intermediate_size=size.mlp_ratio * size.decoder_width,
        )
    )
    like_ours = {} if shipped else {"weight_decay": 0.05, "fused": True}
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, **like_ours)
    image = torch.rand(batch, BANDS, size.chip_px, size.chip_px)
    context = autocast("fp32" if shipped else resolve_precision(config.training.precision))

    def run(count: int) -> None:
        for _ in range(count):
            with context():
                loss = model(image).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if not shipped:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            loss.item()

    return run


class Textbook(nn.Module):
    """The seed model as a tutorial would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(768, 128)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 128))
        self.positions = nn.Parameter(torch.randn(1, 64, 128) * 0.02)
        layer = nn.TransformerEncoderLayer(
            128, 4, 512, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.pixels = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 768))
        self.classes = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, len(BHARATEO_CLASSES)))

    def forward(self, patches: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels and classes of all tokens."""
        x = torch.where(hidden[..., None], self.mask_token, self.embed(patches))
        x = self.encoder(x + self.positions)
        return self.pixels(x), self.classes(x)


def textbook() -> Steps:
    """Steps of the textbook model: loader, loss on masked tokens, AdamW."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (384, 3, 128, 128), np.uint8)
    landcover = rng.integers(0, 8, (384, 128, 128), np.uint8)
    label = patch_mode(patch_class_counts(landcover, 16)).astype(np.int64)
    chips = [(torch.from_numpy(i), torch.from_numpy(j)) for i, j in zip(image, label, strict=True)]
    loader = torch.utils.data.DataLoader(chips, batch_size=16, shuffle=True)  # type: ignore[arg-type]
    model = Textbook()
    optimiser = torch.optim.AdamW(model.parameters(), 4e-4, weight_decay=0.05)

    def endless():  # type: ignore[no-untyped-def]
        while True:
            yield from loader

    batches = endless()

    def run(count: int) -> None:
        for _ in range(count):
            image, label = next(batches)
            patches = (image.float() / 255).reshape(-1, 3, 8, 16, 8, 16)
            patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, 768)
            chosen = torch.rand(len(patches), 64).argsort(1)[:, :48]
            hidden = torch.zeros(len(patches), 64, dtype=torch.bool).scatter_(1, chosen, True)
            pixels, classes = model(patches, hidden)
            loss = F.smooth_l1_loss(pixels[hidden], patches[hidden], beta=0.1)
            loss = loss + 0.2 * F.cross_entropy(
                classes.flatten(0, 1), label.flatten(), ignore_index=IGNORE
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                (pixels[hidden] - patches[hidden]).abs().mean().item()
                (classes.argmax(2) == label).float().mean().item()
                loss.item()

    return run


PRODUCT = 2048
"""Side of the large product."""


def product(precision: str) -> Steps:
    """Products of large matrices."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, PRODUCT, PRODUCT).to(dtype)

    def run(count: int) -> None:
        for _ in range(count):
            left @ right

    return run


def make(subject: str, size: str, batch: int, precision: str, folder: Path) -> Steps:
    """The subject's steps, in this process."""
    if subject != "shipped" and subject != "textbook":
        keep_freed_memory()
    if subject == "product":
        return product(precision)
    if size == "seed":
        seed = load_config(preset_path("seed"), ["training.epochs=10000"])
        return textbook() if subject == "textbook" else ours(seed, folder, palette=True)
    config = sized(size, batch, precision)
    return ours(config, folder) if subject == "ours" else vitmae(config, subject == "shipped")


class Worker:
    """A subject in a process of its own, which works when told to."""

    def __init__(self, subject: str, size: str, batch: int, precision: str) -> None:
        command = [sys.executable, __file__, "--work", subject, size, str(batch), precision]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, count: int) -> float:
        """Seconds a step, over so many steps."""
        assert self.process.stdin
        assert self.process.stdout
        print(count, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline()) / count

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def work(subject: str, size: str, batch: int, precision: str) -> None:
    """What a worker does: as many steps as each line asks for, and how long they took."""
    with tempfile.TemporaryDirectory() as folder:
        run = make(subject, size, batch, precision, Path(folder))
        for line in sys.stdin:
            began = time.perf_counter()
            run(int(line))
            print(time.perf_counter() - began, flush=True)


def in_turns(subjects: list[str], size: str, batch: int, precision: str) -> dict[str, float]:
    """Median seconds a step of every subject."""
    workers = {name: Worker(name, size, batch, precision) for name in subjects}
    counts = {name: max(1, round(0.7 / worker.seconds(2))) for name, worker in workers.items()}
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(ROUNDS):
        for name, worker in workers.items():
            times[name].append(worker.seconds(counts[name]))
    for worker in workers.values():
        worker.end()
    return {name: statistics.median(each) for name, each in times.items()}


def row(size: str, batch: int, precision: str) -> str:
    """One size in one precision, as a line of the table."""
    times = in_turns(["ours", "same", "shipped", "product"], size, batch, precision)
    config = sized(size, batch, precision)
    flops = Cost.of(config, BANDS).training * batch
    reached, peak = flops / times["ours"], 2 * PRODUCT**3 / times["product"]
    return (
        f"| `{size}` | {precision} | {batch} | {times['ours'] * 1e3:.0f} "
        f"| {batch / times['ours']:,.0f} | {times['same'] / times['ours']:.2f} "
        f"| {times['shipped'] / times['ours']:.2f} | {reached / 1e9:,.0f} | {peak / 1e9:,.0f} "
        f"| {reached / peak:.0%} |"
    )


def profile(size: str, batch: int, precision: str) -> None:
    """Which operations a step's time goes to."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with tempfile.TemporaryDirectory() as folder:
        run = make("ours", size, batch, precision, Path(folder))
        run(3)
        with profiler(activities=[ProfilerActivity.CPU]) as found:
            run(3)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    """Measure and print the tables."""
    if sys.argv[1:2] == ["--work"]:
        subject, size, batch, precision = sys.argv[2:]
        work(subject, size, int(batch), precision)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=["nano", "tiny"])
    parser.add_argument("--batch", type=int, default=64)
    low = resolve_precision("auto")
    parser.add_argument("--precisions", nargs="+", default=sorted({"fp32", low}, reverse=True))
    parser.add_argument("--profile", action="store_true", help="print where ours spends its time")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {TABLE.name}")
    options = parser.parse_args()
    if options.profile:
        for size in options.sizes:
            profile(size, options.batch, options.precisions[0])
        return
    lines = [
        (
            f"{datetime.date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, {'' if low == 'bf16' else 'no '}native bf16."
        ),
        "",
        (
            "| size | precision | batch | ours, ms a step | chips/s | same: ratio "
            "| shipped: ratio | GFLOP/s | large product | share |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for size in options.sizes:
        for precision in options.precisions:
            lines.append(row(size, options.batch, precision))
            print(lines[-1], flush=True)
    times = in_turns(["ours", "textbook"], "seed", 16, "auto")
    lines += [
        "",
        (
            f"`seed`, batches of 16, fp32: {times['ours'] * 1e3:.1f} ms a step, and the "
            f"textbook's {times['textbook'] / times['ours']:.2f} times as long."
        ),
    ]
    print(lines[-1])
    if options.write:
        TABLE.write_text("# Training steps, in turns\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
