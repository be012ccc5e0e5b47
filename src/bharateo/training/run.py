"""Finished runs, their weights, and checkpoints to resume from; ``contract`` has the layout.

Weights come from files that anybody may have written: safetensors of the promised form, or refused.
Nothing of them is ever executed; a pickle is recognised by its first bytes and not opened.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, FiniteFloat
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from bharateo.artefacts import Record, checked, parse_json, shortened
from bharateo.chips.store import DATASET_FILE, Dataset
from bharateo.config import Config, ModelConfig, parse_config
from bharateo.errors import ConfigError, ContractError, DatasetError, RunError
from bharateo.files import open_file, write_atomically, write_json
from bharateo.landcover import BHARATEO_CLASSES
from bharateo.models.embedding import linear_inputs
from bharateo.models.heads import Heads, build_heads
from bharateo.models.mae import MaskedAutoencoder, Normalise, build_model, num_parameters
from bharateo.sensor import Sensor, named_bands
from bharateo.training.contract import (
    BEST_FILE,
    CHECKPOINT_FILE,
    CONTRACT_FILE,
    MODEL_FILE,
    SCHEMA_VERSION,
    Contract,
    WeightsFile,
    check_dataset,
    check_inside,
    read_contract,
)
from bharateo.training.optimisers import own_parts, whole
from bharateo.version import __version__


def dataset_fingerprint(dataset: Dataset) -> str:
    """SHA-256 of ``dataset.json``, which holds the checksums of everything else."""
    return hashlib.sha256((dataset.path / DATASET_FILE).read_bytes()).hexdigest()


def model_statistics(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Mean and std per band a model normalises with; 0 and 1 where the sensor needs none, and 1
    for the std of a band that is constant.
    """
    if not dataset.sensor.standardised:
        return [0.0] * dataset.sensor.num_bands, [1.0] * dataset.sensor.num_bands
    return dataset.statistics.mean.tolist(), dataset.statistics.scale.tolist()


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
    config: Config,
    dataset: Dataset,
    module: nn.Module,
    run: Path,
    num_chips: int,
    best: BestEpoch | None = None,
) -> Contract:
    """What a model trained on ``dataset`` may be fed, and what made it.

    ``num_chips`` were presented in every epoch; the weights are those of the ``best`` one, or of
    the last.
    """
    training = config.training
    kept: dict[str, Any] = {}
    if best or training.average:
        kept = {"epoch": training.epochs, **(best.model_dump() if best else {})}
        kept = {"kept": {"rule": training.keep, **kept, "average": training.average}}
    plain = {
        "schema_version": SCHEMA_VERSION,
        "code_version": __version__,
        "sensor": dataset.sensor.to_json(),
        "nodata": "validity is stored apart; an invalid pixel takes its patch's valid mean",
        "statistics": dataset.statistics.to_json(),
        "majority_class": majority_class(dataset),
        "chip_px": config.model.chip_px,
        "patch_px": config.model.patch_px,
        "mask_ratio": config.model.mask_ratio,
        "class_scheme": dataset.info["class_scheme"],
        "model": asdict(config.model)
        | {
            # spelled out: what a name stands for may change
            "band_sets": {n: named_bands(each) for n, each in config.model.band_sets.items()}
        },
        "heads": {name: asdict(head) for name, head in config.heads.items()},
        "num_parameters": num_parameters(module),
        "presented": {"chips_per_epoch": num_chips, "epochs": training.epochs},
        "dataset": {
            "path": os.path.relpath(dataset.path, run),
            "fingerprint": dataset_fingerprint(dataset),
            "places": dataset.places,
            "origin": dataset.origin,
        },
        **kept,
        "attribution": list(dataset.attribution),
    }
    return checked(Contract, plain, str(run / CONTRACT_FILE), RunError, "build the dataset again")


@dataclass(frozen=True)
class Run:
    """A finished run: model and heads ready to use, and the contract they keep.

    With a ``band_set`` the contract is for input that holds its bands alone, see ``of_set``.
    ``device`` is where it is to compute; None: where its configuration says.
    """

    path: Path
    contract: Contract
    model: MaskedAutoencoder
    heads: Heads
    band_set: str | None = None
    device: torch.device | None = None

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in a folder; needs nothing but the folder.

        Raises:
            RunError: no finished run is there, its contract or its weights are damaged, are
                others than they were, or lie outside the folder. Nothing in them is executed.
        """
        path = Path(path)
        contract = read_contract(path)
        plain, where = contract.to_json(), str(path / CONTRACT_FILE)
        try:
            config = parse_config({key: plain[key] for key in ("model", "heads")}, where)
        except ConfigError as error:
            raise RunError(f"{error}; train the run again, or fetch it whole") from error
        bands = contract.sensor.num_bands

        def build() -> nn.ModuleDict:
            # The statistics are in the weights.
            model = build_model(
                config.model, [0.0] * bands, [1.0] * bands, contract.sensor.band_names
            )
            return nn.ModuleDict({"model": model, "heads": build_heads(config.heads, model)})

        check_inside(path, MODEL_FILE)
        least = _least_values(config.model, bands)
        both: Any = load_weights(path / MODEL_FILE, contract.weights, build, least).eval()
        run = cls(path, contract, both["model"], both["heads"])
        _check_normalisation(run)
        return run

    def of_set(self, name: str | None) -> Run:
        """The run as it takes input with the bands of one of its sets alone, in that order: sensor,
        statistics and checks are those of these bands. None: of all bands, the run as it is.

        Raises:
            ContractError: it was not trained on that set.
        """
        if name == self.band_set:
            return self
        if name is None or name not in self.contract.model.band_sets or self.band_set is not None:
            raise ContractError(
                f"bands: {self.path} was trained on no set {name!r} of bands; it takes "
                f"{self.contract.bands_taken}: choose among these, or pretrain a run with "
                "model.band_sets"
            )
        contract = self.contract.of_bands(self.contract.model.band_sets[name])
        return replace(self, contract=contract, band_set=name)

    def meeting(self, dataset: Dataset, band_set: str | None = None) -> tuple[Run, Dataset]:
        """The run and a dataset in the bands that both have: those of ``band_set``, if one is
        named; else all of the run's, else the run's largest set that the dataset holds.

        What a run without sets lacks in the dataset is for ``check`` to refuse.

        Raises:
            ContractError: the run was not trained on that set, or has sets, of which the dataset
                holds none.
        """
        held, sets = {*dataset.sensor.band_names}, self.contract.model.band_sets
        if band_set is None and sets and not {*self.sensor.band_names} <= held:
            band_set = self.contract.fitting_set(held)
            if band_set is None:
                raise ContractError(
                    f"bands: the dataset {dataset.path} holds "
                    f"{', '.join(dataset.sensor.band_names)}, and the run {self.path} takes "
                    f"{self.contract.bands_taken}: use a dataset that holds one of these, or "
                    "pretrain a run with model.band_sets of those that are there"
                )
        run = self if band_set is None else self.of_set(band_set)
        bands = run.sensor.band_names
        return run, dataset.with_bands(bands) if {*bands} <= held else dataset

    @property
    def weights_sha256(self) -> str:
        """What tells the run's weights from others, of the file as it is now."""
        with open_file(self.path / MODEL_FILE) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def on(self, device: torch.device) -> Run:
        """The run with its weights on a device; a copy of them where they lie elsewhere."""
        if next(self.model.parameters()).device == device:
            return self
        model, heads = copy.deepcopy(self.model).to(device), copy.deepcopy(self.heads).to(device)
        return replace(self, model=model, heads=heads)

    @property
    def own_files(self) -> tuple[Path, ...]:
        """What makes the folder a run."""
        return self.path / MODEL_FILE, self.path / CONTRACT_FILE

    @property
    def sensor(self) -> Sensor:
        """The sensor the model was trained on, with the bands that input has to hold."""
        return self.contract.sensor

    @property
    def bands_read(self) -> str:
        """The bands that input has to hold, for people."""
        names = ", ".join(self.sensor.band_names)
        every = self.model.num_bands
        return f"the set {self.band_set} ({names}) of the run's {every} bands"

    @property
    def normalise(self) -> Normalise:
        """The model's normalisation, of the bands that input has to hold."""
        whole = self.model.normalise
        if self.band_set is None:
            return whole
        places = list(self.model.band_sets[self.band_set])
        return Normalise(whole.mean[places].tolist(), whole.std[places].tolist())

    def own_dataset(self) -> Dataset:
        """The dataset the run was trained on, in the bands it was trained on.

        Raises:
            DatasetError: it is no longer where it was.
        """
        dataset = Dataset.open(self.path / self.contract.dataset.path)
        bands = self.sensor.band_names
        return dataset.with_bands(bands) if {*bands} <= {*dataset.sensor.band_names} else dataset

    def unchanged_dataset(self) -> Dataset:
        """``own_dataset``, if it is still the one that the run was trained on.

        Raises:
            DatasetError: it has gone, or is another one.
        """
        dataset = self.own_dataset()
        if dataset_fingerprint(dataset) != self.contract.dataset.fingerprint:
            raise DatasetError(
                f"{dataset.path} is not the dataset that {self.path} was trained on any more: put "
                "that one back"
            )
        return dataset

    def check(self, dataset: Dataset, allow: Collection[str] = ()) -> dict[str, str]:
        """Refuse a dataset the model must not be fed.

        ``allow`` are fields (bands, unit, statistics) that may differ; returned is how they do.

        Raises:
            ContractError: bands, unit, classes, size or statistics differ; the message names the
                field.
        """
        return check_dataset(self.contract, dataset, self.path, allow)


def _least_values(model: ModelConfig, num_bands: int) -> int:
    """Numbers that a model has in its first linear layers and its encoder's blocks alone."""
    block = (4 + 2 * model.mlp_ratio) * model.width**2
    inputs = linear_inputs(model.embedding, num_bands, model.patch_px)
    of_set = 1 + (2 * model.num_filters if model.embedding == "energies" else 0)
    return model.depth * block + (inputs + of_set * len(model.band_sets)) * model.width


def _check_normalisation(run: Run) -> None:
    """Refuse a contract whose statistics are not those its model normalises with."""
    statistics, num_bands = run.contract.statistics.as_arrays(), run.sensor.num_bands
    expected = {"mean": [0.0] * num_bands, "std": [1.0] * num_bands}
    if run.sensor.standardised:
        expected = {"mean": statistics.mean.tolist(), "std": statistics.scale.tolist()}
    for name in ("mean", "std"):
        found = getattr(run.model.normalise, name)
        if not torch.equal(found, torch.tensor(expected[name], dtype=found.dtype)):
            raise RunError(
                f"{run.path / CONTRACT_FILE}: statistics.{name} is not what the weights normalise "
                "with; restore both files, or pretrain again into another folder"
            )


# Weights from a file that anybody may have written.

_PICKLES = (b"PK\x03\x04", b"\x80")
"""How files of ``torch.save`` begin: a zip archive with a pickle in it, or a pickle."""


def not_its_weights(file: Path, reason: object) -> RunError:
    """The refusal of a file that is not what its contract names."""
    return RunError(
        f"{file} does not hold the weights its contract names ({reason}); "
        "restore the file or pretrain again into another folder"
    )


def load_weights(
    file: Path, promised: WeightsFile | None, build: Callable[[], nn.Module], least_values: int
) -> nn.Module:
    """The module that ``build`` makes, with the tensors of a safetensors file in it.

    It holds ``least_values`` numbers or more: no memory is taken for it if the file holds fewer.

    Raises:
        RunError: the file is a pickle, damaged, missing or not the ``promised`` one, or its
            tensors are others than the module's, or hold values that are no numbers.
    """
    try:
        _refuse_pickle(file)
        _check_sum(file, promised)
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise not_its_weights(file, shortened(str(error))) from error
    num_values = sum(each.numel() for each in tensors.values())
    if num_values < least_values:
        raise not_its_weights(file, f"{num_values:,} values of {least_values:,} or more")
    try:
        module = build()
    except Exception as error:  # whatever a layer says of sizes that are none
        reason = f"no such model can be built: {shortened(str(error))}"
        raise not_its_weights(file, reason) from error
    if wrong := _difference(tensors, module.state_dict()):
        raise not_its_weights(file, wrong)
    module.load_state_dict(tensors)
    return module


def _refuse_pickle(file: Path) -> None:
    with open_file(file) as opened:
        start = opened.read(9)
        # Safetensors begin with eight bytes of length, whose first may be a pickle's, and a brace.
        if start.startswith(_PICKLES) and start[8:] != b"{":
            raise RunError(
                f"{file} is a pickle, which may run any program, and no safetensors; nothing in it "
                "was executed: restore the file, or get the run from someone you trust"
            )


def _check_sum(file: Path, promised: WeightsFile | None) -> None:
    """Refuse a file that is not the one that was promised, if one was."""
    if promised is None:
        return
    size = file.stat().st_size
    if size != promised.bytes:
        raise not_its_weights(file, f"{size} bytes of {promised.bytes}")
    with open_file(file) as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != promised.sha256:
            raise not_its_weights(file, "its SHA-256 is another")


def _difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not as expected, None if all are."""
    for name in sorted({*found, *expected}):
        if name not in expected:
            return f"{shortened(name)} is not the model's"
        if name not in found:
            return f"{name} is missing"
        there, wanted = ((t.dtype, tuple(t.shape)) for t in (found[name], expected[name]))
        if there != wanted:
            return f"{name} is {there[0]} {shortened(str(there[1]))}, not {wanted[0]} {wanted[1]}"
        if not found[name].isfinite().all():
            return f"{name} holds values that are no numbers"
    return None


# Checkpoints.


@dataclass(frozen=True)
class Checkpoint:
    """Training frozen after ``step`` steps.

    ``sums`` are the metric sums of the epoch under way, name -> [sum, count].
    """

    step: int
    sums: dict[str, list[float]]
    state: dict[str, Tensor]


class CheckpointHeader(Record):
    """What a checkpoint's header says beside the tensors."""

    step: Annotated[int, Field(ge=0, le=2**53)]
    sums: dict[str, tuple[FiniteFloat, Annotated[FiniteFloat, Field(ge=0)]]]


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
    path, remedy = run / CHECKPOINT_FILE, "delete it to train from the start"
    if not path.exists():
        return None
    header, state = _read_tensors(path, "progress", remedy)
    plain = parse_json(header, str(path), RunError, remedy)
    progress = checked(CheckpointHeader, plain, str(path), RunError, remedy)
    return Checkpoint(progress.step, {name: [*sums] for name, sums in progress.sums.items()}, state)


def _read_tensors(path: Path, key: str, remedy: str) -> tuple[str, dict[str, Tensor]]:
    """What a file's header says under ``key``, and its tensors."""
    try:
        open_file(path).close()  # no pipe is waited for
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(key, "null")
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({shortened(str(error))}); {remedy}") from error


class BestEpoch(Record):
    """The epoch, from 1, with the lowest loss on the val split so far."""

    epoch: Annotated[int, Field(ge=1, le=2**53)]
    val_loss: FiniteFloat


def save_best(run: Path, best: BestEpoch, weights: Mapping[str, Tensor]) -> None:
    """Replace the weights of the best epoch so far as a whole.

    Raises:
        StorageError: the disk is full; the previous ones are untouched.
    """
    content = save(dict(weights), {"best": best.model_dump_json()})
    write_atomically(run / BEST_FILE, lambda file: file.write(content))


def load_best(run: Path, objective: nn.Module) -> tuple[BestEpoch, dict[str, Tensor]]:
    """The best epoch so far, and its weights.

    Raises:
        RunError: the file is missing, damaged, or of another model.
    """
    path, remedy = run / BEST_FILE, f"delete {(run / BEST_FILE).parent} to train from the start"
    header, weights = _read_tensors(path, "best", remedy)
    plain = parse_json(header, str(path), RunError, remedy)
    best = checked(BestEpoch, plain, str(path), RunError, remedy)
    if wrong := _difference(weights, objective.state_dict()):
        raise RunError(f"{path} is not of this model ({wrong}); {remedy}")
    return best, weights


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def training_state(
    objective: nn.Module,
    optimisers: Sequence[Optimizer],
    average: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weights, optimiser states and averages by the names of their parameters, whole, on the CPU.

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
    for name, value in (average or {}).items():
        gathered = whole(value).cpu()  # by all ranks
        if weights:
            state[f"average.{name}"] = gathered
    return state


def restore_training_state(
    state: Mapping[str, Tensor],
    objective: nn.Module,
    optimisers: Sequence[Optimizer],
    file: Path = Path(CHECKPOINT_FILE),
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Put back what ``training_state`` took, also on another number of ranks, by all of them.

    Raises:
        RunError: the state, of ``file``, is not of this model, these optimisers and ``average``.
    """
    average = average or {}
    weights: dict[str, Any] = {}
    averaged: dict[str, Tensor] = {}
    slots: dict[str, Any] = {}
    for name, value in state.items():
        if name.startswith("optimiser."):
            _, slot, parameter = (*name.split(".", 2), "")[:3]
            slots.setdefault(parameter, {})[slot] = value
        elif name.startswith("average."):
            averaged[name.removeprefix("average.")] = value
        else:
            weights[name] = value
    made: Any = {}
    if slots:
        own, present = get_state_dict(objective, optimisers)
        made = present["state"]
    else:  # of before the first step
        own = get_model_state_dict(objective)
    wrong = next(_misfits(weights, slots, own, made), None)
    if not wrong and (off := _difference(averaged, average)):
        wrong = f"of its averages {off}"
    if wrong:
        raise RunError(f"{file} is not of this model ({wrong}); delete it to train from the start")
    for name, value in average.items():
        shard, part = own_parts(value, averaged[name])
        shard.copy_(part)
    if not slots:
        set_model_state_dict(objective, weights, options=_WHOLE)
        return
    set_state_dict(
        objective,
        optimisers,
        model_state_dict=weights,
        optim_state_dict={"state": slots, "param_groups": present["param_groups"]},
        options=_WHOLE,
    )


def _misfits(
    weights: Mapping[str, Tensor],
    slots: Mapping[str, Mapping[str, Tensor]],
    own: Mapping[str, Any],
    present: Mapping[str, Any],
) -> Iterator[str]:
    """What in a checkpoint's weights and optimiser state is not as it is in the model's own."""
    for name in sorted({*weights, *own}):
        if name not in own or name not in weights:
            yield f"{shortened(name)} is {'not its' if name not in own else 'missing'}"
        elif (weights[name].shape, weights[name].dtype) != (own[name].shape, own[name].dtype):
            yield f"{name} is {weights[name].dtype} {[*weights[name].shape]}"
    for name, kept in slots.items():
        theirs = present.get(name, {})
        if {*kept} != {*theirs}:
            yield f"the optimiser's state of {shortened(name)} is another"
        for slot, value in kept.items():
            if isinstance(theirs.get(slot), Tensor) and value.shape != theirs[slot].shape:
                yield f"the optimiser's {slot} of {name} is {[*value.shape]}"
    for name, value in [
        *weights.items(),
        *(one for kept in slots.values() for one in kept.items()),
    ]:
        if not value.isfinite().all():
            yield f"{shortened(name)} holds values that are no numbers"


def save_run(run: Path, weights: Mapping[str, Tensor], contract: Contract) -> None:
    """Write the weights, then the contract that declares the run complete.

    The contract as written says under ``weights`` how many bytes they have and their SHA-256.
    """
    content = save(dict(weights))
    write_atomically(run / MODEL_FILE, lambda file: file.write(content))
    weighed = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(run / CONTRACT_FILE, {**contract.to_json(), "weights": weighed})
