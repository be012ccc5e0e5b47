"""Evaluate a run on every split of a dataset, beside the baselines, and write it down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bharateo.chips.store import SPLITS, Dataset
from bharateo.evaluation.baselines import BASELINES, Prediction, Seen, look
from bharateo.evaluation.intervals import LEAST_BLOCKS, LEVEL, NUM_RESAMPLES
from bharateo.evaluation.scores import (
    BlockSums,
    against,
    confusion,
    report,
)
from bharateo.files import write_json
from bharateo.models.heads import Batch, LandCoverHead, PixelHead, patch_mode
from bharateo.models.patches import Mask, take_tokens
from bharateo.results import Bootstrap, Evaluation, GroundScores, ScoredDataset, SplitScores
from bharateo.training.data import fixed_batches, fixed_windows
from bharateo.training.run import Run, dataset_fingerprint

BATCH_SIZE = 64


def evaluate(
    run: Run,
    dataset: Dataset,
    output: Path,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Scores of the run and of the baselines per split and per ROI, also written to ``output``.

    Windows and masks are fixed by place, arithmetic is fp32: the same run and dataset give the
    same file. ``on_batch`` is told (chips done, chips in all).

    Raises:
        ContractError: the dataset breaks the run's contract.
        StorageError: ``output`` cannot be written.
    """
    run.check(dataset)
    fingerprint = dataset_fingerprint(dataset)
    record = Evaluation(
        dataset=ScoredDataset(
            name=dataset.info["name"], path=str(dataset.path), fingerprint=fingerprint
        ),
        own_dataset=fingerprint == run.contract.dataset.fingerprint,
        chip_px=run.contract.chip_px,
        patch_px=run.contract.patch_px,
        mask_ratio=run.contract.mask_ratio,
        bootstrap=Bootstrap(resamples=NUM_RESAMPLES, level=LEVEL, least_blocks=LEAST_BLOCKS),
        splits={
            split: _split_scores(run, dataset, split, on_batch)
            for split in SPLITS
            if len(dataset.indices(split))
        },
    )
    write_json(output, record.model_dump())
    return record


def predict(run: Run, batch: Batch, mask: Mask) -> tuple[Prediction, Tensor]:
    """The run's prediction, and its class logits (batch, token, cls), visible first.

    A run without one of the two heads predicts zeros there.
    """
    with torch.no_grad():
        tokens = run.model(batch.image, batch.valid, mask)
        shape = tokens.masked.shape[:2]
        pixels = torch.zeros(*shape, run.model.values_per_patch)
        logits = torch.zeros(*tokens.values.shape[:2], batch.class_counts.shape[2])
        for head in run.heads.values():
            if isinstance(head, PixelHead):
                pixels = head.predict(tokens.masked)
            elif isinstance(head, LandCoverHead):
                logits = head.predict(tokens.values)
    return Prediction(pixels, logits.argmax(2)), logits


def seen_by_baselines(run: Run, batch: Batch, mask: Mask) -> Seen:
    """What the baselines may read of a batch: its visible tokens and the run's train split."""
    train_mean = run.model.normalise.model_units(torch.tensor(run.contract.statistics.mean))
    return look(batch, mask, run.model, train_mean, run.contract.majority_class)


def _split_scores(
    run: Run, dataset: Dataset, split: str, on_batch: Callable[[int, int], None]
) -> SplitScores:
    sums, num_windows = _sums(run, dataset, split, on_batch)
    weights = {name: head.weight for name, head in run.contract.heads.items()}
    blocks = sorted(sums["model"].rows)
    by_region: dict[str, list[str]] = {}
    for block in blocks:
        by_region.setdefault(block.split("/")[0], []).append(block)

    def scores(some: list[str]) -> GroundScores:
        tables = {name: predictor.table(some) for name, predictor in sums.items()}
        seed = f"{split}/{some[0]}/{len(some)}"
        return GroundScores(
            num_chips=sum(num_windows[block] for block in some),
            num_blocks=len(some),
            model=report(tables["model"], weights, seed),
            baselines={name: report(tables[name], weights, seed) for name in BASELINES},
            model_against_nearest_visible=against(tables["model"], tables["nearest_visible"], seed),
        )

    return SplitScores(
        **dict(scores(blocks)),
        per_roi={region: scores(some) for region, some in by_region.items()},
    )


def _sums(
    run: Run, dataset: Dataset, split: str, on_batch: Callable[[int, int], None]
) -> tuple[dict[str, BlockSums], dict[str, int]]:
    """Sums of the model and every baseline by block, and windows by block."""
    sums = {name: BlockSums() for name in ("model", *BASELINES)}
    num_windows: dict[str, int] = {}
    block_of_chip = dataset.chips["block"].to_numpy()
    config = run.model.config
    chips = dataset.indices(split).tolist()
    total = len(fixed_windows(chips, dataset.size_px, config.chip_px))
    for windows, batch, mask in fixed_batches(dataset, split, config, BATCH_SIZE):
        blocks = [str(block_of_chip[window.chip]) for window in windows]
        for block in blocks:
            num_windows[block] = num_windows.get(block, 0) + 1
        prediction, logits = predict(run, batch, mask)
        seen = seen_by_baselines(run, batch, mask)
        _add(sums["model"], blocks, prediction, logits, batch, mask, run)
        for name, baseline in BASELINES.items():
            _add(sums[name], blocks, baseline(seen), None, batch, mask, run)
        on_batch(sum(num_windows.values()), total)
    return sums, num_windows


def _add(
    sums: BlockSums,
    blocks: list[str],
    prediction: Prediction,
    logits: Tensor | None,
    batch: Batch,
    mask: Mask,
    run: Run,
) -> None:
    """Add every chip's sums of one predictor to its block."""
    pixels = _pixel_sums(prediction, batch, mask, run)
    counts = take_tokens(batch.class_counts, mask.order)
    true = patch_mode(counts)
    named = {**pixels, "labelled": (counts.sum(2) > 0).sum(1)}
    if logits is not None:
        named["cross_entropy"] = _cross_entropy(run, logits, counts)
    seen = mask.num_visible
    for i, block in enumerate(blocks):
        truth, guess = true[i].numpy(), prediction.classes[i].numpy()
        sums.add(
            block,
            {name: float(values[i]) for name, values in named.items()},
            confusion(truth[seen:], guess[seen:]),
            confusion(truth[:seen], guess[:seen]),
        )


def _pixel_sums(prediction: Prediction, batch: Batch, mask: Mask, run: Run) -> dict[str, Tensor]:
    model = run.model
    target, pixels = model.patches(batch.image, batch.valid, mask.masked)
    weight = pixels[:, :, None, :].expand(-1, -1, model.num_bands, -1)
    by_band = (len(weight), weight.shape[1], model.num_bands, -1)
    predicted, target = prediction.pixels.reshape(by_band), target.reshape(by_band)
    pixels_head = run.contract.heads.get("pixels")
    beta: Any = pixels_head.options.get("beta", 0.1) if pixels_head else 0.1
    error = F.smooth_l1_loss(predicted, target, reduction="none", beta=beta)
    error = error.masked_fill(~weight, 0.0)
    absolute = (predicted - target).abs().masked_fill(~weight, 0.0) * model.normalise.std[:, None]
    every = (1, 2, 3)
    return {
        "smooth_l1": error.double().sum(every),
        "absolute": absolute.double().sum(every),
        "scalars": weight.sum(every),
    }


def _cross_entropy(run: Run, logits: Tensor, counts: Tensor) -> Tensor:
    for head in run.heads.values():
        if isinstance(head, LandCoverHead):
            return head.cross_entropy(logits, counts).double().sum(1)
    return torch.full((len(logits),), float("nan"))
