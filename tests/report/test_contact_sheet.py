import numpy as np
import pytest
from PIL import Image

from bharateo.inference.area import open_area
from bharateo.inference.embed import Embedding, embed_dataset
from bharateo.inference.search import search, with_classes
from bharateo.pixels.cog import Bands, write_cog
from bharateo.report.contact_sheet import write_contact_sheet
from bharateo.report.render import composite_rgb, physical
from handover.tiny_run import tiny_run
from inference.areas import GRID, centres, plan_of, table, vectors

TILE_PX, GAP_PX, FIRST_PLACE = 192, 12, (slice(68, 124), slice(68, 124))
"""Of a tile the middle third is the place itself; its frame is left out."""


def tile(path, number):
    """The pixels of a tile in the first row of a sheet."""
    sheet = np.asarray(Image.open(path))
    left = GAP_PX + number * (TILE_PX + GAP_PX)
    return sheet[GAP_PX : GAP_PX + TILE_PX, left : left + TILE_PX]


def test_each_place_of_a_dataset_is_shown_in_the_sensors_colours(reflectance_dataset, tmp_path):
    run = tiny_run(tmp_path / "run", reflectance_dataset)
    embed_dataset(run, reflectance_dataset, [tmp_path / "v.parquet"], Embedding(),
                  lambda *told: None, print)  # fmt: skip
    area = open_area(tmp_path / "v.parquet")
    found = with_classes(search(area, [tuple(area.lonlat[:, 50])], 9), reflectance_dataset)
    assert write_contact_sheet(tmp_path / "sheet.png", found, area)
    rows, cols = (reflectance_dataset.column(name)[found["chip"]] for name in ("row", "col"))
    for number in range(7):
        chip = found["chip"][number]
        row, col = found["row"][number] - rows[number], found["col"][number] - cols[number]
        where = (slice(row, row + 8), slice(col, col + 8))
        image = physical(reflectance_dataset.image(chip), reflectance_dataset.sensor)
        rgb = composite_rgb(image, reflectance_dataset.sensor, reflectance_dataset.valid(chip))
        shown = tile(tmp_path / "sheet.png", number)[FIRST_PLACE]
        assert {*map(tuple, shown.reshape(-1, 3))} <= {*map(tuple, rgb[where].reshape(-1, 3))}


@pytest.fixture
def raster(tmp_path):
    """A raster of 4 px a cell that is bright in the cells asked for and found."""
    path = tmp_path / "raster.tif"
    values = np.full((1, 80, 120), 100, np.uint16)
    values[:, 44:48, 68:72] = 900  # cell (11, 17)
    write_cog(path, GRID.zoom_to((80, 120)), Bands("uint16", ("grey",), 0), [(0, 0, values)])
    return plan_of(input=str(path), bands=["grey"], bands_in_file=[1], nodata=0)


def test_the_pixels_around_a_place_of_a_raster_are_shown(raster, tmp_path):
    area = open_area(table(tmp_path / "v.parquet", vectors(), raster))
    found = search(area, [tuple(centres([11], [17])[:, 0])], 3)
    assert write_contact_sheet(tmp_path / "sheet.png", found, area)
    asked = tile(tmp_path / "sheet.png", 0)
    assert asked[FIRST_PLACE].min() > asked[:50, :50].max()
    other = tile(tmp_path / "sheet.png", 1)
    assert len(np.unique(other[FIRST_PLACE])) == 1


def test_what_lies_outside_a_raster_is_hatched(raster, tmp_path):
    area = open_area(table(tmp_path / "v.parquet", vectors(), raster))
    found = search(area, [tuple(centres([0], [0])[:, 0])], 1)
    write_contact_sheet(tmp_path / "sheet.png", found, area)
    corner = tile(tmp_path / "sheet.png", 0)[:60, :60]
    assert len(np.unique(corner.reshape(-1, 3), axis=0)) == 2  # two greys


def test_without_the_pixels_there_is_no_sheet(tmp_path):
    area = open_area(table(tmp_path / "v.parquet", vectors()))
    found = search(area, [tuple(centres([1], [1])[:, 0])], 3)
    assert not write_contact_sheet(tmp_path / "sheet.png", found, area)
    assert not (tmp_path / "sheet.png").exists()
