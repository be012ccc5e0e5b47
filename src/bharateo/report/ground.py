"""The ground of a dataset: its regions as maps, their classes, and what was read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bharateo.chips.store import Dataset
from bharateo.landcover import BHARATEO_CLASSES, IGNORE
from bharateo.report import panels, render
from bharateo.report.panels import Outline, Panel

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
    sensor = dataset.sensor
    return {
        "sensor": sensor,
        "composites": list(sensor.composites),
        "several": len(sensor.composites) > 1,
        "stretches": "; ".join(render.stretch_note(sensor, name) for name in sensor.composites),
        "scheme": dataset.info["class_scheme"],
        "legend": panels.class_legend(BHARATEO_CLASSES),
    }


def regions(dataset: Dataset) -> dict[str, Any]:
    """The largest regions as maps, each with its histogram, and the names of the others."""
    records = dataset.info["regions"]
    # a dataset of very many regions keeps overviews of some only
    drawn = [record for record in records if "overview" in record][:MOST_REGIONS_DRAWN]
    names_drawn = {record["name"] for record in drawn}
    not_drawn = [r["name"] for r in records if r["name"] not in names_drawn]
    has_splits = set(dataset.chips["split"]) != {"train"}
    return {
        "regions": [_region(dataset, record, has_splits) for record in drawn],
        "regions_not_drawn": not_drawn,
        "fold_not_drawn": len(not_drawn) > _MOST_NAMES_IN_SIGHT,
        "splits_drawn": has_splits,
    }


def _region(dataset: Dataset, record: Mapping[str, Any], has_splits: bool) -> dict[str, Any]:
    name, sensor, scheme = record["name"], dataset.sensor, dataset.info["class_scheme"]
    chips = dataset.chips[dataset.chips["region"] == name]
    by_block = has_splits or len(chips) > _MOST_SQUARES_DRAWN
    frames = outlines(chips, by_block)
    stored, classes, valid = dataset.overview(name)
    stored = render.physical(stored, sensor)
    # overviews keep every step_px-th pixel
    height, width = (int(record["overview"]["step_px"]) * side for side in classes.shape)
    size = f"{record['shape'][1]:,} by {record['shape'][0]:,} pixels"
    maps = [
        (render.composite_rgb(stored, sensor, valid, each), frames, each, f"{name}, {size}, {each}")
        for each in sensor.composites
    ]
    covers = f"Land cover of {name}: {panels.shares(classes, most=4)}"
    of_blocks = frames if by_block else []
    maps.append((render.class_rgb(classes), of_blocks, f"{scheme['name']} classes", covers))
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
        "histogram": histogram(record["native_counts"], scheme),
        "provenance": [
            (
                f"{layer} {key}".strip().replace("_", " "),
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            )
            for layer, facts in record.get("provenance", {}).items()
            for key, value in (facts if isinstance(facts, Mapping) else {"": facts}).items()
        ],
    }


def _where(record: Mapping[str, Any]) -> str:
    """The corners in degrees, hemispheres by letter, and the grid's reference system."""
    if "bounds_lonlat" not in record:
        return str(record.get("crs", ""))

    def degrees(value: float, positive: str, negative: str) -> str:
        wrapped = value - 360 if value > 180 else value
        return f"{abs(wrapped):.3f}° {positive if wrapped >= 0 else negative}"

    west, south, east, north = record["bounds_lonlat"]
    lon = f"{degrees(west, 'E', 'W')} to {degrees(east, 'E', 'W')}"
    return f"{lon}, {degrees(south, 'N', 'S')} to {degrees(north, 'N', 'S')} ({record['crs']})"


def histogram(native_counts: Mapping[str, int], scheme: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every native code that occurs: name, class, pixels and share, nodata last."""
    nodata = str(scheme["nodata"])
    rows = []
    for code in sorted(native_counts, key=lambda code: (code == nodata, int(code))):
        name, class_id = scheme["native"].get(code, ("no data", IGNORE))
        labelled = code != nodata
        rows.append({
            "code": int(code),
            "name": name if labelled else "no data",
            "class_name": panels.class_name(class_id) if labelled else "ignored",
            "css": panels.class_css(class_id) if labelled else None,
            "num": native_counts[code],
            "share": native_counts[code] / sum(native_counts.values()),
            "bar": native_counts[code] / max(native_counts.values()),
        })  # fmt: skip
    return rows
