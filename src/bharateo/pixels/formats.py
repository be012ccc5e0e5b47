"""Which files are rasters, and what GDAL is let see of them; the only module that opens them.

GDAL reads 150 formats and tells them apart by content. Some are texts that name other files,
addresses or programs (VRT, WMS, ...), and a file called ``x.tif`` may be one of them: opened by a
name alone, what a stranger wrote decides which files of this machine are read. So a raster is
opened as what its first bytes say, GeoTIFF or JPEG 2000, by that driver alone; a VRT only where a
person names it, and only one whose sources are GeoTIFFs or JPEG 2000 files below its own folder.

Of the files beside a local raster four kinds are read: ``.aux.xml``, ``.msk`` and ``.ovr``, for
which GDAL sees a folder that holds them and the raster and nothing else, and world files.
"""

from __future__ import annotations

import hashlib
import math
import os
import uuid
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import Context
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import rasterio
from affine import Affine
from rasterio._vsiopener import _opener_registration  # rasterio.open lets go of it too soon
from rasterio.abc import FileContainer, MultiByteRangeResourceContainer
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from bharateo.artefacts import shortened
from bharateo.errors import CorruptRasterError
from bharateo.files import open_file, read_bytes
from bharateo.pixels.http import Answer, Damaged, Web

_SIGNATURES = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",  # BigTIFF
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",  # a bare codestream
}

_BESIDE = (".aux.xml", ".msk", ".ovr")
_WORLD_FILES = (".tfw", ".tifw", ".tiffw", ".j2w", ".jp2w", ".wld")

OPTIONS = {
    # No file beside a raster is looked for: what may be read of them is in a ``_Folder``.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}
"""Of GDAL, for every read."""

MOST_BLOCK_BYTES = 2**28
"""Of a block with all bands that are stored together: GDAL holds it whole to read one pixel."""


class Opened:
    """An open dataset, and the context and GDAL options that every call of it needs.

    ``identity`` tells this version of the file from another, ``affine`` says where it lies;
    ``close()`` lets go of the file.
    """

    def __init__(
        self,
        dataset: rasterio.DatasetReader,
        context: Context,
        options: Mapping[str, str],
        identity: Mapping[str, Any],
        seen_through: ExitStack,
    ) -> None:
        self.dataset, self.context = dataset, context
        self.options, self.identity = options, identity
        self.affine: Affine = dataset.transform
        # GDAL must let go of a file before what it reads it through is gone, or the interpreter
        # dies: also where nobody closes it.
        self.close = weakref.finalize(self, _close, dataset, context, seen_through)


def _close(dataset: rasterio.DatasetReader, context: Context, seen_through: ExitStack) -> None:
    context.run(dataset.close)
    context.run(seen_through.close)


def driver_of(head: bytes, where: str) -> str:
    """The GDAL driver for a file that begins with these bytes.

    Raises:
        CorruptRasterError: it is neither GeoTIFF nor JPEG 2000.
    """
    for signature, driver in _SIGNATURES.items():
        if head.startswith(signature):
            return driver
    raise CorruptRasterError(
        f"{where} cannot be read (it is no raster: neither GeoTIFF nor JPEG 2000, whatever its "
        "name says); fetch it again, or convert it with gdal_translate IN OUT.tif"
    )


def open_dataset(
    path: str | Path,
    driver: str,
    where: str,
    identity: Mapping[str, Any] | None = None,
    opener: FileContainer | None = None,
    options: Mapping[str, str] = OPTIONS,
) -> Opened:
    """A dataset opened by one driver, its header looked at; ``where`` is what errors call it.

    ``opener`` is the folder that GDAL sees in place of the disk: ``path`` is a name in it.

    Raises:
        RasterioError: GDAL cannot read it.
        CorruptRasterError: it names other files, or holds what is not read (see ``_check``).
    """
    # rasterio keeps openers in a context variable: with a context of its own, a handle can be used
    # and closed in any thread.
    context, seen_through = Context(), ExitStack()
    if opener is not None:
        # JPEG 2000 is else decoded in threads of GDAL's own, in which openers are not found: blocks
        # would be missing without a word.
        options = {**options, "GDAL_NUM_THREADS": "1"}
    with rasterio.Env(**options):
        if opener is not None:
            folder = _opener_registration(f"{uuid.uuid4().hex}/{path}", opener)
            path = context.run(seen_through.enter_context, folder)
        try:
            dataset = context.run(rasterio.open, path, driver=driver)
        except BaseException:
            # GDAL's half of a dataset that rasterio failed to make is freed later, no one knows
            # when, and still reads through the opener then.
            _HALF_OPENED.append((context, seen_through))
            raise
        opened = Opened(dataset, context, options, identity or {}, seen_through)
        try:
            context.run(_check, dataset, where)
        except BaseException:
            opened.close()
            raise
    return opened


_HALF_OPENED: list[tuple[Context, ExitStack]] = []


def _check(dataset: rasterio.DatasetReader, where: str) -> None:
    colours = list(dataset.colorinterp)
    if ColorInterp.alpha in colours[:-1]:
        raise CorruptRasterError(
            f"{where} has its alpha as band {colours.index(ColorInterp.alpha) + 1} of "
            f"{len(colours)}, alpha is the last band: order them with gdal_translate -b 1 ..., or "
            "take the mark away with gdal_edit.py -colorinterp_N undefined"
        )
    # The one way for a GeoTIFF or JPEG 2000 file to have GDAL open another, by any driver.
    if dataset.tags(ns="OVERVIEWS"):
        raise CorruptRasterError(
            f"{where} names another file as its overviews, and other files are not opened: "
            "write it anew with gdal_translate IN OUT.tif"
        )
    kinds = sorted({*dataset.dtypes})
    if len(kinds) > 1 or kinds[0].startswith("complex"):
        what = "complex numbers" if len(kinds) == 1 else f"bands of {' and '.join(kinds)}"
        raise CorruptRasterError(
            f"{where} holds {what}, bands of one type of real numbers are read: convert it with "
            "gdal_translate -ot Float32 IN OUT.tif"
        )
    height, width = dataset.block_shapes[0]
    together = dataset.count if dataset.profile.get("interleave") == "pixel" else 1
    item_bytes = max(int("".join(filter(str.isdigit, kinds[0])) or 64) // 8, 1)
    num_bytes = height * width * together * item_bytes
    if num_bytes > MOST_BLOCK_BYTES:
        raise CorruptRasterError(
            f"{where} lies in blocks of {height} x {width} px, {num_bytes >> 20} MiB each, and one "
            f"pixel costs a whole block; at most {MOST_BLOCK_BYTES >> 20} MiB are read: retile it "
            "with gdal_translate -co TILED=YES IN OUT.tif"
        )


# Local files


def open_local(path: Path, vrt: bool = False) -> Opened | None:
    """The raster at a local path, or None where nothing is; ``vrt``: a person named it.

    Raises:
        RasterioError: GDAL cannot read it.
        CorruptRasterError: it is no ordinary file, no raster, or one that names other files.
    """
    if not os.path.lexists(path):
        archive = archive_of(path)
        return _open_in_archive(archive, path) if archive else None
    if vrt and path.suffix.lower() == ".vrt":
        return _open_vrt(path)
    with _ordinary(path) as file:
        driver = driver_of(file.read(16), str(path))
        identity: dict[str, Any] = {**_version(os.fstat(file.fileno()))}
    beside = _beside(path, _BESIDE)
    world = _beside(path, _WORLD_FILES)
    identity |= {"beside": {each.name: _version(each.stat()) for each in [*beside, *world]}}
    for each in beside:
        if each.suffix in (".msk", ".ovr"):
            # GDAL opens these as whatever they are: no GeoTIFF, or one that names other files, is
            # refused.
            with _ordinary(each) as file:
                kind = driver_of(file.read(16), str(each))
            with warnings.catch_warnings():  # it need not say where it lies
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                open_dataset(each.absolute(), kind, str(each)).close()
    if beside:
        folder = _Folder({each.name: each for each in (path, *beside)})
        options = {**OPTIONS, "GDAL_DISABLE_READDIR_ON_OPEN": "FALSE"}
        opened = open_dataset(path.name, driver, str(path), identity, folder, options)
    else:
        if not world:
            del identity["beside"]
        # Absolute: a relative path could read as an address of GDAL's.
        opened = open_dataset(path.absolute(), driver, str(path), identity)
    if world and opened.affine.is_identity:
        # Six lines: the steps of x and y a column, those a row, the first pixel's middle.
        try:
            a, d, b, e, x, y = (float(line) for line in read_bytes(world[0], 4096).split())
        except (OSError, ValueError) as error:
            raise CorruptRasterError(
                f"{world[0]} is no world file of six numbers ({error}): correct it or take it away"
            ) from error
        opened.affine = Affine(a, b, x, d, e, y) @ Affine.translation(-0.5, -0.5)
    return opened


def archive_of(path: Path) -> Path | None:
    """The .zip file through which a path leads; None where it leads through none."""
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent
    return None


def read_in_archive(archive: Path, name: str, num_bytes: int) -> tuple[bytes, zipfile.ZipInfo]:
    """The first bytes of a file in a .zip, and what the archive says of it.

    Raises:
        KeyError: there is no such file in it.
        CorruptRasterError: it cannot be read.
    """
    try:
        with _ordinary(archive) as file, zipfile.ZipFile(file) as opened:
            about = opened.getinfo(name)
            with opened.open(about) as content:
                return content.read(num_bytes), about
    # zipfile says RuntimeError of what is encrypted
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise CorruptRasterError(
            f"{name} in {archive} cannot be read ({error}): fetch the archive again, or unpack it"
        ) from error


def _open_in_archive(archive: Path, path: Path) -> Opened | None:
    """A raster in a .zip: nothing beside it is read."""
    name = path.relative_to(archive).as_posix()
    try:
        head, about = read_in_archive(archive, name, 16)
    except KeyError:
        return None
    identity = {"size": about.file_size, "crc32": about.CRC}
    driver = driver_of(head, str(path))
    return open_dataset(f"/vsizip/{{{archive.absolute()}}}/{name}", driver, str(path), identity)


def _ordinary(path: Path) -> IO[bytes]:
    try:
        return open_file(path)
    except OSError as error:
        raise CorruptRasterError(
            f"{path} cannot be read ({error.strerror}): give the path of a raster file"
        ) from error


def _version(status: os.stat_result) -> dict[str, int]:
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _beside(path: Path, endings: Iterable[str]) -> list[Path]:
    """What lies beside a raster and belongs to it; a world file's name has no ``.tif``."""
    names = [(path.stem if "w" in ending else path.name) + ending for ending in endings]
    found = [path.with_name(name) for name in names if os.path.lexists(path.with_name(name))]
    for each in found:
        _ordinary(each).close()
    return found


class _Folder(FileContainer):
    """A folder as GDAL sees it: these files and no others."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def open(self, path: str, mode: str = "r", **options: Any) -> IO[bytes]:
        if mode not in ("r", "rb") or not self.isfile(path):
            raise FileNotFoundError(path)
        return open_file(self._files[Path(path).name])

    def isfile(self, path: str) -> bool:
        return Path(path).name in self._files

    def isdir(self, path: str) -> bool:
        return not self.isfile(path) and "." not in Path(path).name

    def ls(self, path: str) -> list[str]:
        return list(self._files)

    def mtime(self, path: str) -> int:
        return int(self._files[Path(path).name].stat().st_mtime)

    def rm(self, path: str) -> None:
        raise PermissionError(path)

    def size(self, path: str) -> int:
        return self._files[Path(path).name].stat().st_size


# Files on web servers

_PAGE_BYTES = 32 * 1024
"""Holds the whole header of a WorldCover tile (23 KiB)."""


class WebFile(MultiByteRangeResourceContainer):
    """A file on a web server as GDAL opens it: a folder with this one file in it.

    GDAL calls from C, where an exception would be lost: the first one is kept in ``failure``, and
    from then on every read comes back empty at once.
    """

    def __init__(self, web: Web, url: str):
        header = web.get(url, 0, _PAGE_BYTES)
        self.name = "raster"  # what a server calls it means nothing
        self.num_bytes, self.identity = header.file_bytes, header.identity
        self.failure: BaseException | None = None
        self.max_requests = 1
        self._web, self._url, self._header = web, url, header.body
        self._page = lru_cache(maxsize=64)(self._fetch_page)

    def read_at(self, offset: int, num_bytes: int) -> bytes:
        """Bytes from anywhere, fewer at the end of the file; small pieces from pages kept."""
        end = min(offset + num_bytes, self.num_bytes)
        if end <= offset:
            return b""
        if end - offset > _PAGE_BYTES:
            return self._body(self._web.get(self._url, offset, end - offset))
        first = offset // _PAGE_BYTES
        pages = b"".join(self._page(page) for page in range(first, -(-end // _PAGE_BYTES)))
        return pages[offset - first * _PAGE_BYTES : end - first * _PAGE_BYTES]

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of runs of blocks, all fetched at once, long runs in several parts."""
        end = max(offset + size for offset, size in ranges)
        if end > self.num_bytes:
            raise Damaged(f"it ends after {self.num_bytes} of at least {end} bytes")
        parts = [_parts(run, ranges, self.max_requests, self._web.part_bytes) for run in ranges]
        answers = iter(self._web.get_all(self._url, [part for run in parts for part in run]))
        return [b"".join(self._body(next(answers)) for _ in run) for run in parts]

    def _fetch_page(self, page: int) -> bytes:
        if page == 0:
            return self._header
        return self._body(self._web.get(self._url, page * _PAGE_BYTES, _PAGE_BYTES))

    def _body(self, answer: Answer) -> bytes:
        if answer.identity != self.identity:
            raise Damaged("it changed on the server while it was being read")
        return answer.body

    def open(self, path: str, mode: str = "r", **options: Any) -> _WebCursor:
        """The file, from its beginning."""
        if not self.isfile(path):
            raise FileNotFoundError(path)
        return _WebCursor(self)

    def isfile(self, path: str) -> bool:
        """Whether it is this one."""
        return Path(path).name == self.name

    def isdir(self, path: str) -> bool:
        """The folder itself is not looked at."""
        return False

    def ls(self, path: str) -> list[str]:
        """So that nothing beside the file is looked for."""
        return []

    def mtime(self, path: str) -> int:
        """Not known."""
        return 0

    def rm(self, path: str) -> None:
        """Never."""
        raise PermissionError(path)

    def size(self, path: str) -> int:
        """Of the file, in bytes."""
        return self.num_bytes


def _parts(
    run: tuple[int, int],
    runs: Sequence[tuple[int, int]],
    max_requests: int,
    least_bytes: int = 64 * 1024,
) -> list[tuple[int, int]]:
    """A run ``(offset, size)`` cut so that all runs together take ``max_requests`` parts at most.

    GDAL merges neighbouring blocks into one run; apart they arrive sooner. Every run is one part,
    and the parts to spare are shared in proportion to the runs' sizes; below ``least_bytes`` a
    request costs more in latency than its bytes take to arrive.
    """
    offset, size = run
    to_spare = max(max_requests - len(runs), 0) * size // sum(other for _, other in runs)
    part_bytes = math.ceil(size / (1 + min(to_spare, size // least_bytes)))
    return [
        (start, min(part_bytes, offset + size - start))
        for start in range(offset, offset + size, part_bytes)
    ]


class _WebCursor:
    """GDAL's position in a ``WebFile``."""

    def __init__(self, file: WebFile):
        self._file, self._position = file, 0

    def __enter__(self) -> _WebCursor:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def read(self, num_bytes: int = -1) -> bytes:
        if self._file.failure:
            return b""
        if num_bytes < 0:
            num_bytes = self._file.num_bytes - self._position
        try:
            data = self._file.read_at(self._position, num_bytes)
        except BaseException as error:
            self._file.failure = error
            return b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.num_bytes}
        self._position = start[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        try:
            if not self._file.failure:
                return self._file.read_ranges(list(zip(offsets, sizes, strict=True)))
        except BaseException as error:
            self._file.failure = error
        # GDAL takes whatever is in its buffers for the file's bytes: fill them.
        return [bytes(size) for size in sizes]

    def close(self) -> None:
        pass


# VRT: of its many elements those that lay rasters side by side and say what their numbers mean.

_VRT_BYTES = 2**25
_NAME_CHARACTERS = 255

_DROPPED = {
    "Metadata", "Histograms", "OverviewList", "CategoryNames", "ColorTable",
    "GDALRasterAttributeTable",
}  # fmt: skip
_SOURCES = ("SimpleSource", "ComplexSource", "AveragedSource", "KernelFilteredSource")
_SOURCE = {
    "SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA",
    "ScaleOffset", "ScaleRatio", "LUT", "UseMaskBand",
}  # fmt: skip
_BAND = {
    "Description", "UnitType", "NoDataValue", "Scale", "Offset", "ColorInterp", "HideNoDataValue",
    *_SOURCES,
}  # fmt: skip
_TAKEN: Mapping[str, set[str]] = {
    "VRTDataset": {
        "SRS", "GeoTransform", "BlockXSize", "BlockYSize", "VRTRasterBand", "MaskBand",
    },
    "MaskBand": {"VRTRasterBand"},
    "VRTRasterBand": _BAND,
    **dict.fromkeys(_SOURCES, _SOURCE),
}  # fmt: skip


def _open_vrt(path: Path) -> Opened:
    try:
        content = read_bytes(path, _VRT_BYTES)
        text = content.decode()
        if "<!" in text.replace("<!--", ""):  # entities may name files
            raise _refused(path, "declares things of its own (<!...>)")
        root = ElementTree.fromstring(text)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise CorruptRasterError(
            f"{path} cannot be read as a VRT ({error}): write it anew with gdalbuildvrt"
        ) from error
    if root.tag != "VRTDataset":
        raise _refused(path, f"holds {shortened(repr(root.tag))}, no <VRTDataset>")
    sources: dict[Path, dict[str, int]] = {}
    _keep_known(root, path, lambda element: _take_source(element, path, sources))
    versions = "".join(f"{name} {version}\n" for name, version in sources.items())
    identity = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "sha256 of its sources' names and versions": hashlib.sha256(versions.encode()).hexdigest(),
    }
    plain = ElementTree.tostring(root, encoding="unicode")
    return open_dataset(plain, "VRT", str(path), identity)


def _refused(path: Path, what: str) -> CorruptRasterError:
    return CorruptRasterError(
        f"{path} {what}; of VRTs those are read that lay GeoTIFFs or JPEG 2000 files below their "
        "own folder side by side: write it anew with gdalbuildvrt"
    )


def _keep_known(
    element: ElementTree.Element, path: Path, take_source: Callable[[ElementTree.Element], None]
) -> None:
    """Leave of a VRT what is known, and refuse it where more than names and colours would go."""
    for name, kind in element.attrib.items():
        if name.lower() == "subclass" and kind != "VRTSourcedRasterBand":  # to GDAL case is one
            raise _refused(path, f"has a part of the kind {shortened(repr(kind))}")
    for child in list(element):
        if child.tag in _DROPPED:
            element.remove(child)
        elif child.tag not in _TAKEN[element.tag]:
            raise _refused(path, f"has a part {shortened(repr(child.tag))} in <{element.tag}>")
        elif child.tag in _TAKEN:
            _keep_known(child, path, take_source)
        elif len(child):
            raise _refused(path, f"has parts in <{child.tag}>")
    if element.tag in _SOURCES:
        take_source(element)


def _take_source(
    element: ElementTree.Element, vrt: Path, sources: dict[Path, dict[str, int]]
) -> None:
    """Give a source its whole path, once it is known to be a raster below the VRT's folder."""
    names = element.findall("SourceFilename")
    if len(names) != 1:
        raise _refused(vrt, f"names {len(names)} files in one source")
    (name,) = names
    given = (name.text or "").strip()
    if not given.isprintable() or len(given) > _NAME_CHARACTERS:
        raise _refused(vrt, f"names {shortened(repr(given))}, which is no name of a file")
    folder = vrt.resolve().parent
    file = (folder / given if name.get("relativeToVRT") == "1" else Path(given)).resolve()
    if not file.is_relative_to(folder):
        raise _refused(vrt, f"names {shortened(repr(given))}, outside its folder")
    if file not in sources:
        with _ordinary(file) as content:
            driver = driver_of(content.read(16), f"{file}, of {vrt},")
            sources[file] = _version(os.fstat(content.fileno()))
        open_dataset(file, driver, str(file)).close()
    masked = element.find("UseMaskBand") is not None or "mask" in (
        element.findtext("SourceBand") or ""
    )
    mask = file.with_name(f"{file.name}.msk")
    if masked and os.path.lexists(mask):
        raise _refused(vrt, f"takes the mask of {file.name} from {mask}, a file beside it")
    name.text = str(file)
    name.attrib = {"relativeToVRT": "0"}
