import errno
import json
import os

import pytest

from bharateo.errors import StorageError
from bharateo.files import (
    remove_leftovers,
    remove_leftovers_of,
    write_atomically,
    write_json,
    write_text,
)


class Killed(BaseException):
    """What no code catches."""


def test_a_file_is_written_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, lambda file: file.write(b"content"))
    assert path.read_bytes() == b"content"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_text_is_utf8_and_json_keeps_its_order(tmp_path):
    write_text(tmp_path / "t", "Delhi – दिल्ली")
    assert (tmp_path / "t").read_bytes().decode() == "Delhi – दिल्ली"
    write_json(tmp_path / "j", {"b": 1, "a": "दि"})
    assert (tmp_path / "j").read_text() == '{\n  "b": 1,\n  "a": "दि"\n}\n'
    assert list(json.loads((tmp_path / "j").read_text())) == ["b", "a"]


@pytest.mark.parametrize("error", [Killed(), ValueError("no"), MemoryError()])
def test_whatever_stops_the_writer_the_old_file_stays_and_nothing_lies_about(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208  (hidden files too)


def test_the_content_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    sync, put = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.fstat(fd).st_size), sync(fd)))
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda self, to: (done.append(to.name), put(self, to))
    )
    write_atomically(tmp_path / "file", lambda file: file.write(b"12345"))
    assert done == [5, "file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_trouble_of_the_disk_is_told_with_file_and_remedy(tmp_path, monkeypatch, code):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(descriptor):
        raise OSError(code, "refused")

    monkeypatch.setattr(os, "fsync", refuse)
    said = rf"cannot write {path}: {os.strerror(code)}; free some space or choose another"
    with pytest.raises(StorageError, match=said):
        write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208  (hidden files too)


def test_a_file_where_a_folder_should_be_is_told(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write .*taken/file"):
        write_text(tmp_path / "taken" / "file", "text")
    assert (tmp_path / "taken").read_text() == "a file"


def test_other_errors_of_the_system_pass_through(tmp_path):
    def write(file):
        raise OSError(errno.EINTR, "interrupted")

    with pytest.raises(InterruptedError):
        write_atomically(tmp_path / "file", write)


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in (".file.abc.partial", "deep/.other.1.partial", "file.partial", ".hidden", "kept"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == [".hidden", "deep", "file.partial", "kept"]


def test_what_killed_writers_of_one_file_left_goes_and_others_stay(tmp_path):
    for name in (".a[1].tif.12.partial", ".b.tif.12.partial", "a[1].tif"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers_of(tmp_path / "a[1].tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.tif.12.partial", "a[1].tif"]
