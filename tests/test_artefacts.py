import os
from pathlib import Path

import pytest

from bharateo.artefacts import Record, checked, read_json
from bharateo.errors import RunError
from bharateo.files import open_file, read_bytes

REMEDY = "run bharateo pretrain again"


class _Progress(Record):
    step: int
    losses: tuple[float, ...] = ()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_only_ordinary_files_are_opened_and_a_pipe_is_not_waited_for(tmp_path: Path, kind: str):
    path = tmp_path / "thing"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(OSError, match="no ordinary file"):
        open_file(path)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path):
    path = tmp_path / "large"
    path.write_bytes(bytes(11))
    assert len(read_bytes(path, 11)) == 11
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_bytes(path, 10)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[" * 100_000, "nested too deep"),
        (b"1" * 10_000, "digits"),
    ],
)
def test_what_is_no_json_is_said_in_a_line_with_the_remedy(
    tmp_path: Path, content: bytes, reason: str
):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=reason) as caught:
        read_json(path, RunError, REMEDY)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(REMEDY)
    assert len(str(caught.value)) < 300


def test_values_fit_their_type_or_are_refused_by_key():
    record = checked(_Progress, {"step": 3, "losses": [1, 0.5]}, "x.json", RunError, REMEDY)
    assert record == _Progress(step=3, losses=(1.0, 0.5))
    with pytest.raises(RunError, match=r"x\.json: step: .*integer.*not '3'; run bharateo"):
        checked(_Progress, {"step": "3"}, "x.json", RunError, REMEDY)
    with pytest.raises(RunError, match="step is missing"):
        checked(_Progress, {}, "x.json", RunError, REMEDY)
    with pytest.raises(RunError, match=r"losses\.1: .* not None"):
        checked(_Progress, {"step": 1, "losses": [1.0, None]}, "x.json", RunError, REMEDY)
    with pytest.raises(RunError, match="other"):
        checked(_Progress, {"step": 1, "other": 1}, "x.json", RunError, REMEDY)
    with pytest.raises(RunError, match="not JSON serializable"):
        checked(_Progress, {"step": object()}, "x.json", RunError, REMEDY)
