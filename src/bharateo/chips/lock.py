"""Whose a dataset folder is: what its build was asked for, and who is writing there now."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bharateo.artefacts import read_json
from bharateo.chips.store import (
    BUILD_FOLDER,
    CHIPS_FILE,
    DATASET_FILE,
    ITEMS_FILE,
    LAYERS,
    RECIPE_FILE,
)
from bharateo.config import PlanConfig
from bharateo.errors import ConfigError, DatasetError, EmptyRegionError
from bharateo.files import read_bytes, remove_leftovers, take_lock, write_json, write_text
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, ClassScheme
from bharateo.outputs import free_name, record_in
from bharateo.regions import Region
from bharateo.sources import Recipe
from bharateo.version import __version__

_PLAN_FILE = "plan.json"
_LOCK_FILE = "lock"
_CURRENT_FILE = "current"
_SHARD_FILE = re.compile(rf"({'|'.join(LAYERS)})-\d{{5,}}\.npy")
_OVERVIEWS = "overviews"
_PARTS = (CHIPS_FILE, ITEMS_FILE, RECIPE_FILE)
_GRID = ("name", "crs", "transform", "shape")
_MOST_DIFFERENCES = 4


def identity(recipe: Recipe, plan: PlanConfig, seed: int) -> dict[str, Any]:
    """What decides a dataset's contents, as it stands in ``dataset.json``."""
    record = {
        "name": recipe.name,
        "source": {"image": recipe.image.name, "landcover": recipe.landcover.name},
        "sensor": recipe.image.sensor.to_json(),
        "class_scheme": _scheme(recipe.landcover.scheme),
        "settings": dict(recipe.settings),
        "regions": [grid(region) for region in recipe.regions],
        "plan": asdict(plan),
        "seed": seed,
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def identity_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """The identity kept in a ``dataset.json``."""
    keys = ("name", "source", "sensor", "class_scheme", "settings", "plan", "seed")
    planned = info.get("planned_regions", info["regions"])
    regions = [{key: region[key] for key in _GRID} for region in planned]
    return {key: info[key] for key in keys} | {"regions": regions}


def _scheme(scheme: ClassScheme) -> dict[str, Any]:
    return {
        "name": scheme.name,
        "classes": [asdict(land_class) for land_class in BHARATEO_CLASSES],
        "native": {str(code): list(meaning) for code, meaning in scheme.native.items()},
        "nodata": scheme.nodata,
        "ignore": IGNORE,
    }


def grid(region: Region) -> dict[str, Any]:
    """A region's name and pixel grid, as they stand in ``dataset.json``."""
    geobox = region.geobox
    return {
        "name": region.name,
        "crs": str(geobox.crs),
        "transform": list(geobox.affine)[:6],
        "shape": list(geobox.shape),
    }


@contextmanager
def locked(
    output: Path, wanted: Mapping[str, Any], say: Callable[[str], None] = lambda _: None
) -> Iterator[Path]:
    """Hold ``output`` for a build of ``wanted`` and keep others out; its working folder.

    An unfinished build of another plan there is set aside, to be gone on with where its command is
    given again before this one ends; ``say`` is told. What it had written as parts of a dataset
    goes: a dataset is of one plan.

    Raises:
        DatasetError: the folder holds other files, or is being written to.
    """
    _check_ours(output)
    work = output / BUILD_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK_FILE).open("wb") as lock:
        busy = (
            f"another build is writing to {output}: wait for it to end, or choose another --output"
        )
        take_lock(lock, DatasetError(busy))
        remove_leftovers(output)
        mark = {"code_version": __version__, **wanted}
        own = work / _name(mark)
        _make_current(output, own, mark, say)
        try:
            yield own
        except (ConfigError, EmptyRegionError):
            shutil.rmtree(own)  # this plan can never succeed
            if not any(work.glob(f"*/{_PLAN_FILE}")):
                shutil.rmtree(work)
            raise


def _name(mark: Mapping[str, Any]) -> str:
    """The name of a plan's working folder: of all that decides what is read.

    How many failures are allowed does not, so that a build stopped by them goes on with more.
    """
    plan = {key: value for key, value in mark["plan"].items() if key != "max_failed"}
    text = json.dumps({**mark, "plan": plan}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _make_current(
    output: Path, own: Path, mark: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Make what lies in the folder beside the working folders that of one plan, or nothing."""
    current = own.parent / _CURRENT_FILE
    if not current.exists() or current.read_text(encoding="utf-8") != own.name:
        others = sorted({file.parent for file in own.parent.glob(f"*/{_PLAN_FILE}")} - {own})
        if others and not own.exists():
            there = read_json(others[-1] / _PLAN_FILE, DatasetError, f"delete {own.parent}")
            say(
                f"{output} holds an unfinished build of another plan "
                f"({_differences(there, mark)}): it is set aside until this one ends"
            )
        for record in own.parent.glob("*/shard-*.json"):  # first: they say that files are whole
            record.unlink()
        for path in output.iterdir():
            if path.name == _OVERVIEWS:
                shutil.rmtree(path)
            elif path.name in _PARTS or _SHARD_FILE.fullmatch(path.name):
                path.unlink()
        write_text(current, own.name)
    if not (own / _PLAN_FILE).exists():
        write_json(own / _PLAN_FILE, mark)


def _check_ours(output: Path) -> None:
    ours = _is_work(output / BUILD_FOLDER) or _is_dataset(output / DATASET_FILE)
    if output.exists() and not ours and (not output.is_dir() or any(output.iterdir())):
        raise DatasetError(
            f"{output} holds other files and no dataset: choose a folder that is empty or does not "
            f"exist yet: --output {free_name(output)}"
        )


def _is_work(folder: Path) -> bool:
    """Whether a build of ours works or worked here; it may have died before it wrote its plan."""
    plans = [file for file in folder.glob(f"*/{_PLAN_FILE}") if file.is_file()]
    if plans:
        return all("code_version" in record_in(read_bytes(file)) for file in plans)
    return folder.is_dir() and all(
        path.name in (_LOCK_FILE, _CURRENT_FILE) or path.name.endswith(".partial")
        for path in folder.rglob("*")
        if not path.is_dir()
    )


def _is_dataset(file: Path) -> bool:
    return file.is_file() and {"sensor", "class_scheme"} <= {*record_in(read_bytes(file))}


def check_same(output: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Make sure that what a folder holds is what is wanted.

    Raises:
        DatasetError: it is not; the message says in what.
    """
    if said := _differences(there, wanted):
        raise DatasetError(
            f"{output} holds the dataset of another plan ({said}): delete the folder to build it "
            f"anew, or choose another: --output {free_name(output)}"
        )


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In what two plans differ, in a few words; nothing if they do not."""
    old, new = dict(_flat(there)), dict(_flat(wanted))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    said = [
        f"{key} is {json.dumps(old.get(key))} there and {json.dumps(new.get(key))} here"
        for key in keys[:_MOST_DIFFERENCES]
    ]
    more = f" and {len(keys) - len(said)} more" if len(keys) > len(said) else ""
    return "; ".join(said) + more


def _flat(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested JSON with its dotted name, e.g. ``plan.split.test``."""
    if isinstance(record, Mapping) and record:
        items = record.items()
    elif isinstance(record, list) and record:
        items = {str(place): value for place, value in enumerate(record)}.items()
    else:
        yield name, record
        return
    for key, value in items:
        yield from _flat(value, f"{name}.{key}" if name else key)
