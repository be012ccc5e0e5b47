"""The house stands as the design document draws it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import draw_rooms  # noqa: E402


def test_the_design_document_shows_the_rooms_the_code_has():
    text = draw_rooms.DESIGN.read_text()
    assert draw_rooms.redrawn(text) == text, "run `python docs/draw_rooms.py`"


def test_every_room_says_in_one_line_what_lives_there():
    for room, files in draw_rooms.rooms().items():
        for file in files:
            assert draw_rooms.first_line(file), f"{room}: {file.name}"


def test_a_room_is_drawn_on_what_it_imports():
    drawn = draw_rooms.picture()
    assert "evaluation/" in drawn.split("training/")[0]
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert draw_rooms.levels(graph) == [["a"], ["b"], ["c"]]
    assert draw_rooms.direct(graph, "a") == ["b"]


@pytest.mark.parametrize(
    ("module", "kept_out"),
    [
        ("bharateo.verbs.cli", ("torch", "numpy", "rasterio", "matplotlib")),
        ("bharateo.chips.build", ("torch", "matplotlib")),
        ("bharateo.sources.worldcover", ("torch", "matplotlib")),
        ("bharateo.training.loop", ("rasterio", "matplotlib")),
    ],
)
def test_importing_a_room_leaves_heavy_libraries_out(module, kept_out):
    code = f"import sys, {module}; print([name for name in {kept_out!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_tracked_file_is_large():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    large = [
        name
        for name in listed.stdout.splitlines()
        if (ROOT / name).is_file() and (ROOT / name).stat().st_size > 1_000_000
    ]
    assert large == []
