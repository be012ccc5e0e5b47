"""Files: written so that a killed program leaves either the old one or the new, never half; read
only where they are files."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from bharateo.errors import BharatEOError, StorageError

try:
    import fcntl
except ImportError:  # Windows: two programs with the same output are not noticed there
    fcntl = None  # type: ignore[assignment]

_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG}
_DISK_TROUBLE |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # a file where a folder should be


def cache_folder() -> Path:
    """Where what was fetched is kept: ``$BHARATEO_CACHE``, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("BHARATEO_CACHE") or platformdirs.user_cache_path("bharateo"))


def open_file(path: Path) -> BufferedReader:
    """An ordinary file, opened for reading.

    Raises:
        OSError: there is none, or it is a folder, a pipe, a socket or a device. A pipe is never
            waited for.
    """
    # Without O_NONBLOCK the open itself waits for whoever may write to a pipe.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int = 2**28) -> bytes:
    """The whole content of an ordinary file.

    Raises:
        OSError: see ``open_file``; also where there are more bytes than ``limit``.
    """
    with open_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
    return content


def target_outside(folder: Path, name: str) -> Path | None:
    """Where a file of a folder really lies if it is a link to somewhere else; None if it is not.

    The cache of the Hugging Face Hub is known: its ``snapshots/REVISION`` link to its ``blobs``.
    """
    whole, target = folder.resolve(), (folder / name).resolve()
    snapshots = next((each for each in whole.parents if each.name == "snapshots"), None)
    blobs = whole if snapshots is None else snapshots.parent / "blobs"
    inside = target.is_relative_to(whole) or target.is_relative_to(blobs)
    return None if inside else target


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write ``path`` through ``write(file)``: aside, synced to disk, then renamed into place.

    Raises:
        StorageError: the disk is full or refuses; the old file, if any, is untouched.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if error.errno in _DISK_TROUBLE:
            raise StorageError(
                f"cannot write {path}: {os.strerror(error.errno or 0)}; free some space or choose "
                "another --output, then run the same command again: it goes on where it stopped"
            ) from error
        raise
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; halves of surrogate pairs become question marks."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file atomically, indented, with keys in their given order."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def remove_leftovers(folder: Path) -> None:
    """Delete the files that killed writers left aside in ``folder``."""
    for path in folder.rglob(".*.partial"):
        path.unlink(missing_ok=True)


def remove_leftovers_of(path: Path) -> None:
    """Delete what killed writers of this one file left aside."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        aside.unlink(missing_ok=True)


def take_lock(file: IO[bytes], trouble: BharatEOError) -> None:
    """Lock an open file; the system drops the lock when its holder dies, however that happens.

    Raises:
        BharatEOError: another program holds it; it is ``trouble``.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise trouble from error


# Finished parts of an output, until all is there

_KEY_FILE = "key"


@contextlib.contextmanager
def scratch(output: Path, key: str, say: Callable[[str], object]) -> Iterator[Path]:
    """A folder beside ``output`` for finished tiles; it goes when the context ends well.

    What a killed program left there is used again if its ``key``, which tells what decides the
    tiles, was the same, else cleared.

    Raises:
        StorageError: another program is writing the same output, or the disk refuses.
    """
    folder = _scratch_folder(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
    except OSError as error:
        raise StorageError(f"cannot write {output} ({error}): choose another --output") from error
    with lock:
        busy = (
            f"another program is writing {output}: wait for it to end, or choose another --output"
        )
        take_lock(lock, StorageError(busy))
        mark = folder / _KEY_FILE
        leftovers = [path for path in folder.iterdir() if path.name != "lock"]
        if leftovers and not (mark.exists() and mark.read_text() == key):
            say(f"{folder} held tiles of another input, run or options: deleted, and made anew")
            mark.unlink(missing_ok=True)  # first: what is left without it is cleared the next time
            for path in leftovers:
                path.unlink(missing_ok=True)
        remove_leftovers(folder)
        write_text(mark, key)
        yield folder
    shutil.rmtree(folder)


def clear_scratch(output: Path, key: str, say: Callable[[str], object]) -> None:
    """Remove what a program left that was killed after it had finished ``output``.

    Raises:
        StorageError: it is still there, and removing it.
    """
    folder = _scratch_folder(output)
    mark = folder / _KEY_FILE
    if folder.is_dir() and (not mark.exists() or mark.read_text() == key):
        with scratch(output, key, say):
            pass


def _scratch_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")
