"""The run folder: checkpoints to resume from, the finished weights and their contract.

::

    config.yaml                   the configuration as resolved, written first
    history.jsonl                 one line an epoch
    checkpoints/last.safetensors  weights, optimiser state and progress, replaced as a whole
    model.safetensors             the trained weights
    contract.json                 what the weights may be fed; written last: the run is complete
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

import bharateo
from bharateo.chips.store import DATASET_FILE, Dataset
from bharateo.config import Config, parse_config
from bharateo.errors import ContractError, RunError
from bharateo.files import write_atomically, write_json
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.models.heads import build_heads
from bharateo.models.mae import MaskedAutoencoder, build_model, num_parameters
from bharateo.sensor import Sensor

SCHEMA_VERSION = 1
CONTRACT_FILE = "contract.json"
MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
HISTORY_FILE = "history.jsonl"
CHECKPOINT_FILE = "checkpoints/last.safetensors"


def dataset_fingerprint(dataset: Dataset) -> str:
    """SHA-256 of ``dataset.json``, which holds the checksums of everything else."""
    return hashlib.sha256((dataset.path / DATASET_FILE).read_bytes()).hexdigest()


def model_statistics(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Mean and std per band a model normalises with; 0 and 1 where the sensor needs none."""
    if not dataset.sensor.standardised:
        return [0.0] * dataset.sensor.num_bands, [1.0] * dataset.sensor.num_bands
    return dataset.statistics.mean.tolist(), dataset.statistics.std.tolist()


def majority_class(dataset: Dataset) -> int:
    """The class with the most labelled pixels in the train split; the lowest id of equals."""
    train = dataset.indices("train")
    labelled = dataset.column("labelled_fraction")[train]
    share = [
        float(np.nansum(dataset.column(f"fraction_{c.name}")[train] * labelled))
        for c in BHARATEO_CLASSES
    ]
    return share.index(max(share))


def make_contract(
    config: Config, dataset: Dataset, module: nn.Module, run: Path, num_chips: int
) -> dict[str, Any]:
    """What a model trained on ``dataset`` may be fed, and what made it, as plain JSON.

    ``num_chips`` were presented in every epoch.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": bharateo.__version__,
        "sensor": dataset.sensor.to_json(),
        "nodata": "validity is stored apart; an invalid pixel takes its patch's valid mean",
        "statistics": dataset.statistics.to_json(),
        "majority_class": majority_class(dataset),
        "chip_px": config.model.chip_px,
        "patch_px": config.model.patch_px,
        "mask_ratio": config.model.mask_ratio,
        "class_scheme": dataset.info["class_scheme"],
        "model": asdict(config.model),
        "heads": {name: asdict(head) for name, head in config.heads.items()},
        "num_parameters": num_parameters(module),
        "presented": {"chips_per_epoch": num_chips, "epochs": config.training.epochs},
        "dataset": {
            "path": os.path.relpath(dataset.path, run),
            "fingerprint": dataset_fingerprint(dataset),
        },
        "attribution": list(dataset.attribution),
    }


@dataclass(frozen=True)
class Run:
    """A finished run: model and heads ready to use, and the contract they keep."""

    path: Path
    contract: Mapping[str, Any]
    model: MaskedAutoencoder
    heads: nn.ModuleDict

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in a folder; needs nothing but the folder.

        Raises:
            RunError: no finished run is there, or its weights are damaged.
        """
        path = Path(path)
        contract = read_contract(path)
        config = parse_config({"model": contract["model"], "heads": contract["heads"]}, str(path))
        bands = len(contract["sensor"]["bands"])
        model = build_model(config.model, [0.0] * bands, [1.0] * bands)  # loaded with the weights
        heads = build_heads(config.heads, model)
        try:
            state = load_file(path / MODEL_FILE)
            nn.ModuleDict({"model": model, "heads": heads}).load_state_dict(state)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise RunError(
                f"{path / MODEL_FILE} does not hold the weights its contract names ({error}); "
                "restore the file or pretrain again into another folder"
            ) from error
        return cls(path, contract, model.eval(), heads.eval())

    @property
    def sensor(self) -> Sensor:
        """The sensor the model was trained on."""
        return Sensor.from_json(self.contract["sensor"])

    def own_dataset(self) -> Dataset:
        """The dataset the run was trained on.

        Raises:
            DatasetError: it is no longer where it was.
        """
        return Dataset.open(self.path / self.contract["dataset"]["path"])

    def check(self, dataset: Dataset) -> None:
        """Refuse a dataset the model must not be fed.

        Raises:
            ContractError: bands, unit, classes or size differ; the message names the field.
        """
        check_contract(self.contract, dataset, self.path)


def read_contract(run: Path) -> dict[str, Any]:
    """The contract of a finished run.

    Raises:
        RunError: there is none, or another version of the package wrote it.
    """
    try:
        contract: dict[str, Any] = json.loads((run / CONTRACT_FILE).read_text())
    except FileNotFoundError:
        state = "its training has not finished: run the same pretrain command again to go on"
        if not (run / CONFIG_FILE).exists():
            state = "there is no run; make one with `bharateo pretrain`"
        raise RunError(f"{run} holds no {CONTRACT_FILE}: {state}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{run / CONTRACT_FILE} is unreadable ({error}); restore it") from error
    if contract.get("schema_version") != SCHEMA_VERSION:
        raise RunError(
            f"{run / CONTRACT_FILE} has schema version {contract.get('schema_version')}, this "
            f"bharateo {bharateo.__version__} reads {SCHEMA_VERSION}; open it with bharateo "
            f"{contract.get('code_version')}"
        )
    return contract


def check_contract(contract: Mapping[str, Any], dataset: Dataset, run: Path) -> None:
    """See ``Run.check``."""
    trained, given = Sensor.from_json(contract["sensor"]), dataset.sensor
    fields = {
        "bands": (list(trained.band_names), list(given.band_names)),
        "unit": (trained.unit, given.unit),
        "standardised": (trained.standardised, given.standardised),
        "classes": (contract["class_scheme"]["classes"], dataset.info["class_scheme"]["classes"]),
    }
    for name, (expected, found) in fields.items():
        if expected != found:
            raise ContractError(
                f"{name}: the run {run} was trained on {_brief(expected)}, the dataset "
                f"{dataset.path} holds {_brief(found)}; use a dataset of the same {name} or "
                "pretrain a run on this one"
            )
    if dataset.size_px < contract["chip_px"]:
        raise ContractError(
            f"size_px: the run {run} needs chips of {contract['chip_px']} px, the dataset "
            f"{dataset.path} stores {dataset.size_px}; build it with a larger data.plan.size_px"
        )


def _brief(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else repr(value)


@dataclass(frozen=True)
class Checkpoint:
    """Training frozen after ``step`` steps.

    ``sums`` are the metric sums of the epoch under way, name -> [sum, count].
    """

    step: int
    sums: dict[str, list[float]]
    state: dict[str, Tensor]


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint as a whole.

    Raises:
        StorageError: the disk is full; the previous checkpoint is untouched.
    """
    progress = json.dumps({"step": checkpoint.step, "sums": checkpoint.sums})
    content = save(checkpoint.state, {"progress": progress})
    write_atomically(run / CHECKPOINT_FILE, lambda file: file.write(content))


def load_checkpoint(run: Path) -> Checkpoint | None:
    """The run's checkpoint, None when there is none.

    Raises:
        RunError: the file is damaged.
    """
    path = run / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it to train from the start") from error
    return Checkpoint(progress["step"], progress["sums"], state)


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def training_state(objective: nn.Module, optimisers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Weights and optimiser states by the names of their parameters, whole, on the CPU.

    The same names and shapes for one rank, for several, and for shards (FSDP2). All ranks must
    call it; the first one alone gets something where the model is sharded.
    """
    if not any(optimiser.state for optimiser in optimisers):
        optimisers = []  # asking would make states up
    weights, kept = get_state_dict(objective, optimisers, options=_WHOLE)
    state: dict[str, Any] = dict(weights)
    slots: Any = kept.get("state", {})
    for name, each in slots.items():
        state |= {f"optimiser.{slot}.{name}": value for slot, value in each.items()}
    return state


def restore_training_state(
    state: Mapping[str, Tensor], objective: nn.Module, optimisers: Sequence[Optimizer]
) -> None:
    """Put back what ``training_state`` took, also on another number of ranks, by all of them."""
    weights: dict[str, Any] = {}
    slots: dict[str, Any] = {}
    for name, value in state.items():
        if name.startswith("optimiser."):
            _, slot, parameter = name.split(".", 2)
            slots.setdefault(parameter, {})[slot] = value
        else:
            weights[name] = value
    _, present = get_state_dict(objective, optimisers)
    set_state_dict(
        objective,
        optimisers,
        model_state_dict=weights,
        optim_state_dict={"state": slots, "param_groups": present["param_groups"]},
        options=_WHOLE,
    )


def save_run(run: Path, weights: Mapping[str, Tensor], contract: Mapping[str, Any]) -> None:
    """Write the weights, then the contract that declares the run complete."""
    content = save(dict(weights))
    write_atomically(run / MODEL_FILE, lambda file: file.write(content))
    write_json(run / CONTRACT_FILE, contract)
