"""Every command and snippet of the README runs here, in its order, on generated tiles.

Training is cut to a few steps of a small model; paths, options and what follows from what are the
README's own.
"""

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bharateo import cli, config
from bharateo.regions import NAMED_ROIS, Roi, tile_windows, worldcover_window
from worldcover_tiles import patchy_codes, write_tile

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PLACES = (*NAMED_ROIS.values(), Roi("pune", 73.86, 18.52), Roi("jaipur", 75.80, 26.92))


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """The lines of all bash blocks that call a program, as words."""
    lines = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    return [words for words in lines if words and words[0] == program]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A WorldCover root with generated codes under every place the README names."""
    root = tmp_path_factory.mktemp("worldcover")
    parts: dict[str, dict[tuple[int, int], object]] = {}
    codes = patchy_codes(2048, 2048, codes=(10, 40, 50, 80))
    for place in PLACES:
        for part in tile_windows(worldcover_window(place)):
            under = codes[: part.height, : part.width]
            parts.setdefault(part.tile, {})[part.row, part.col] = under
    for tile, windows in parts.items():
        write_tile(root, tile, windows)
    return root


@pytest.fixture
def readme_folder(tmp_path, monkeypatch, tiles):
    """A working folder with configs/ in it, tiles instead of the bucket, and little training."""
    load = config.load_config

    def load_small(path, overrides=()):
        full = load(path, overrides)
        return replace(
            full,
            model=replace(full.model, width=16, depth=1, decoder_width=16, decoder_depth=1),
            training=replace(full.training, epochs=1, chips_per_epoch=32, batch_size=16),
        )

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BHARATEO_WORLDCOVER_ROOT", str(tiles))
    monkeypatch.setattr("bharateo.config.load_config", load_small)
    monkeypatch.setattr("bharateo.demo.load_config", load_small)
    return tmp_path


def test_every_command_and_snippet_of_the_readme_runs(readme_folder, capsys):
    for words in commands("bharateo"):
        assert cli.main(words[1:]) == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), {})
    assert (readme_folder / "runs/pune/run/report.html").exists()
    assert (readme_folder / "runs/v0/jaipur.json").exists()
    assert "torch.Size([4, 64, 16])" in capsys.readouterr().out


def test_the_make_targets_the_readme_names_call_what_it_says():
    called = {
        words[1]: subprocess.run(
            ["make", "--dry-run", "--no-print-directory", *words[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for words in commands("make")
    }
    assert called["demo"].rstrip().endswith("bharateo demo")
    assert "-m pytest" in called["test"]


def test_files_and_targets_the_readme_points_to_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert f"\n{target}:" in makefile, target


def test_the_readme_prints_the_attribution_of_its_data():
    for line in ("ESA WorldCover project 2021", "10.5281/zenodo.7254221", "OpenStreetMap", "ODbL"):
        assert line in README
