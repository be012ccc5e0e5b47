"""Checked array shapes, few threads, and nothing read from or kept in the user's own folders."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports them: every call checks the shapes and types of its arrays.
install_import_hook(
    [
        "bharateo.models",
        "bharateo.training.data",
        "bharateo.training.contract",
        "bharateo.inference",
        "bharateo.evaluation",
        "bharateo.survey",
        "bharateo.explorer",
        "bharateo.landcover",
    ],
    "shape_checks.checked",
)

# A busy machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

torch.set_num_threads(1)  # two workers of two threads each would wait for each other


def pytest_collection_modifyitems(items):
    """Files with a slow test come first: whole files go to a worker, and none waits at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def own_surroundings(tmp_path_factory):
    """Caches go to a temporary folder, no root comes from outside, processes run this source."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BHARATEO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
        patch.delenv("BHARATEO_WORLDCOVER_ROOT", raising=False)
        yield


@pytest.fixture(scope="session")
def palette_dataset(tmp_path_factory):
    """Three palette bands, not standardised."""
    from small_datasets import small_dataset

    return small_dataset(tmp_path_factory.mktemp("palette") / "dataset")


@pytest.fixture(scope="session")
def reflectance_dataset(tmp_path_factory):
    """Two standardised bands with an offset."""
    from small_datasets import many_bands, small_dataset

    return small_dataset(tmp_path_factory.mktemp("reflectance") / "dataset", many_bands(2))


@pytest.fixture(scope="module")
def browser():
    """Chromium, for tests of pages; they are marked ``NEEDS_CHROMIUM``."""
    from explorer.in_browser import CHROMIUM

    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()
