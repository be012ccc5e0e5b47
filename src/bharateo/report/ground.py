"""The ground of a dataset: its regions as maps, their classes, and what was read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bharateo.chips.store import Dataset
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, LandCoverClass, classes_of
from bharateo.report import panels, render
from bharateo.report.panels import Outline, Panel
from bharateo.sensor import Sensor

if TYPE_CHECKING:
    import pandas as pd

MOST_REGIONS_DRAWN = 6
_MOST_SQUARES_DRAWN = 300
_MOST_NAMES_IN_SIGHT = 20


def outlines(chips: pd.DataFrame, by_block: bool) -> list[Outline]:
    """What to draw on a region's map: where its blocks' squares lie, or each square by itself."""
    groups = chips.groupby(["split", "block"] if by_block else ["split", "chip"], sort=True)
    found = []
    for (split, _), own in groups:
        row, col = int(own["row"].min()), int(own["col"].min())
        end_row = int((own["row"] + own["size_px"]).max())
        end_col = int((own["col"] + own["size_px"]).max())
        found.append(Outline(row, col, end_row - row, end_col - col, str(split)))
    # train first, so that what is held out is drawn over it
    return sorted(found, key=lambda outline: outline.split != "train")


def shown(dataset: Dataset) -> dict[str, Any]:
    """What every picture needs to be understood: composites, stretches, classes and colours."""
    sensor = render.as_shown(dataset)
    return {
        "sensor": sensor,
        "composites": list(sensor.composites),
        "several": len(sensor.composites) > 1,
        "stretches": "; ".join(render.stretch_note(sensor, name) for name in sensor.composites),
        "scheme": dataset.info["class_scheme"],
        "legend": panels.class_legend(classes_held(dataset)),
    }


def native_counts(dataset: Dataset) -> dict[str, int]:
    """Pixels of every native code that occurs in the dataset's regions."""
    counts: Counter[str] = Counter()
    for record in dataset.info["regions"]:
        counts.update(record["native_counts"])
    return {code: num for code, num in counts.items() if num}


def classes(dataset: Dataset) -> tuple[LandCoverClass, ...]:
    """The eight classes, as they are called on this ground."""
    return classes_of(native_counts(dataset), dataset.info["class_scheme"]["native"])


def classes_held(dataset: Dataset) -> list[LandCoverClass]:
    """Those of the eight classes that occur on this ground."""
    native, counts = dataset.info["class_scheme"]["native"], native_counts(dataset)
    held = {class_id for code, (_, class_id) in native.items() if code in counts}
    return [each for each in classes(dataset) if each.id in held]


def regions(dataset: Dataset) -> dict[str, Any]:
    """The largest regions as maps, each with its histogram, and the names of the others."""
    records = dataset.info["regions"]
    # a dataset of very many regions keeps overviews of some only
    drawn = [record for record in records if "overview" in record][:MOST_REGIONS_DRAWN]
    names_drawn = {record["name"] for record in drawn}
    not_drawn = [r["name"] for r in records if r["name"] not in names_drawn]
    has_splits, sensor = set(dataset.chips["split"]) != {"train"}, render.as_shown(dataset)
    return {
        "regions": [_region(dataset, sensor, record, has_splits) for record in drawn],
        "regions_not_drawn": not_drawn,
        "fold_not_drawn": len(not_drawn) > _MOST_NAMES_IN_SIGHT,
        "splits_drawn": has_splits,
    }


def small_map(dataset: Dataset, name: str) -> Panel | None:
    """A region as one picture with its held-out ground outlined, None where none is kept of it."""
    record = next(each for each in dataset.info["regions"] if each["name"] == name)
    if "overview" not in record:
        return None
    sensor = render.as_shown(dataset)
    stored, class_ids, valid = dataset.overview(name)
    rgb = render.composite_rgb(render.physical(stored, sensor), sensor, valid)
    height, width = (int(record["overview"]["step_px"]) * side for side in class_ids.shape)
    chips = dataset.chips[dataset.chips["region"] == name]
    held_out = outlines(chips[chips["split"] != "train"], by_block=True)
    alt = f"{name}, {sensor.default_composite}, with {len(held_out)} held-out blocks outlined"
    label = "the ground; dark blocks are held out" if held_out else "the ground"
    return Panel(label, alt, height, width, render.photo_uri(rgb), (), held_out, "panel map")


def _region(
    dataset: Dataset, sensor: Sensor, record: Mapping[str, Any], has_splits: bool
) -> dict[str, Any]:
    name, scheme, called = record["name"], dataset.info["class_scheme"], classes(dataset)
    chips = dataset.chips[dataset.chips["region"] == name]
    by_block = has_splits or len(chips) > _MOST_SQUARES_DRAWN
    frames = outlines(chips, by_block)
    stored, class_ids, valid = dataset.overview(name)
    stored = render.physical(stored, sensor)
    # overviews keep every step_px-th pixel
    height, width = (int(record["overview"]["step_px"]) * side for side in class_ids.shape)
    size = f"{record['shape'][1]:,} by {record['shape'][0]:,} pixels"
    maps = [
        (render.composite_rgb(stored, sensor, valid, each), frames, each, f"{name}, {size}, {each}")
        for each in sensor.composites
    ]
    covers = f"Land cover of {name}: {panels.shares(class_ids, most=4, classes=called)}"
    of_blocks = frames if by_block else []
    maps.append((render.class_rgb(class_ids), of_blocks, f"{scheme['name']} classes", covers))
    counts = chips["split"].value_counts()
    squares = ", ".join(f"{counts[s]} {s}" for s in ("train", "val", "test") if s in counts)
    return {
        "name": name,
        "where": _where(record),
        "size": size,
        "squares": f"{squares or 'no'} squares of {dataset.size_px} px",
        "panels": [
            Panel(label, alt, height, width, render.photo_uri(rgb), (), drawn, "panel map")
            for rgb, drawn, label, alt in maps
        ],
        "histogram": histogram(record["native_counts"], scheme, called),
        "provenance": [
            (
                f"{layer} {key}".strip().replace("_", " "),
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            )
            for layer, facts in record.get("provenance", {}).items()
            for key, value in (facts if isinstance(facts, Mapping) else {"": facts}).items()
        ],
    }


def degrees(value: float, positive: str, negative: str, digits: int = 3) -> str:
    """A longitude or latitude with the letter of its hemisphere, e.g. ``12.497° E``."""
    wrapped = value - 360 if value > 180 else value
    return f"{abs(wrapped):.{digits}f}° {positive if wrapped >= 0 else negative}"


def _where(record: Mapping[str, Any]) -> str:
    """The corners in degrees, hemispheres by letter, and the grid's reference system."""
    if "bounds_lonlat" not in record:
        return str(record.get("crs", ""))

    west, south, east, north = record["bounds_lonlat"]
    lon = f"{degrees(west, 'E', 'W')} to {degrees(east, 'E', 'W')}"
    return f"{lon}, {degrees(south, 'N', 'S')} to {degrees(north, 'N', 'S')} ({record['crs']})"


def histogram(
    native_counts: Mapping[str, int],
    scheme: Mapping[str, Any],
    called: panels.Classes = BHARATEO_CLASSES,
) -> list[dict[str, Any]]:
    """A row for every native code that occurs: name, class, pixels and share, nodata last."""
    nodata = str(scheme["nodata"])
    rows = []
    occurring = (code for code, num in native_counts.items() if num)
    for code in sorted(occurring, key=lambda code: (code == nodata, int(code))):
        name, class_id = scheme["native"].get(code, ("no data", IGNORE))
        labelled = code != nodata
        rows.append({
            "code": int(code),
            "name": name if labelled else "no data",
            "class_name": panels.class_name(class_id, called) if labelled else "ignored",
            "css": panels.css(called[class_id]) if labelled else None,
            "num": native_counts[code],
            "share": native_counts[code] / sum(native_counts.values()),
            "bar": native_counts[code] / max(native_counts.values()),
        })  # fmt: skip
    return rows
