"""The contract of a run: the form it must have on disk, and what input may be allowed to differ.

A contract may come from anybody, as every file of a run may: nothing is believed before its form
has been checked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from bharateo.chips.statistics import Statistics
from bharateo.chips.store import Dataset
from bharateo.errors import ContractError, RunError
from bharateo.sensor import Sensor

FAR = 4.0
"""``Statistics.distance`` from which on pixels are not those of the training. Other land lies up to
2 from a training set of several landscapes, about 4 from one of a single place; snow lies 5 to 8
from one without snow."""

_MOST = {
    "depth": 1000,
    "decoder_depth": 1000,
    "decoder_width": 2**14,
    "chip_px": 2**12,
}
"""Sizes of a model that its weights do not bound: beyond, building it takes for ever."""

_FORM: Mapping[str, Any] = {
    "schema_version": int,
    "code_version": str,
    "sensor": {
        "name": str,
        "title": str,
        "bands": [{"name": str, "resolution_m": float, "wavelength_nm": (float, None)}],
        "dtype": str,
        "scale": float,
        "offset": float,
        "unit": str,
        "composites": Mapping,
        "standardised": bool,
        "attribution": [str],
    },
    "statistics": {"mean": [float], "std": [float], "num_pixels": int},
    "majority_class": int,
    "chip_px": int,
    "patch_px": int,
    "mask_ratio": float,
    "class_scheme": {"classes": [{"id": int, "name": str}]},
    "model": {
        "name": str,
        "chip_px": int,
        "patch_px": int,
        "mask_ratio": float,
        "depth": int,
        "decoder_depth": int,
        "decoder_width": int,
    },
    "heads": Mapping,
    "num_parameters": int,
    "presented": {"chips_per_epoch": int, "epochs": int},
    "dataset": {"path": str, "fingerprint": str},
    "attribution": [str],
    "weights": ({"bytes": int, "sha256": str}, None),
}
"""Keys that a contract holds, and the type of each; a list is one of such items, None may miss."""


def check_form(contract: Any, file: Path) -> None:
    """Refuse what is no contract, or one that contradicts itself.

    Raises:
        RunError: a key is missing, of another type, or does not fit another one.
    """
    wrong = next(_misfits(_FORM, contract, ""), None) or next(_contradictions(contract), None)
    if wrong:
        raise RunError(f"{file}: {wrong}; restore the file, or pretrain again into another folder")


def _misfits(form: Any, value: Any, where: str) -> Iterator[str]:
    """What of a value has not the form asked for."""
    if isinstance(form, tuple):
        if value is not None:
            yield from _misfits(form[0], value, where)
    elif isinstance(form, list) and isinstance(value, list):
        for place, item in enumerate(value):
            yield from _misfits(form[0], item, f"{where}[{place}]")
    elif isinstance(form, Mapping) and isinstance(value, Mapping):
        for key, inner in form.items():
            path = f"{where}.{key}".lstrip(".")
            if key in value:
                yield from _misfits(inner, value[key], path)
            elif not isinstance(inner, tuple):
                yield f"key {path} is missing"
    elif isinstance(form, (list, Mapping)) or not _is(value, form):
        wanted = "mapping" if isinstance(form, Mapping) else getattr(form, "__name__", "list")
        found = f"a {type(value).__name__}" if isinstance(value, (list, dict)) else repr(value)[:80]
        yield f"{where or 'the whole'} is {found}, not of type {wanted.lower()}"


def _is(value: Any, kind: type) -> bool:
    """Whether JSON gave a value of a type: a whole number is a float too, true is no number."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number too long for a float
        return False


def _contradictions(contract: Mapping[str, Any]) -> Iterator[str]:
    """What in a contract of the right form cannot be."""
    num_bands, statistics, model = (
        len(contract["sensor"]["bands"]), contract["statistics"], contract["model"],
    )  # fmt: skip
    for name in ("mean", "std"):
        if len(statistics[name]) != num_bands:
            yield f"statistics.{name} has {len(statistics[name])} values for {num_bands} bands"
    if not num_bands:
        yield "sensor.bands is empty"
    if min(statistics["std"], default=0) < 0:
        yield "statistics.std holds a negative value"
    for name in ("chip_px", "patch_px", "mask_ratio"):
        if contract[name] != model[name]:
            yield f"{name} is {contract[name]}, model.{name} {model[name]}"
    for name, head in contract["heads"].items():
        yield from _misfits({"weight": float, "options": Mapping}, head, f"heads.{name}")
        for option, value in head["options"].items():
            if isinstance(value, (list, dict)):
                yield f"heads.{name}.options.{option} is a {type(value).__name__}, no plain value"
    for name, most in _MOST.items():
        if not 0 <= model[name] <= most:
            yield f"model.{name} is {model[name]}, not from 0 to {most}"
    if contract["sensor"]["scale"] <= 0:
        yield f"sensor.scale is {contract['sensor']['scale']}, not above 0"


# Input that differs


class Differences:
    """How some input differs from a contract: refused, unless the user allowed that field.

    ``found`` is what was allowed: field -> how it differs.
    """

    def __init__(self, allow: Collection[str] = ()) -> None:
        self.found: dict[str, str] = {}
        self._allow = frozenset(allow)

    def add(self, field: str, what: str, remedy: str) -> None:
        """Refuse or note one difference.

        Raises:
            ContractError: the field is not allowed to differ.
        """
        if field not in self._allow:
            raise ContractError(f"{field}: {what}; {remedy}, or go on with --allow {field}")
        self.found[field] = what


def check_dataset(
    contract: Mapping[str, Any], dataset: Dataset, run: Path, allow: Collection[str] = ()
) -> dict[str, str]:
    """How a dataset differs from a contract in the fields allowed to; see ``Run.check``."""
    trained, given = Sensor.from_json(contract["sensor"]), dataset.sensor
    differences = Differences(allow if trained.num_bands == given.num_bands else ())
    fields = {
        "bands": (list(trained.band_names), list(given.band_names)),
        "unit": (trained.unit, given.unit),
        "standardised": (trained.standardised, given.standardised),
        "classes": (contract["class_scheme"]["classes"], dataset.info["class_scheme"]["classes"]),
    }
    for name, (expected, found) in fields.items():
        if expected != found:
            what = (
                f"the run {run} was trained on {_brief(expected)}, the dataset {dataset.path} "
                f"holds {_brief(found)}"
            )
            remedy = f"use a dataset of the same {name} or pretrain a run on this one"
            if name not in ("bands", "unit"):
                raise ContractError(f"{name}: {what}; {remedy}")
            differences.add(name, what, remedy)
    if dataset.size_px < contract["chip_px"]:
        raise ContractError(
            f"size_px: the run {run} needs chips of {contract['chip_px']} px, the dataset "
            f"{dataset.path} stores {dataset.size_px}; build it with a larger data.plan.size_px"
        )
    if trained.standardised and not differences.found and dataset.statistics.num_pixels:
        check_statistics(contract, dataset.statistics, f"the dataset {dataset.path}", differences)
    return differences.found


def check_statistics(
    contract: Mapping[str, Any], found: Statistics, where: str, differences: Differences
) -> None:
    """Refuse pixels that are far from those of the training.

    Raises:
        ContractError: they are, and ``statistics`` is not allowed to differ.
    """
    trained = Statistics.from_json(contract["statistics"])
    distance = found.distance(trained)
    if distance < FAR:
        return
    names = Sensor.from_json(contract["sensor"]).band_names
    worst = int((abs(found.mean - trained.mean) / trained.std.clip(1e-12)).argmax())
    differences.add(
        "statistics",
        f"{where} lies {distance:.1f} standard deviations from what the run was trained on, beyond "
        f"{FAR:g}; {names[worst]} has mean {found.mean[worst]:.3g} and std {found.std[worst]:.3g}, "
        f"in the training {trained.mean[worst]:.3g} and {trained.std[worst]:.3g}",
        "check its unit and the order of its bands",
    )


def _brief(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else repr(value)
