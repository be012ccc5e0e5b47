"""``chips.parquet`` as other programs read it."""

import json
from datetime import UTC, datetime

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import Image, two_regions

from bharateo.chips.build import build
from bharateo.chips.store import Dataset
from bharateo.config import PlanConfig

PLAN = PlanConfig("grid", 40, split=None)


class Dated(Image):
    """An image that says when it was taken, in milliseconds, and in the west does not."""

    def read(self, geobox):
        raster = super().read(geobox)
        if geobox.shape == (190, 200):
            raster.provenance["datetime"] = "2023-11-05T05:31:09.024Z"
        return raster


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    source = two_regions()
    source.image.__class__ = Dated
    return build(source, PLAN, tmp_path_factory.mktemp("built") / "d", 0)


def test_the_table_is_geoparquet_1_1_whose_bbox_covers_every_outline(dataset):
    file = dataset.path / "chips.parquet"
    geo = json.loads(pq.read_schema(file).metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    table = geopandas.read_parquet(file)
    boxes = np.array(
        [
            [box[side] for side in ("xmin", "ymin", "xmax", "ymax")]
            for box in pq.read_table(file, columns=["bbox"])["bbox"].to_pylist()
        ]
    )
    np.testing.assert_array_equal(boxes, table.geometry.bounds.to_numpy())
    west, south, east, north = table.geometry.iloc[3].bounds
    inside = 1e-6
    near = geopandas.read_parquet(
        file, bbox=(west + inside, south + inside, east - inside, north - inside)
    )
    assert near.chip.tolist() == [3], "readers pass over what lies elsewhere"


def test_when_a_chip_was_taken_is_a_moment_in_utc(dataset):
    file = dataset.path / "chips.parquet"
    assert pq.read_schema(file).field("datetime").type == pa.timestamp("us", "UTC")
    taken = pq.read_table(file, columns=["region", "datetime"]).to_pylist()
    moments = {row["region"]: row["datetime"] for row in taken}
    assert moments["east"] == datetime(2023, 11, 5, 5, 31, 9, 24_000, UTC)
    assert moments["west"] is None
    column = dataset.column("datetime")
    assert np.isnat(column).tolist() == [region == "west" for region in dataset.column("region")]


def test_a_dataset_with_the_older_table_opens_as_before(dataset, tmp_path):
    """Text in place of moments, and no bbox."""
    import shutil

    old = shutil.copytree(dataset.path, tmp_path / "old")
    table = pq.read_table(old / "chips.parquet").drop_columns(["bbox"])
    texts = pa.array([each and each.isoformat() for each in table["datetime"].to_pylist()])
    place = table.schema.get_field_index("datetime")
    pq.write_table(table.set_column(place, "datetime", texts), old / "chips.parquet")
    opened = Dataset.open(old)
    assert opened.chips.drop(columns="datetime").equals(dataset.chips.drop(columns="datetime"))
    assert "2023-11-05T05:31:09.024000+00:00" in set(opened.column("datetime"))
