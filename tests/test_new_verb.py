"""A verb is one function: added to a copy of the package, it is a command, a name and a page."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bharateo

VERB = '''"""How large a raster is."""

from __future__ import annotations

from pathlib import Path


def measure(location: str, *, unit: float = 1.0) -> float:
    """The area of a raster.

    Prints the product of its sides.

      bharateo measure raster.tif --unit 2

    Args:
        location: a raster
        unit: what a pixel counts for

    Returns:
        The area.

    Raises:
        SourceError: the raster is not there.
    """
    from bharateo.errors import SourceError

    if not Path(location).exists():
        raise SourceError(f"{location} is not there; give the path of a raster")
    print(area := 6.0 * unit)
    return area
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with one file and three lines more."""
    here = Path(bharateo.__file__).parent
    copy = tmp_path_factory.mktemp("src") / "bharateo"
    shutil.copytree(here, copy, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
    (copy / "verbs" / "measure.py").write_text(VERB)
    for file, after, line in (
        ("verbs/cli.py", "from bharateo.verbs.machine import tokens\n",
         "from bharateo.verbs.measure import measure\n"),
        ("verbs/cli.py", '    "doctor": (doctor, ()),\n',
         '    "measure": (measure, ("location",)),\n'),
        ("__init__.pyi", "from bharateo.verbs.machine import tokens as tokens\n",
         "from bharateo.verbs.measure import measure as measure\n"),
    ):  # fmt: skip
        text = (copy / file).read_text()
        assert text.count(after) == 1
        (copy / file).write_text(text.replace(after, after + line))
    before = {path.relative_to(here): path.read_bytes() for path in here.rglob("*.py*")}
    touched = {
        str(path.relative_to(copy))
        for path in copy.rglob("*.py*")
        if before.get(path.relative_to(copy)) != path.read_bytes()
    }
    assert touched == {"verbs/measure.py", "verbs/cli.py", "__init__.pyi"}
    return copy


@pytest.fixture
def said(package):
    """What a program says that runs on the copy: status, output, error."""

    def run(*words):
        done = subprocess.run(
            [sys.executable, *words], env={"PYTHONPATH": str(package.parent), "COLUMNS": "100"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


def test_it_is_a_command_with_its_options_and_their_meanings(said, tmp_path):
    raster = tmp_path / "raster.tif"
    raster.touch()
    assert said("-m", "bharateo", "measure", str(raster), "--unit", "2") == (0, "12.0\n", "")
    status, page, _ = said("-m", "bharateo", "measure", "--help")
    assert status == 0
    for words in ("Usage: bharateo measure [OPTIONS] LOCATION", "The area of a raster.",
                  "bharateo measure raster.tif --unit 2", "what a pixel counts for",
                  "(default: 1.0)"):  # fmt: skip
        assert words in page
    assert "measure " in said("-m", "bharateo", "--help")[1]


def test_what_it_refuses_is_one_line(said):
    status, _, error = said("-m", "bharateo", "measure", "nowhere.tif")
    assert status == 1
    assert error == ("bharateo: SourceError: nowhere.tif is not there; give the path of a raster\n")
    assert said("-m", "bharateo", "measure", "raster.tif", "--unit", "many")[0] == 2


def test_it_is_a_function_of_the_public_api(said, tmp_path):
    raster = tmp_path / "raster.tif"
    raster.touch()
    program = f"import bharateo; print(bharateo.measure({str(raster)!r}, unit=3))"
    assert said("-c", program) == (0, "18.0\n18.0\n", "")
    assert "measure" in said("-c", "import bharateo; print(bharateo.__all__)")[1]


def test_the_shell_completes_it_and_the_reference_has_it(said, package):
    assert "measure" in said("-m", "bharateo", "completion", "bash")[1]
    docs = Path(__file__).parents[1] / "docs"
    program = (
        f"import sys; sys.path.insert(0, {str(docs)!r}); import written_from_code as code; "
        "print(code.command_line(), code.verbs_in_python())"
    )
    status, page, error = said("-c", program)
    assert status == 0, error
    assert "bharateo measure" in page
