"""Training steps against what one would otherwise use, in turns in one process.

1. ``seed`` against a textbook implementation of the same model: nn.TransformerEncoder with the
   mask token put in at the input, heads on all tokens, a DataLoader with labels ready made, fp32.
2. ``v0`` against transformers' ``ViTMAEForPreTraining`` of the same sizes, both in bf16 (where
   the processor has it), with the same fused AdamW and the same allocator thresholds. ViTMAE is
   given its batch ready made; v0's step includes cutting windows and counting patch labels.

    python benchmarks/train_step.py --write

Times are medians over rounds in which the two take turns, so that drift of the machine hits both;
both have the raised allocator thresholds. `--write` keeps the table.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from bharateo.chips.build import build
from bharateo.config import Config, PlanConfig, load_config, preset_path
from bharateo.landcover import (
    BHARATEO_CLASSES,
    IGNORE,
    WORLDCOVER,
    palette,
    patch_class_counts,
    patch_mode,
)
from bharateo.memory import keep_freed_memory
from bharateo.raster import Raster
from bharateo.regions import Roi, worldcover_region
from bharateo.sensor import WORLDCOVER_PALETTE
from bharateo.sources import Recipe
from bharateo.training.engine import autocast, resolve_precision
from bharateo.training.loop import Trainer

ROUNDS = 20
TABLE = Path(__file__).with_suffix(".md")


class Blobs:
    """A patchy generated class map: timing needs shapes, not meaning."""

    name, attribution, scheme, sensor = "blobs", (), WORLDCOVER, WORLDCOVER_PALETTE

    def __init__(self, as_palette: bool) -> None:
        self.as_palette = as_palette

    def read(self, geobox) -> Raster:  # type: ignore[no-untyped-def]
        """Codes or colours, the same ones every time."""
        coarse = np.random.default_rng(0).choice([10, 30, 40, 50, 80], (256, 256))
        native = np.kron(coarse, np.ones((8, 8), int)).astype(np.uint8)
        valid = np.ones(native.shape, bool)
        values = palette(WORLDCOVER.collapse(native)) if self.as_palette else native[None]
        return Raster(np.ascontiguousarray(values), valid, geobox)


def trainer(config: Config, folder: Path, plan: PlanConfig) -> Trainer:
    """A trainer on the generated map."""
    region = worldcover_region(Roi("blobs", 77.0, 28.0))
    recipe = Recipe("blobs", (region,), Blobs(True), Blobs(False))
    return Trainer(build(recipe, plan, folder / "dataset", 42), config, folder / "run")


class ChipDataset(TorchDataset):  # type: ignore[type-arg]
    """Chips as a tutorial would hold them: float RGB in [0, 1] and one class a patch."""

    def __init__(self, ours: Trainer) -> None:
        dataset = ours.dataset
        self.image = np.stack([dataset.image(i) for i in range(dataset.num_chips)])
        landcover = np.stack([dataset.landcover(i) for i in range(dataset.num_chips)])
        self.label = patch_mode(patch_class_counts(landcover, 16)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.from_numpy(self.image[index]).float() / 255
        return image, torch.from_numpy(self.label[index])


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


def textbook_steps(ours: Trainer) -> Callable[[int], None]:
    """Steps of the textbook model: loader, loss on masked tokens, AdamW."""
    model = Textbook()
    optimiser = torch.optim.AdamW(model.parameters(), 4e-4, weight_decay=0.05)
    loader = DataLoader(ChipDataset(ours), batch_size=16, shuffle=True)

    def endless():  # type: ignore[no-untyped-def]
        while True:
            yield from loader

    batches = endless()

    def step(_: int) -> None:
        image, label = next(batches)
        patches = image.reshape(-1, 3, 8, 16, 8, 16).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, 768)
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

    return step


def vitmae_steps(config: Config) -> Callable[[int], None]:
    """Steps of transformers' ViTMAE of v0's sizes on a ready-made batch."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size = config.model
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.num_heads,
            intermediate_size=size.mlp_ratio * size.width,
            image_size=size.chip_px,
            patch_size=size.patch_px,
            num_channels=3,
            mask_ratio=size.mask_ratio,
            decoder_hidden_size=size.decoder_width,
            decoder_num_hidden_layers=size.decoder_depth,
            decoder_num_attention_heads=size.decoder_num_heads,
            decoder_intermediate_size=size.mlp_ratio * size.decoder_width,
        )
    )
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)
    image = torch.rand(config.training.batch_size, 3, size.chip_px, size.chip_px)
    context = autocast(resolve_precision("auto"))

    def step(_: int) -> None:
        with context():
            loss = model(image).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        loss.item()

    return step


def our_steps(ours: Trainer) -> Callable[[int], None]:
    """Whole training steps of ours, batch included."""
    from bharateo.training.loop import MetricSums

    sums = MetricSums()

    def step(number: int) -> None:
        ours.step(number % ours.num_steps, sums)

    return step


def seed_trainer(folder: Path) -> Trainer:
    """The seed preset on 384 chips."""
    seed = load_config(preset_path("seed"))
    return trainer(seed, folder, replace(seed.data.plan, chips_per_roi=384))


def v0_config() -> Config:
    """The v0 preset with the optimiser that both sides use."""
    return load_config(preset_path("v0"), ["training.optimiser=adamw"])


def v0_trainer(folder: Path) -> Trainer:
    """The v0 preset on stored squares."""
    return trainer(v0_config(), folder, v0_config().data.plan)


def in_turns(
    first: Callable[[int], None], second: Callable[[int], None], steps: int
) -> list[float]:
    """Median milliseconds a step of each, taking turns."""
    times: list[list[float]] = [[], []]
    for turn in range(ROUNDS + 1):
        for which, run in enumerate((first, second)):
            began = time.perf_counter()
            for number in range(steps):
                run(turn * steps + number)
            if turn:  # the first round warms up
                times[which].append((time.perf_counter() - began) / steps * 1e3)
    return [statistics.median(each) for each in times]


def main() -> None:
    """Measure both pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"keep the table in {TABLE.name}")
    options = parser.parse_args()
    keep_freed_memory()
    low = resolve_precision("auto")
    with tempfile.TemporaryDirectory() as folder:
        seed = seed_trainer(Path(folder) / "seed")
        times = in_turns(our_steps(seed), textbook_steps(seed), 16)
        rows = [("seed", 16, "textbook, fp32", times)]
        v0 = v0_trainer(Path(folder) / "v0")
        times = in_turns(our_steps(v0), vitmae_steps(v0.config), 4)
        rows.append(("v0", v0.config.training.batch_size, f"ViTMAE, {low}", times))
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {low} for ours"
    )
    lines = [
        machine,
        "",
        "| model | batch | ours, ms a step | against | ms a step | ratio |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{name}` | {batch} | {mine:.1f} | {other} | {theirs:.1f} | {theirs / mine:.2f} |"
            for name, batch, other, (mine, theirs) in rows
        ),
    ]
    print("\n".join(lines))
    if options.write:
        TABLE.write_text("# Training steps, in turns\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
