"""What the page is told, as plain JSON: of itself, of an area, of a chip."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import gcd
from typing import Any

import numpy as np
from jaxtyping import Float, Int8, UInt8

from bharateo.chips.store import SPLITS
from bharateo.explorer.answers import covering_masks
from bharateo.explorer.area import Area, Patches
from bharateo.explorer.chips import Chip
from bharateo.explorer.packing import packed, photo, see_through
from bharateo.inference.labels import DOUBTED, PURE, compare
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, class_colours, patch_mode
from bharateo.report.panels import class_name
from bharateo.report.render import composite_rgb, ramp_rgb, stretch_note
from bharateo.sensor import Sensor
from bharateo.training.checkpoint import Run

_TOP = 98
"""Percentile of the errors that is drawn brightest."""


def page_record(
    run: Run,
    areas: Sequence[Area],
    chips: Sequence[Chip],
    attribution: Sequence[str],
    left_out: str,
    no_painting: str | None,
) -> dict[str, Any]:
    """What everything is; the rest is loaded when it is wanted."""
    sensor, config = areas[0].sensor, run.model.config
    return {
        "run": {
            "name": run.path.resolve().name,
            "sensor": sensor.title,
            "unit": sensor.unit.split(",")[0],
            "bands": list(sensor.band_names),
            "parameters": run.contract.num_parameters,
            "chip_px": config.chip_px,
            "patch_px": config.patch_px,
            "mask_ratio": config.mask_ratio,
            "mean": list(run.contract.statistics.mean),
        },
        "classes": [
            {"name": class_name(each.id), "colour": list(each.colour)} for each in BHARATEO_CLASSES
        ],
        "scheme": run.contract.class_scheme.name,
        "composites": [
            {
                "name": name,
                "note": stretch_note(sensor, name).removeprefix(f"{name}, "),
                "bands": list(sensor.composite_indices(name)),
                "low": one.low,
                "high": one.high,
            }
            for name, one in sensor.composites.items()
        ],
        "ramp": packed(ramp_rgb(np.linspace(0, 1, 256)[None], 1.0)[0]),
        "masks": len(covering_masks(run.model.num_tokens, config.mask_ratio)),
        "suspect": {"purity": PURE, "doubted": DOUBTED},
        "areas": [
            {
                "name": area.name,
                "data": f"area-{i}",
                "shape": list(area.geobox.shape),
                "left_out": area.left_out,
            }
            for i, area in enumerate(areas)
        ],
        "left_out": left_out,
        "labelled": any(area.labels is not None for area in areas),
        "chips": [
            {
                "name": chip.name,
                "split": chip.split,
                "data": f"chip-{i}",
                "picture": photo(_shown(sensor, chip)),
            }
            for i, chip in enumerate(chips)
        ],
        "no_painting": no_painting,
        "attribution": [*attribution, *_of_the_model(run, attribution)],
    }


def _of_the_model(run: Run, attribution: Sequence[str]) -> list[str]:
    """Whose pixels and labels the model was trained on, where that is not said already."""
    others = [line for line in run.contract.attribution if line not in attribution]
    return [f"Model trained on: {line}" for line in others]


def _shown(sensor: Sensor, chip: Chip) -> UInt8[np.ndarray, "row col rgb"]:
    image = chip.stored * chip.scale[:, None, None] + chip.offset[:, None, None]
    return composite_rgb(image.astype(np.float32), sensor, chip.valid)


def chip_record(chip: Chip) -> dict[str, Any]:
    """The pixels of a chip."""
    return {
        "stored": packed(chip.stored),
        "scale": chip.scale.tolist(),
        "offset": chip.offset.tolist(),
        "valid": packed(chip.valid),
        "labels": packed(chip.labels),
    }


def area_record(area: Area) -> dict[str, Any]:
    """Pictures and patches of an area."""
    labels = area.labels
    return {
        "pictures": [photo(rgb) for rgb in area.pictures.values()],
        "labels": None if labels is None else see_through(_label_picture(labels)),
        "outlines": [
            [each.row, each.col, each.height, each.width, each.split] for each in area.outlines
        ],
        "corners": area.corners.T.tolist(),
        **_patches_record(area.patches),
    }


def _label_picture(class_ids: UInt8[np.ndarray, "row col"]) -> UInt8[np.ndarray, "row col rgba"]:
    """The classes' colours, see-through where there is no label."""
    rgb = class_colours()[class_ids]
    alpha = np.where(class_ids == IGNORE, 0, 255).astype(np.uint8)
    return np.dstack([rgb, alpha])


def _patches_record(patches: Patches) -> dict[str, Any]:
    answers = patches.answers
    label = patch_mode(patches.counts)
    record = {
        "row": packed(patches.row),
        "col": packed(patches.col),
        "unit_px": reduce(
            gcd, [*np.unique(patches.row).tolist(), *np.unique(patches.col).tolist()]
        ),
        "splits": list(SPLITS),
        "split": packed(patches.split),
        "label": packed(label),
        "purity": packed(_purity(patches)),
        "vectors": packed(quantised(answers.vectors)),
        "probabilities": None,
        "error": None,
    }
    if answers.probabilities is not None:
        suspect = _suspect(answers.probabilities, patches)
        record["probabilities"] = packed(np.rint(65535 * answers.probabilities).astype(np.uint16))
        record["suspect"] = packed(suspect)
    if answers.error is not None and answers.copy_error is not None:
        record["error"] = packed(answers.error)
        record["copy_error"] = packed(answers.copy_error)
        record["error_top"] = float(np.percentile(answers.error, _TOP))
    return record


def _purity(patches: Patches) -> Float[np.ndarray, " patch"]:
    counts = patches.counts
    purity: np.ndarray = counts.max(1) / np.maximum(counts.sum(1), 1)
    return purity.astype(np.float32)


def _suspect(
    probabilities: Float[np.ndarray, "patch cls"], patches: Patches
) -> UInt8[np.ndarray, " patch"]:
    """1 for a suspect label, 0 for one that was compared, 255 where there is none."""
    found = compare(probabilities[None], range(len(BHARATEO_CLASSES)), patches.counts[None])
    return np.where(found.label[0] == IGNORE, IGNORE, found.suspect[0]).astype(np.uint8)


def quantised(vectors: Float[np.ndarray, "patch dim"]) -> Int8[np.ndarray, "patch dim"]:
    """Vectors as ``inference.search`` compares them: standardised over the area, dimension by
    dimension. Each is scaled to its own range of -127..127, which no cosine notices.
    """
    spread = np.maximum(vectors.std(0), 1e-6)
    standard = (vectors - vectors.mean(0)) / spread
    most = np.maximum(np.abs(standard).max(1, keepdims=True), 1e-6)
    return np.rint(127 * standard / most).astype(np.int8)
