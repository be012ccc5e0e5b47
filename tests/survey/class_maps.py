"""Small maps of classes as ``bharateo map`` writes them, with known truth."""

import json
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import rasterio
from affine import Affine
from shapely.geometry import box

AFFINE = Affine(10, 0, 400_000, 0, -10, 2_060_000)
NAMES = ("forest", "fields", "town", "water")
COLOURS = ((0, 100, 0), (200, 200, 0), (200, 0, 0), (0, 0, 200))


def write_classes(path, codes, names=NAMES, learned=None, fingerprint="f1", crs="EPSG:32643"):
    """A map of ours; of anybody else's where there are no names."""
    tags = {}
    if names:
        made = {
            "product": "map", "fingerprint": fingerprint, "classifier": "head",
            "classes": [{"id": n, "name": name, "colour": list(COLOURS[n])}
                        for n, name in enumerate(names)],
        }  # fmt: skip
        if learned is not None:
            made |= {"classifier": "linear probe", "trained_at": learned}
        tags = {"BHARATEO": json.dumps(made)}
    _write(path, np.asarray(codes, np.uint8)[None], tags, crs=crs)
    return path


def write_probabilities(path, shares, fingerprint="f1"):
    """The probabilities beside a map: shares (cls row col), 0 to 1."""
    tags = {"BHARATEO": json.dumps({"product": "map", "fingerprint": fingerprint})}
    _write(path, np.rint(100 * shares).astype(np.uint8), tags, NAMES)


def _write(path, values, tags, names=(), crs="EPSG:32643"):
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", crs=crs, transform=AFFINE, width=width, height=height,
        count=count, dtype="uint8", nodata=255, tiled=True, blockxsize=64, blockysize=64,
        photometric="MINISBLACK", alpha="NO",
    ) as file:  # fmt: skip
        file.write(values)
        file.update_tags(**tags)
        if names:
            file.descriptions = names


@dataclass
class World:
    """A truth, and what a map makes of it with calibrated probabilities."""

    truth: np.ndarray
    mapped: np.ndarray
    shares: np.ndarray


def made_up_world(shape=(300, 400), seed=0):
    """Four classes, water under one per cent of the ground; the map is right for about 85 %."""
    rng = np.random.default_rng(seed)
    parts = np.array([0.5, 0.35, 0.142, 0.008])
    truth = rng.choice(4, shape, p=parts)
    seen = np.eye(4)[truth] * 2.6 + rng.normal(size=(*shape, 4))
    logits = 2.6 * seen + np.log(parts)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    shares = np.moveaxis(odds / odds.sum(-1, keepdims=True), -1, 0)
    return World(truth, shares.argmax(0), shares)


def districts(path, width_m=4000, height_m=3000):
    """Two halves of the map's ground, west and east."""
    left, top, half = AFFINE.c, AFFINE.f, width_m / 2
    shapes = [box(left + n * half, top - height_m, left + (n + 1) * half, top) for n in (0, 1)]
    gpd.GeoDataFrame({"name": ["west", "east"]}, geometry=shapes, crs="EPSG:32643").to_file(path)
    return path


def answer(points, truth, names=NAMES, skip=()):
    """Fill in the labels of a sample from the truth, as a person would."""
    import pyogrio

    table = pyogrio.read_dataframe(points, layer="points")
    placed = table.to_crs("EPSG:32643").geometry
    col, row = (np.floor(each).astype(int) for each in ~AFFINE @ (placed.x, placed.y))
    labels = np.array(names, object)[truth[row, col]]
    labels[[number - 1 for number in skip]] = "unsure"
    table["label"] = labels
    pyogrio.write_dataframe(table, points, layer="points")
    return points
