import pytest

from bharateo.verbs.cli import main
from handover.tiny_run import tiny_run


@pytest.fixture(scope="session")
def encoder(reflectance_dataset, tmp_path_factory):
    """An ONNX file made by the verb, beside its run."""
    folder = tmp_path_factory.mktemp("onnx")
    run = tiny_run(folder / "run", reflectance_dataset, depth=1)
    output = folder / "encoder.onnx"
    assert main(["export", str(run.path), "--to", "onnx", "--output", str(output)]) == 0
    return output
