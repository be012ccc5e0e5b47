"""One trained run for all tests of maps."""

import pytest
from ground import trained_run, write_raster


@pytest.fixture(scope="session")
def map_run(tmp_path_factory, reflectance_dataset):
    return trained_run(reflectance_dataset, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="session")
def raster(tmp_path_factory):
    return write_raster(tmp_path_factory.mktemp("raster") / "raster.tif")
