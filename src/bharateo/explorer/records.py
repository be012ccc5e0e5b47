"""What the page is told: of itself, of an area, of a chip.

A page opened from a disk may load scripts, and no data. So every data file is a classic script
that registers one JSON object. Arrays in it are ``{"dtype", "shape", "gzip"}``, little-endian
bytes, gzipped, in base64; pictures are ``{"type", "bytes"}`` in base64.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Sequence
from math import gcd
from typing import Any

import numpy as np
from jaxtyping import Float, Int8, Shaped, UInt8
from PIL import Image

from bharateo.chips.store import SPLITS
from bharateo.explorer.area import AreaView, covering_masks
from bharateo.explorer.chips import StoredChip
from bharateo.inference.domain import QUANTILE
from bharateo.inference.labels import DOUBTED, PURE, compare
from bharateo.landcover import BHARATEO_CLASSES, IGNORE, class_colours, patch_mode
from bharateo.report.panels import class_name
from bharateo.report.render import composite_rgb, few_colours, ramp_rgb, stretch_note
from bharateo.training.run import Run

_DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "float32")
"""Types that a browser has arrays of."""

MOST_OUTSIDE = 0.05
"""Share of the patches that may lie out of the run's domain before every view says so."""

_TOP = 98
"""Percentile of the errors that is drawn brightest."""


def page_record(
    run: Run,
    areas: Sequence[AreaView],
    chips: Sequence[StoredChip],
    attribution: Sequence[str],
    left_out: str,
    no_painting: str | None,
    cautions: Sequence[str],
    raster: str | None,
) -> dict[str, Any]:
    """What everything is; the rest is loaded when it is wanted. ``raster`` is the name of the file
    that is shown, None for a dataset.
    """
    sensor, config = areas[0].sensor, run.model.config
    distances = [area.patches.distance for area in areas if area.patches.distance is not None]
    outside = float((np.concatenate(distances) > 1).mean()) if distances else None
    trained_on = [line for line in run.contract.attribution if line not in attribution]
    return {
        # what is kept in a browser is kept of these weights on this ground
        "id": f"{run.weights_sha256[:16]}-{'-'.join(area.name for area in areas)}",
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
                "picture": _photo(composite_rgb(chip.image, sensor, chip.valid)),
            }
            for i, chip in enumerate(chips)
        ],
        "no_painting": no_painting,
        "cautions": list(cautions),
        "outside": outside,
        "outside_warned": outside is not None and outside > MOST_OUTSIDE,
        "inside_quantile": QUANTILE,
        "raster": raster,
        "attribution": [*attribution, *(f"Model trained on: {line}" for line in trained_on)],
    }


def chip_record(chip: StoredChip) -> dict[str, Any]:
    """The pixels of a chip."""
    return {
        "stored": packed(chip.stored),
        "scale": chip.scale.tolist(),
        "offset": chip.offset.tolist(),
        "valid": packed(chip.valid),
        "labels": packed(chip.labels),
    }


def area_record(area: AreaView) -> dict[str, Any]:
    """Pictures and patches of an area."""
    patches, labels = area.patches, None
    if area.labels is not None:  # in the classes' colours, see-through where there is no label
        alpha = np.where(area.labels == IGNORE, 0, 255).astype(np.uint8)
        labels = _webp(np.dstack([class_colours()[area.labels], alpha]), lossless=True)
    counts = patches.counts
    purity = counts.max(1) / np.maximum(counts.sum(1), 1)
    places = [*np.unique(patches.row).tolist(), *np.unique(patches.col).tolist()]
    record = {
        "pictures": [_photo(rgb) for rgb in area.pictures.values()],
        "labels": labels,
        "outlines": [
            [each.row, each.col, each.height, each.width, each.split] for each in area.outlines
        ],
        "knots": area.knots.round(8).tolist(),
        "row": packed(patches.row),
        "col": packed(patches.col),
        "unit_px": gcd(*places),
        "splits": list(SPLITS),
        "split": packed(patches.split),
        "label": packed(patch_mode(counts)),
        "purity": packed(purity),
        "vectors": packed(quantised(patches.vectors)),
        "probabilities": None,
        "distance": None if patches.distance is None else packed(patches.distance),
        "error": None,
    }
    if patches.probabilities is not None:
        found = compare(patches.probabilities[None], range(len(BHARATEO_CLASSES)), counts[None])
        # 1 for a suspect label, 0 for one that was compared
        suspect = np.where(found.label[0] == IGNORE, IGNORE, found.suspect[0]).astype(np.uint8)
        record["probabilities"] = packed(np.rint(65535 * patches.probabilities).astype(np.uint16))
        record["suspect"] = packed(suspect)
    if patches.error is not None and patches.copy_error is not None:
        record["error"] = packed(patches.error)
        record["copy_error"] = packed(patches.copy_error)
        record["error_top"] = float(np.percentile(patches.error, _TOP))
    return record


def quantised(vectors: Float[np.ndarray, "patch dim"]) -> Int8[np.ndarray, "patch dim"]:
    """Vectors as ``inference.search`` compares them: standardised over the area, dimension by
    dimension. Each is scaled to its own range of -127..127, which no cosine notices.
    """
    spread = np.maximum(vectors.std(0), 1e-6)
    standard = (vectors - vectors.mean(0)) / spread
    most = np.maximum(np.abs(standard).max(1, keepdims=True), 1e-6)
    return np.rint(127 * standard / most).astype(np.int8)


def script(name: str, record: Any) -> str:
    """A script that registers a record under a name."""
    return f"explorer.register({json.dumps(name)},{json.dumps(record, separators=(',', ':'))});\n"


def packed(array: Shaped[np.ndarray, "*shape"]) -> dict[str, Any]:
    """An array; types that a browser has no array of become float32."""
    if array.dtype.name not in _DTYPES:
        array = array.astype(np.float32)
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "gzip": zipped(content)}


def zipped(content: bytes) -> str:
    """Bytes gzipped, in base64; the same bytes every time."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _photo(rgb: UInt8[np.ndarray, "row col rgb"]) -> dict[str, str]:
    return _webp(rgb, lossless=few_colours(rgb), quality=84)


def _webp(picture: UInt8[np.ndarray, "row col channel"], **options: Any) -> dict[str, str]:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "webp", method=6, **options)
    return {"type": "image/webp", "bytes": base64.b64encode(file.getvalue()).decode()}
