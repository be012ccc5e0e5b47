"""The benchmark that is to run anywhere does so without a raster package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WITHOUT_RASTERS = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rasterio", "odc", "pyproj", "geopandas", "shapely", "affine",
                                  "pystac", "pystac_client", "planetary_computer", "mgrs"}:
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
sys.argv = ["gpu.py", "--sizes", "nano", "--steps", "1", "--batch", "4", "--chips", "8"]
runpy.run_path("gpu.py", run_name="__main__")
"""


@pytest.mark.slow
def test_training_is_timed_where_no_raster_package_is():
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}:{os.environ['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RASTERS],
        cwd=BENCHMARKS, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, row = done.stdout.splitlines()
    assert row.startswith("| nano | 4 | ")
