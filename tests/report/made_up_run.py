"""What a run folder holds, made up: scores that are easy to recognise in a page."""

import hashlib
import json

import numpy as np

from bharateo.config import HeadConfig
from bharateo.models.heads import declared_metrics
from bharateo.results import SplitScores

DECLARED = declared_metrics({"pixels": HeadConfig(1.0), "landcover": HeadConfig(0.2)})
METRICS = sorted((m for m in DECLARED if m.shown), key=lambda m: m.baselines != "ranked")


def fingerprint(dataset):
    return hashlib.sha256((dataset.path / "dataset.json").read_bytes()).hexdigest()


def scores(mae, accuracy, spread=0.03):
    """One predictor's record as the evaluation writes it."""
    confusion = np.zeros((8, 8), int)
    confusion[[0, 1, 3], [0, 1, 3]] = [700, 41, 52]
    confusion[1, 3] = 7
    record = {"confusion_masked": confusion.tolist()}
    values = {
        "loss": mae * 3,
        "rec_smooth_l1": mae,
        "esa_ce": 0.7,
        "masked_mae": mae,
        "esa_acc": accuracy + 0.1,
        "esa_acc_masked": accuracy,
        "esa_acc_visible": 0.99,
        "esa_balanced_acc_masked": accuracy - 0.2,
        "esa_macro_f1_masked": accuracy - 0.25,
    }
    for name, value in values.items():
        record[name] = value
        record[f"{name}_ci95"] = [value - spread, value + spread]
    return record


def split_scores(model=(0.041, 0.801), num_blocks=12):
    """A split in which the model stands as given against a copy of 0.060 and 0.750."""
    mae, accuracy = model
    gain, ratio = accuracy - 0.75, mae / 0.06
    return {
        "num_chips": 24,
        "num_blocks": num_blocks,
        "model": scores(mae, accuracy),
        "baselines": {
            "majority": scores(0.2, 0.4),
            "nearest_visible": scores(0.06, 0.75),
            "mean_colour": scores(0.09, 0.6),
            "bilinear": scores(0.055, 0.73),
        },
        "model_against_nearest_visible": {
            "masked_mae_ratio": ratio,
            "masked_mae_ratio_ci95": [ratio - 0.05, ratio + 0.05],
            "esa_acc_masked_gain": gain,
            "esa_acc_masked_gain_ci95": [gain - 0.03, gain + 0.03],
        },
    }


def typed(scores):
    """A split's record as the report reads it."""
    return SplitScores.model_validate_json(json.dumps(scores))


def history_row(epoch, has_val):
    train = {
        "loss": 0.5 / epoch,
        "rec_smooth_l1": 0.3 / epoch,
        "esa_ce": 1.0 / epoch,
        "masked_mae": 0.2 / epoch,
        "esa_acc": 1 - 0.5 / epoch,
        "esa_acc_masked": 1 - 0.6 / epoch,
        "esa_acc_visible": 1 - 0.4 / epoch,
    }
    row = {"epoch": epoch, **train, "lr": 1e-3, "chips_per_s": 100.0}
    return row | {f"val_{name}": 1.1 * value for name, value in train.items() if has_val}


def write_run(folder, files):
    """The run's files as they lie on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "contract.json").write_text(json.dumps(files.contract.to_json()))
    (folder / "evaluation.json").write_text(json.dumps(files.evaluation.model_dump()))
    (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in files.history))
    (folder / "config.yaml").write_text(files.config)
    if files.provenance.why:
        (folder / "provenance.json").write_text(json.dumps(files.provenance.model_dump()))
    return folder
