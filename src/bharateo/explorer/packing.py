"""Arrays and pictures inside scripts: a page opened from a disk may load scripts, and no data.

Every data file is a classic script that registers one JSON object. Arrays in it are
``{"dtype", "shape", "gzip"}``, little-endian bytes, gzipped, in base64; pictures are
``{"type", "bytes"}`` in base64.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "float32")
"""Types that a browser has arrays of."""


def packed(array: Shaped[np.ndarray, "*shape"]) -> dict[str, Any]:
    """An array; types that a browser has no array of become float32."""
    if array.dtype.name not in DTYPES:
        array = array.astype(np.float32)
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "gzip": zipped(content)}


def zipped(content: bytes) -> str:
    """Bytes gzipped, in base64; the same bytes every time."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def photo(rgb: UInt8[np.ndarray, "row col rgb"], quality: int = 84) -> dict[str, str]:
    """A picture as WebP, with loss unless it has few colours."""
    packed_rgb = rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    few = len(np.unique(packed_rgb)) <= 256
    return _encoded(Image.fromarray(np.ascontiguousarray(rgb)), lossless=few, quality=quality)


def see_through(rgba: UInt8[np.ndarray, "row col rgba"]) -> dict[str, str]:
    """A picture with transparent parts, as WebP without loss."""
    return _encoded(Image.fromarray(np.ascontiguousarray(rgba)), lossless=True)


def _encoded(picture: Image.Image, **options: Any) -> dict[str, str]:
    file = io.BytesIO()
    picture.save(file, "webp", method=6, **options)
    return {"type": "image/webp", "bytes": base64.b64encode(file.getvalue()).decode()}


def script(name: str, record: Any) -> str:
    """A script that registers a record under a name."""
    return f"explorer.register({json.dumps(name)},{json.dumps(record, separators=(',', ':'))});\n"
