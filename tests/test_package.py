import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import bharateo

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bharateo"


def files_below(folder, name):
    """Names of the files a folder holds, as they are to be called in an archive."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {
        f"{name}/{path.relative_to(folder)}": path
        for path in paths
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist, and the wheel that is built from it."""
    if not (ROOT / "Makefile").exists():
        pytest.skip("these tests run from the source")
    folder = tmp_path_factory.mktemp("dist")
    build = ["build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", *build], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        yield wheel


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_both_archives_pass_the_checks_of_the_index(dist):
    archives = sorted(str(path) for path in dist.iterdir())
    assert [Path(path).suffix for path in archives] == [".whl", ".gz"]
    check = [sys.executable, "-m", "twine", "check", "--strict", *archives]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_wheel_holds_the_package_and_its_configurations_and_nothing_else(wheel):
    expected = files_below(PACKAGE, "bharateo") | files_below(ROOT / "configs", "bharateo/configs")
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == {*expected}
    assert [name for name, path in expected.items() if wheel.read(name) != path.read_bytes()] == []
    kinds = {Path(name).suffix for name in found}
    assert {".py", ".typed", ".yaml", ".j2", ".css", ".js"} <= kinds


def test_the_source_archive_holds_what_is_needed_to_test_and_document_it(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    here = {"Makefile", "CITATION.cff", "LICENSE", "requirements.lock", ".ci/run"}
    for folder, ending in (("tests", "py"), ("docs", "md"), ("configs", "yaml")):
        here |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(f"*.{ending}")}
    built = re.compile(r"^docs/(_build|notebooks|reference/api)/")
    assert [name for name in here - names if not built.match(name)] == []
    unwanted = re.compile(r"(^|/)(\.git|\.venv|__pycache__|runs|dist|\.[a-z_]*_cache)/")
    assert [name for name in names if unwanted.search(name)] == []


def test_metadata_is_complete_and_agrees_with_the_code(metadata):
    assert metadata["Version"] == bharateo.__version__
    assert metadata["Author"] == "BharatEO developers"
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata.get_payload().startswith("# BharatEO")


def test_every_extra_is_documented(metadata):
    page = (ROOT / "docs" / "how-to" / "install.md").read_text()
    extras = metadata.get_all("Provides-Extra")
    assert {"cluster", "hub", "onnx", "tensorboard"} <= {*extras}
    assert [extra for extra in extras if f"`{extra}`" not in page] == []


def test_what_is_required_is_pinned(metadata):
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines}
    required = [re.split(r"[^\w.-]", text)[0] for text in metadata.get_all("Requires-Dist")
                if "extra ==" not in text]  # fmt: skip
    assert [name for name in required if name.lower() not in pinned] == []


def test_the_citation_is_complete_and_of_this_version():
    """Required fields of the Citation File Format 1.2.0."""
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= {*record}
    assert record["cff-version"] == "1.2.0"
    assert record["version"] == bharateo.__version__
    assert record["license"] == "Apache-2.0"
    assert all({"name"} == {*author} for author in record["authors"])
    assert record["references"][0]["doi"] in (ROOT / "README.md").read_text()
