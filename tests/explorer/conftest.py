"""One page of a run that was never trained, written by the verb, for all tests."""

import jaxtyping
import pytest

from bharateo.explorer.runtime import KEPT, VENDOR
from bharateo.verbs.cli import main
from handover.tiny_run import tiny_run


@pytest.fixture(scope="session")
def explored_run(reflectance_dataset, tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("explored") / "run", reflectance_dataset, depth=1)


@pytest.fixture(scope="session")
def explorer(explored_run, reflectance_dataset, tmp_path_factory):
    """The folder of the page."""
    if not all((VENDOR / kept).is_file() for kept in KEPT.values()):
        pytest.skip("the browsers' runtime was not fetched: make explorer")
    folder = tmp_path_factory.mktemp("explorer") / "page"
    dataset = str(reflectance_dataset.path)
    with pytest.MonkeyPatch.context() as patch:
        # While it is exported, the number of visible tokens is a symbol, not an int.
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        arguments = ["--dataset", dataset, "--output", str(folder)]
        assert main(["explore", str(explored_run.path), *arguments]) == 0
    return folder
