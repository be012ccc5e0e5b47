"""The training loop: from a dataset and a configuration to a run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bharateo.accounting import Accounting
from bharateo.chips.store import Dataset
from bharateo.config import Config, HeadConfig, differences, read_yaml, to_yaml
from bharateo.errors import ConfigError, ContractError, RunError
from bharateo.files import remove_leftovers, write_text
from bharateo.memory import keep_freed_memory
from bharateo.models.heads import HEADS, Batch, Sums, build_heads
from bharateo.models.mae import build_model
from bharateo.models.patches import Mask, num_masked
from bharateo.models.vit import Block
from bharateo.training.batches import (
    cut,
    draw_windows,
    epoch_order,
    fixed_batches,
    fixed_windows,
    training_mask,
)
from bharateo.training.checkpoint import (
    CONFIG_FILE,
    CONTRACT_FILE,
    HISTORY_FILE,
    Checkpoint,
    Run,
    dataset_fingerprint,
    load_checkpoint,
    make_contract,
    model_statistics,
    restore_training_state,
    save_checkpoint,
    save_run,
    training_state,
)
from bharateo.training.engine import autocast, resolve_precision


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step; ``metrics`` are means over the epoch so far."""

    step: int
    num_steps: int
    epoch: int
    num_epochs: int
    metrics: Mapping[str, float]
    chips_per_s: float
    seconds_left: float


@dataclass
class MetricSums:
    """Metrics as sums and counts, so that means over batches have no bias."""

    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, sums: Sums) -> None:
        """Add a batch's sums."""
        for name, (total, count) in sums.items():
            so_far = self.sums.setdefault(name, [0.0, 0.0])
            so_far[0] += total.item()
            so_far[1] += count.item()

    def means(self, heads: Mapping[str, HeadConfig]) -> dict[str, float]:
        """Mean of every metric, and ``loss``, the weighted sum of the heads' losses, first."""
        means = {name: total / max(count, 1) for name, (total, count) in self.sums.items()}
        if not means:
            return {}
        loss = sum(head.weight * means[HEADS[name].loss_metric] for name, head in heads.items())
        return {"loss": loss, **means}


def pretrain(
    dataset: Dataset,
    config: Config,
    run: Path,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> Run:
    """Train a model on the train split and return the finished run.

    Goes on from the run's checkpoint if there is one; a finished run of the same configuration
    is returned as it is. The weights depend on dataset, configuration and machine alone, not on
    how often training was interrupted.

    Raises:
        RunError: the folder holds another configuration's run.
        ConfigError, ContractError: the configuration does not fit the dataset.
        StorageError: the disk is full; the last checkpoint stays.
    """
    check_fit(config, dataset)
    claim_folder(run, config, dataset)
    if not (run / CONTRACT_FILE).exists():
        keep_freed_memory()
        trainer = Trainer(dataset, config, run)
        trainer.train(on_step)
        contract = make_contract(config, dataset, trainer.module, run, trainer.chips_per_epoch)
        save_run(run, trainer.module, contract)
    return Run.open(run)


def check_fit(config: Config, dataset: Dataset) -> None:
    """Refuse a configuration whose chips cannot be cut from the dataset's squares."""
    training, model = config.training, config.model
    for name in ("epochs", "batch_size", "lr", "chips_per_epoch"):
        value = getattr(training, name)
        if value is not None and value <= 0:
            raise ConfigError(f"training.{name} must be more than 0, got {value}")
    if not config.heads:
        raise ConfigError(f"heads is empty: give at least one of {', '.join(HEADS)}")
    Accounting(  # refuses sizes that make no tokens, or none to hide
        1, 1, model.chip_px, model.patch_px, dataset.sensor.num_bands, model.mask_ratio
    )
    if model.chip_px > dataset.size_px:
        raise ContractError(
            f"model.chip_px {model.chip_px} is larger than the stored squares of {dataset.path} "
            f"({dataset.size_px} px); build with a larger data.plan.size_px"
        )
    if not len(dataset.indices("train")):
        raise ContractError(f"{dataset.path} has no chip in its train split")
    # Refuses sizes and heads that make no model, before the folder is claimed for them.
    build_heads(config.heads, build_model(model, *model_statistics(dataset)))


def claim_folder(run: Path, config: Config, dataset: Dataset) -> None:
    """Write ``config.yaml`` and the dataset's fingerprint, or check that those there agree.

    Raises:
        RunError: the folder holds a run of another configuration or dataset.
    """
    header = f"# dataset fingerprint: {dataset_fingerprint(dataset)}\n"
    path = run / CONFIG_FILE
    if not path.exists():
        write_text(path, header + to_yaml(config))
        return
    remove_leftovers(run)
    there = differences(read_yaml(path), config)
    if not path.read_text().startswith(header):
        there = [*there, "the dataset is another one"]
    if there:
        raise RunError(
            f"{run} holds another run: {'; '.join(there)}. Choose another --output, or delete "
            "the folder to start over"
        )


def total_loss(
    module: nn.ModuleDict,
    batch: Batch,
    mask: Mask,
    heads: Mapping[str, HeadConfig],
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[Tensor, Sums]:
    """The weighted sum of the heads' losses, and all their metric sums."""
    loss = torch.zeros(())
    sums: Sums = {}
    with autocast():
        tokens = module["model"](batch.image, batch.valid, mask)
        for name, head in module["heads"].items():  # type: ignore[operator]
            head_loss, head_sums = head(tokens, batch, module["model"])
            loss = loss + heads[name].weight * head_loss
            sums |= head_sums
    return loss, sums


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step: linear warm-up, then cosine to zero over the run."""
    training = config.training
    if training.schedule == "cosine_epoch":
        epoch = step // steps_per_epoch
        return training.lr * 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    warmup = training.warmup_epochs * steps_per_epoch
    if step < warmup:
        return training.lr * (step + 1) / warmup
    share = (step - warmup) / max(training.epochs * steps_per_epoch - warmup, 1)
    return training.lr * 0.5 * (1 + math.cos(math.pi * share))


def build_optimisers(module: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for every parameter, or Muon for the matrices of transformer blocks beside it.

    ``decay: matrices`` spares biases, norms and single vectors from weight decay. Muon's steps
    are scaled to AdamW's size, so one learning rate serves both. Source: Liu et al. 2025, "Muon
    is Scalable for LLM Training", section 2.2.
    """
    training = config.training
    in_blocks = {
        id(parameter)
        for block in module.modules()
        if isinstance(block, Block) and training.optimiser == "muon"
        for parameter in block.parameters()
        if parameter.ndim == 2
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in module.parameters():
        if id(parameter) not in in_blocks:
            groups[training.decay == "all" or parameter.ndim > 1].append(parameter)
    adamw = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": training.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=training.lr,
        betas=(0.9, training.beta2),
        fused=True,
    )
    if not in_blocks:
        return [adamw]
    matrices = [parameter for parameter in module.parameters() if id(parameter) in in_blocks]
    decay = training.weight_decay
    return [
        adamw,
        torch.optim.Muon(matrices, training.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
    ]


class Trainer:
    """Model, heads, optimiser and data of one run, and the loop over them."""

    def __init__(self, dataset: Dataset, config: Config, run: Path) -> None:
        self.dataset, self.config, self.run = dataset, config, run
        torch.manual_seed(config.training.seed)
        model = build_model(config.model, *model_statistics(dataset))
        heads = build_heads(config.heads, model)
        self.module = nn.ModuleDict({"model": model, "heads": heads})
        self.optimisers = build_optimisers(self.module, config)
        self.autocast = autocast(resolve_precision(config.training.precision))
        self.num_tokens = model.num_tokens
        self.chips = dataset.indices("train")
        self.chips_per_epoch = chips_per_epoch(dataset, config)
        self.steps_per_epoch = math.ceil(self.chips_per_epoch / config.training.batch_size)
        self.num_steps = config.training.epochs * self.steps_per_epoch

    def train(self, on_step: Callable[[Progress], None]) -> None:
        """Every step from the checkpoint, or from the start, to the end."""
        first, sums = self.resume()
        history = self.read_history(first // self.steps_per_epoch)
        clock = saved = time.monotonic()
        for step in range(first, self.num_steps):
            lr = self.step(step, sums)
            speed = (step + 1 - first) / (time.monotonic() - clock)
            metrics = sums.means(self.config.heads)
            if (step + 1) % self.steps_per_epoch == 0:
                chips_per_s = round(speed * self.config.training.batch_size, 1)
                val = {f"val_{name}": value for name, value in self.validate().items()}
                row = {"epoch": (step + 1) // self.steps_per_epoch, **metrics, "lr": lr}
                history.append({**row, "chips_per_s": chips_per_s, **val})
                self.write_history(history)
                sums = MetricSums()
            ended = step + 1 == self.num_steps
            if ended or time.monotonic() - saved >= self.config.training.checkpoint_seconds:
                self.save(step + 1, sums)
                saved = time.monotonic()
            on_step(self.progress(step, metrics, speed))

    def step(self, step: int, sums: MetricSums) -> float:
        """One optimiser step; adds its metric sums and returns the learning rate used."""
        batch, mask = self.batch(step)
        lr = learning_rate(self.config, step, self.steps_per_epoch)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
        loss, metrics = total_loss(self.module, batch, mask, self.config.heads, self.autocast)
        if not math.isfinite(loss.item()):
            raise RunError(
                f"loss is {loss.item()} at step {step}: lower training.lr "
                f"(now {self.config.training.lr}) and start in another --output"
            )
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.training.grad_clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.training.grad_clip)
        for optimiser in self.optimisers:
            optimiser.step()
        sums.add(metrics)
        return lr

    def batch(self, step: int) -> tuple[Batch, Mask]:
        """The chips and masks of a step, drawn from the seed and the step alone."""
        training, model = self.config.training, self.config.model
        epoch, within = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.chips, self.chips_per_epoch, training.seed, epoch)
        chips = order[within * training.batch_size : (within + 1) * training.batch_size]
        rng = np.random.default_rng([training.seed, epoch, within])
        windows = draw_windows(
            chips, self.dataset.size_px, model.chip_px, training.augment == "d4", rng
        )
        masked = num_masked(self.num_tokens, model.mask_ratio)
        batch = cut(self.dataset, windows, model.chip_px, model.patch_px)
        return batch, training_mask(len(windows), self.num_tokens, masked, rng)

    def validate(self) -> dict[str, float]:
        """Metrics of the val split on its fixed windows and masks; empty without one."""
        sums, config = MetricSums(), self.config
        with torch.no_grad():
            for _, batch, mask in fixed_batches(
                self.dataset, "val", config.model, config.training.batch_size
            ):
                sums.add(total_loss(self.module, batch, mask, config.heads, self.autocast)[1])
        return sums.means(config.heads)

    def progress(self, step: int, metrics: Mapping[str, float], speed: float) -> Progress:
        """What to show after a step; ``speed`` is in steps per second."""
        return Progress(
            step + 1,
            self.num_steps,
            step // self.steps_per_epoch + 1,
            self.config.training.epochs,
            metrics,
            speed * self.config.training.batch_size,
            (self.num_steps - step - 1) / speed,
        )

    def save(self, step: int, sums: MetricSums) -> None:
        """Replace the checkpoint by the state after ``step`` steps."""
        state = training_state(self.module, self.optimisers)
        save_checkpoint(self.run, Checkpoint(step, sums.sums, state))

    def resume(self) -> tuple[int, MetricSums]:
        """Restore the checkpoint if there is one: steps done, sums of the epoch under way."""
        checkpoint = load_checkpoint(self.run)
        if checkpoint is None:
            return 0, MetricSums()
        restore_training_state(checkpoint.state, self.module, self.optimisers)
        return checkpoint.step, MetricSums(checkpoint.sums)

    def read_history(self, epochs: int) -> list[dict[str, Any]]:
        """The first ``epochs`` lines of the history; later ones were not checkpointed."""
        path = self.run / HISTORY_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines[:epochs]]

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replace ``history.jsonl``."""
        lines = (json.dumps(row) + "\n" for row in history)
        write_text(self.run / HISTORY_FILE, "".join(lines))


def chips_per_epoch(dataset: Dataset, config: Config) -> int:
    """Chips presented in an epoch: configured, or as many as the squares hold side by side."""
    chips = dataset.indices("train").tolist()
    return config.training.chips_per_epoch or len(
        fixed_windows(chips, dataset.size_px, config.model.chip_px)
    )
