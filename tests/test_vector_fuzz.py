"""Damaged files of points and polygons, and damaged texts of regions: hundreds, seeded.

Each is read, or refused in one line; nothing else, and not for long.
"""

import json
import math
import random
import resource
import time

import geopandas as gpd
import pytest
import shapely

from bharateo.errors import BharatEOError
from bharateo.mapping.points import read_all_points
from bharateo.regions import parse_roi, worldcover_region
from bharateo.sources.areas import _roi_zone, file_zones, sentinel2_regions

SECONDS = 4
"""Of processor time a case."""

LONGEST = 500
ODD_TEXTS = ["", "x", "\x00", "\ud800", "9" * 5000, "1e999", "-" * 3000, "é\u202e\n\r", "{}" * 900]
ODD_VALUES = [None, True, -1, 0, 1e300, math.inf, math.nan, 10**400, [], {}, [[]], *ODD_TEXTS]


def mutated_json(rng, value):
    """A value with something in it replaced, doubled or left out."""
    value = json.loads(json.dumps(value))
    places = []

    def walk(node):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            places.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    walk(value)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        node, key = rng.choice(places)
        try:
            if rng.random() < 0.2:
                del node[key]
            elif isinstance(node, list) and rng.random() < 0.2:
                node.insert(key, node[key])
            elif rng.random() < 0.2:
                node[key] = rng.choice(places)[0]
            else:
                node[key] = rng.choice(ODD_VALUES)
        except (KeyError, IndexError):
            continue
    try:
        return json.dumps(value).encode()
    except ValueError:  # it holds itself now
        return b"[" * rng.choice([10, 100_000])


def mutated_bytes(rng, content):
    """Bytes with some changed, cut out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        place = rng.randrange(len(content) or 1)
        kind = rng.randrange(4)
        if kind == 0 and content:
            content[place] = rng.randrange(256)
        elif kind == 1:
            del content[place : place + rng.choice([1, 4, 100])]
        elif kind == 2:
            content[place:place] = content[place : place + 64]
        elif rng.random() < 0.3:
            del content[place:]
    return bytes(content)


def mutated_text(rng, text):
    pieces = list(text)
    for _ in range(rng.choice([1, 2, 4])):
        place = rng.randrange(len(pieces))
        kind = rng.randrange(3)
        if kind == 0:
            pieces[place] = rng.choice(["-", ",", "=", "e", "9" * 20, "\n", "nan", "inf", ".", "²"])
        elif kind == 1:
            pieces[place] = ""
        else:
            pieces.insert(place, rng.choice(ODD_TEXTS))
    return "".join(pieces)


def places():
    square = shapely.box(77, 28, 77.1, 28.1)
    far = shapely.Polygon([(78, 28), (78.2, 28.2), (78.2, 28), (78, 28.2)])
    holed = shapely.MultiPolygon(
        [shapely.box(79, 28, 79.3, 28.3) - shapely.box(79.1, 28.1, 79.2, 28.2)]
    )
    shapes = [square, far, holed]
    return gpd.GeoDataFrame({"class": ["a", "b", "c"], "n": [1, 2, 3]}, geometry=shapes, crs=4326)


def answered(call, *arguments):
    """Whether it was done, or refused in one line."""
    started = time.process_time()
    try:
        call(*arguments)
        done = True
    except BharatEOError as error:
        said = str(error)
        assert len(said) < LONGEST, said[:LONGEST]
        assert "\n" not in said
        done = False
    assert time.process_time() - started < SECONDS
    return done


def area(path):
    sentinel2_regions(file_zones(path, "class"), (1, 1))


def points(path):
    read_all_points([path])


def region(text):
    roi = parse_roi(text)
    worldcover_region(roi)
    sentinel2_regions([_roi_zone(roi)], (1, 1))


def mutants(name, content, rng):
    if name.endswith("json") and rng.random() < 0.7:
        return mutated_json(rng, json.loads(content))
    return mutated_bytes(rng, content)


@pytest.mark.filterwarnings("ignore")  # what GDAL and pandas say of damaged files
@pytest.mark.parametrize(
    ("read", "name", "cases"),
    [
        (area, "a.geojson", 250),
        (area, "a.gpkg", 60),
        (area, "a.fgb", 60),
        (area, "a.shp", 60),
        (points, "p.geojson", 150),
        (points, "p.gpkg", 60),
        (points, "p.csv", 150),
    ],
)
def test_a_damaged_vector_file_is_read_or_refused_in_one_line(read, name, cases, tmp_path):
    frame = places()
    if read is points:
        frame = frame.set_geometry(frame.geometry.representative_point())
    good = tmp_path / name
    if name.endswith("csv"):
        rows = zip(frame.geometry.x, frame.geometry.y, frame["class"], strict=True)
        good.write_text("lon,lat,class\n" + "".join(f"{x},{y},{c}\n" for x, y, c in rows))
    else:
        frame.to_file(good)
    assert answered(read, good)
    content, rng = good.read_bytes(), random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(cases):
        good.write_bytes(mutants(name, content, rng))
        refused += not answered(read, good)
    assert refused > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_damaged_region_is_placed_or_refused_in_one_line():
    rng, refused = random.Random("roi"), 0
    good = ["delhi_ncr", "here=77.23,28.61", "here=77.23,28.61,512", "box=76.5,27.5,77.5,28.0",
            "edge=179,-10,-179,10", "pole=10,89.99", "pole=-10,-90,20,-89"]  # fmt: skip
    for _ in range(400):
        refused += not answered(region, mutated_text(rng, rng.choice(good)))
    assert 0 < refused < 400
