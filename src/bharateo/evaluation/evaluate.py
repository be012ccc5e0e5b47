"""Evaluate a run on every split of a dataset, beside the baselines, and write it down."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bharateo.chips.store import SPLITS, Dataset
from bharateo.evaluation.baselines import BASELINES, Seen
from bharateo.evaluation.intervals import LEAST_BLOCKS, LEVEL, NUM_RESAMPLES
from bharateo.evaluation.scores import BlockSums, Scoring, against, report
from bharateo.files import write_json
from bharateo.inference.dense import check_rebuilds
from bharateo.inference.encoder import device_of
from bharateo.models.heads import Batch, declared_metrics
from bharateo.models.patches import Mask
from bharateo.results import Bootstrap, Evaluation, GroundScores, ScoredDataset, SplitScores
from bharateo.training.data import fixed_batches, fixed_windows
from bharateo.training.run import Run, dataset_fingerprint

MODEL = "model"
"""The predictor that is no baseline."""

BATCH_SIZE = 64


def evaluate(
    run: Run,
    dataset: Dataset,
    output: Path,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Scores of the run and of the baselines per split and per ROI, also written to ``output``.

    Windows and masks are fixed by place, arithmetic is fp32 on the run's device: the same run and
    dataset give the same file. ``on_batch`` is told (chips done, chips in all).

    Raises:
        ContractError: the dataset breaks the run's contract.
        RunError: the run's encoder was tuned since its pretraining.
        StorageError: ``output`` cannot be written.
    """
    run.check(dataset)
    check_rebuilds(run)
    fingerprint = dataset_fingerprint(dataset)
    record = Evaluation(
        dataset=ScoredDataset(
            name=dataset.info["name"], path=str(dataset.path), fingerprint=fingerprint
        ),
        own_dataset=fingerprint == run.contract.dataset.fingerprint,
        chip_px=run.contract.chip_px,
        patch_px=run.contract.patch_px,
        mask_ratio=run.contract.mask_ratio,
        metrics=declared_metrics(run.contract.heads),
        bootstrap=Bootstrap(resamples=NUM_RESAMPLES, level=LEVEL, least_blocks=LEAST_BLOCKS),
        splits={
            split: _split_scores(run, dataset, split, on_batch)
            for split in SPLITS
            if len(dataset.indices(split))
        },
    )
    write_json(output, record.model_dump())
    return record


@torch.no_grad()
def predictions(
    run: Run, batch: Batch, mask: Mask, baselines: Collection[str] = BASELINES
) -> dict[str, dict[str, Tensor]]:
    """What the model and every baseline say of all tokens, row-major: predictor -> head -> values
    (batch, token, value), as the head predicts them.
    """
    heads = run.heads.by_name()
    tokens = run.model(batch.image, batch.valid, mask)
    made = {MODEL: {name: mask.restore(head.answer(tokens)) for name, head in heads.items()}}
    seen = seen_by_baselines(run, batch, mask)
    for baseline in baselines:
        filled = BASELINES[baseline](seen)
        made[baseline] = {name: head.target(filled, run.model) for name, head in heads.items()}
    return made


def seen_by_baselines(run: Run, batch: Batch, mask: Mask) -> Seen:
    """What the baselines may read of a batch: its visible tokens and the run's train split."""
    train_mean = torch.tensor(run.contract.statistics.mean, device=batch.image.device)
    return Seen.of(batch, mask, train_mean, run.contract.majority_class)


def _split_scores(
    run: Run, dataset: Dataset, split: str, on_batch: Callable[[int, int], None]
) -> SplitScores:
    sums, num_windows = _sums(run, dataset, split, on_batch)
    tasks = {name: Scoring(run.contract.heads[name].weight, type(head))
             for name, head in run.heads.by_name().items()}  # fmt: skip
    blocks = sorted(sums[MODEL].rows)
    by_region: dict[str, list[str]] = {}
    for block in blocks:
        by_region.setdefault(block.split("/")[0], []).append(block)

    def scores(some: list[str]) -> GroundScores:
        tables = {name: predictor.table(some) for name, predictor in sums.items()}
        seed = f"{split}/{some[0]}/{len(some)}"
        return GroundScores(
            num_chips=sum(num_windows[block] for block in some),
            num_blocks=len(some),
            model=report(tables[MODEL], tasks, seed),
            baselines={name: report(tables[name], tasks, seed) for name in BASELINES},
            model_against_nearest_visible=against(
                tables[MODEL], tables["nearest_visible"], tasks, seed
            ),
        )

    return SplitScores(
        **dict(scores(blocks)),
        per_roi={region: scores(some) for region, some in by_region.items()},
    )


def _sums(
    run: Run, dataset: Dataset, split: str, on_batch: Callable[[int, int], None]
) -> tuple[dict[str, BlockSums], dict[str, int]]:
    """Sums of the model and every baseline by block, and windows by block."""
    sums = {name: BlockSums() for name in (MODEL, *BASELINES)}
    num_windows: dict[str, int] = {}
    block_of_chip = dataset.chips["block"].to_numpy()
    device = device_of(run)
    run = run.on(device)
    config, heads = run.model.config, run.heads.by_name()
    chips = dataset.indices(split).tolist()
    total = len(fixed_windows(chips, dataset.size_px, config.chip_px))
    for windows, batch, mask in fixed_batches(dataset, split, config, BATCH_SIZE):
        batch, mask = batch.to(device), mask.to(device)
        blocks = [str(block_of_chip[window.chip]) for window in windows]
        for block in blocks:
            num_windows[block] = num_windows.get(block, 0) + 1
        targets = {name: head.target(batch, run.model) for name, head in heads.items()}
        for predictor, predicted in predictions(run, batch, mask).items():
            measured: dict[str, np.ndarray] = {}
            for name, head in heads.items():
                # in double precision: sums must not depend on how a split came in batches
                values, target = predicted[name].double(), targets[name]
                pairs = head.measure(values, target, mask.hidden, run.model)
                measured |= {key: torch.stack(pair, 1).cpu().numpy() for key, pair in pairs.items()}
                if head.confusion_key:
                    cells = head.confusion(values, target, mask.hidden)
                    measured[head.confusion_key] = cells.cpu().numpy()
                if predictor != MODEL:
                    measured |= {each.name: np.full((len(blocks), 2), np.nan)
                                 for each in head.metrics if each.baselines == "none"}  # fmt: skip
            for i, block in enumerate(blocks):
                sums[predictor].add(block, {key: each[i] for key, each in measured.items()})
        on_batch(sum(num_windows.values()), total)
    return sums, num_windows
