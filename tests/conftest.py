"""Checked array shapes, few threads, and nothing read from or kept in the user's own folders."""

import os

import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports them: every call checks the shapes and types of its arrays.
install_import_hook(
    [
        "bharateo.models",
        "bharateo.training.batches",
        "bharateo.evaluation",
        "bharateo.landcover",
    ],
    "beartype.beartype",
)

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True, scope="session")
def own_surroundings(tmp_path_factory):
    """What is kept goes to a temporary folder, and no root comes from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BHARATEO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("BHARATEO_WORLDCOVER_ROOT", raising=False)
        yield
