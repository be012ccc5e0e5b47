import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from bharateo.explorer import area, runtime, write
from bharateo.explorer.area import (
    area_of_raster,
    areas_of_dataset,
    covering_masks,
    masked_errors,
)
from bharateo.explorer.chips import chips_of_raster, varied
from bharateo.explorer.records import quantised
from bharateo.files import write_text
from bharateo.geography import to_lonlat
from bharateo.inference.domain import Domain, domain_of
from bharateo.inference.inputs import open_input
from bharateo.inference.tiles import blended_squares
from bharateo.landcover import patch_class_counts, patch_mode
from bharateo.report.render import composite_rgb, physical
from bharateo.verbs.cli import main
from explorer.page_records import array, record
from handover.tiny_run import tiny_run
from inference.ground import write_raster
from models.tiny_models import HEADS
from small_datasets import contents

QUIET = lambda *told: None  # noqa: E731


def small_model(run, path, what):
    """In place of an export, which takes a while."""
    path.write_bytes(b"model")


@pytest.fixture(scope="module")
def areas(explored_run, reflectance_dataset):
    return areas_of_dataset(explored_run, reflectance_dataset, QUIET)[0]


@pytest.mark.parametrize("num_tokens", [16, 64])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.75])
def test_the_masks_hide_every_patch(num_tokens, ratio):
    masks = covering_masks(num_tokens, ratio)
    assert torch.stack([mask.hidden[0] for mask in masks]).any(0).all()
    assert {len(mask.masked[0]) for mask in masks} == {int(num_tokens * ratio)}
    assert all(sorted(mask.order[0].tolist()) == [*range(num_tokens)] for mask in masks)


def test_where_nothing_is_hidden_no_mask_covers_anything():
    assert covering_masks(16, 0) == []


def test_errors_are_in_physical_units_over_valid_pixels(explored_run, monkeypatch):
    model = explored_run.model
    image = torch.rand(2, model.num_bands, 32, 32, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[0, :8, :8] = False
    valid[1, :8, :3] = False

    def off_by_half(run, batch, mask, baselines):
        target = run.heads["pixels"].target(batch, model)
        by_band = target.unflatten(2, (model.num_bands, -1)) + 0.5 / model.normalise.std[:, None]
        return {name: {"pixels": by_band.flatten(2)} for name in ("model", *baselines)}

    monkeypatch.setattr(area, "predictions", off_by_half)
    expected = torch.full((2, 16), 0.5)
    expected[0, 0] = 0  # without a valid pixel
    torch.testing.assert_close(masked_errors(explored_run, image, valid)[..., 0], expected)


def test_patches_carry_the_labels_of_their_place(areas, reflectance_dataset):
    area = areas[0]
    labels = patch_mode(area.patches.counts)
    for patch in range(0, len(labels), 37):
        row, col = area.patches.row[patch], area.patches.col[patch]
        here = area.labels[row : row + 8, col : col + 8]
        assert labels[patch] == patch_mode(patch_class_counts(here[None], 8))[0, 0]


def test_squares_are_shown_at_full_resolution(areas, reflectance_dataset):
    area, sensor = areas[0], reflectance_dataset.sensor
    chips = reflectance_dataset.chips
    chip = chips[chips["region"] == area.name].iloc[-1]
    image = physical(reflectance_dataset.image(chip["chip"]), sensor)
    expected = composite_rgb(image, sensor, reflectance_dataset.valid(chip["chip"]))
    rows, cols = (slice(chip[axis], chip[axis] + 48) for axis in ("row", "col"))
    assert (area.pictures["all"][rows, cols] == expected).all()


def test_of_large_ground_a_window_is_taken_where_squares_lie(
    explored_run, reflectance_dataset, monkeypatch
):
    from bharateo.explorer import area as module

    monkeypatch.setattr(module, "MOST_PIXELS", 2 * 120**2)
    cut = areas_of_dataset(explored_run, reflectance_dataset, QUIET)[0][0]
    assert cut.geobox.shape == (120, 120)
    assert "120 by 120" in cut.left_out
    assert len(cut.patches.row)
    assert (cut.patches.row + 8 <= 120).all()


def test_rounded_vectors_are_compared_as_search_compares_them():
    vectors = np.random.default_rng(0).normal(3, 5, (200, 32)).astype(np.float32)
    standard = (vectors - vectors.mean(0)) / vectors.std(0)

    def cosines(rows):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ rows.T

    found = cosines(quantised(vectors).astype(np.float64))
    np.testing.assert_allclose(found, cosines(standard), atol=0.01)


def test_the_commonest_classes_take_turns():
    chips = np.stack([np.full((4, 4), cls, np.uint8) for cls in (0, 0, 0, 3, 5, 255)])
    clear = np.array([True, True, True, True, True, True])
    chosen = varied(chips, clear, 4)
    assert {int(chips[i, 0, 0]) for i in chosen[:3]} == {0, 3, 5}
    assert 5 not in chosen


def test_a_raster_is_explored_too(explored_run, tmp_path):
    source = open_input(str(write_raster(tmp_path / "ground.tif")), explored_run.contract)
    area = area_of_raster(explored_run, source, "ground", QUIET)
    assert 0.01 < (area.pictures["all"] == 255).mean() < 0.3  # stretched to its own values
    assert area.geobox.shape == source.shape
    assert len(area.patches.row) <= 19 * 24
    assert np.isfinite(area.patches.vectors).all()
    chip = chips_of_raster(explored_run, source, area)[0]
    _, row, col = chip.name.split("/")
    values, valid = source.read(int(row), int(col), 32, 32)
    np.testing.assert_allclose(chip.image[:, valid], values[:, valid], atol=1e-6)
    assert area.geobox.affine.almost_equals(source.geobox.affine @ Affine.identity())


def test_a_page_says_what_was_allowed_to_differ(explored_run, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "write_onnx", small_model)
    raster = str(write_raster(tmp_path / "ground.tif"))
    source = open_input(raster, explored_run.contract)
    odd = replace(source, overridden={"statistics": f"{raster} is brighter"})
    page = write.write_explorer(explored_run, odd, tmp_path / "page", QUIET, QUIET).read_text()
    assert "ground.tif is brighter" in page
    assert str(tmp_path) not in page


def test_ground_out_of_the_domain_is_said_above_all_tabs(explored_run, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "write_onnx", small_model)
    source = open_input(str(write_raster(tmp_path / "ground.tif")), explored_run.contract)
    domain = domain_of(explored_run, QUIET)
    far = lambda self, views: torch.full(views.features.shape[:2], 2.0)  # noqa: E731
    monkeypatch.setattr(Domain, "distance", far)
    page = write.write_explorer(
        explored_run, source, tmp_path / "page", QUIET, QUIET, domain=domain
    ).read_text()
    assert page.index("100 % of the patches shown") < page.index("<section")
    assert (array(record(tmp_path / "page", "area-0")["distance"]) == 2).all()
    assert record(tmp_path / "page", "explorer")["raster"] == "ground.tif"


def test_between_knots_places_are_off_by_centimetres(areas):
    geobox = GeoBox((2048, 2048), Affine(10, 0, 500_000, 0, -10, 5_800_000), "EPSG:32643")
    view = replace(areas[0], geobox=geobox)
    between = (view.knots[:-1, :-1] + view.knots[1:, 1:]) / 2
    at = (np.arange(area.KNOTS - 1) + 0.5) * 2048 / (area.KNOTS - 1)
    x, y = np.meshgrid(at, at)
    exact = to_lonlat(geobox, np.stack([x.ravel(), y.ravel()])).T.reshape(between.shape)
    metres = np.abs(between - exact) * [111_000 * np.cos(np.radians(52)), 111_000]
    assert metres.max() < 0.1


# The folder


def test_the_page_says_whose_pixels_it_shows(explorer):
    text = (explorer / "index.html").read_text()
    assert "Pixels by nobody" in text
    assert "Labels by nobody" in text


def test_no_file_names_a_place_on_this_machine(explorer, explored_run):
    for path in explorer.rglob("*"):
        if path.is_file():
            assert str(explored_run.path.parent) not in path.read_text()


def test_chips_are_of_the_test_split_first(explorer):
    assert {each["split"] for each in record(explorer, "explorer")["chips"]} == {"test"}


def test_the_vectors_are_small_whole_numbers(explorer):
    vectors = array(record(explorer, "area-0")["vectors"])
    assert vectors.dtype == np.int8
    assert (np.abs(vectors).max(1) == 127).all()


@pytest.mark.parametrize("head", ["pixels", "landcover"])
def test_a_run_of_one_head_is_explored_as_far_as_it_goes(
    head, reflectance_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(write, "write_onnx", small_model)
    run = tiny_run(tmp_path / "run", reflectance_dataset, heads={head: HEADS[head]}, depth=1)
    write.write_explorer(run, reflectance_dataset, tmp_path / "page", QUIET, QUIET)
    area, page = record(tmp_path / "page", "area-0"), record(tmp_path / "page", "explorer")
    assert (area["probabilities"] is None) == (head == "pixels")
    assert (area["error"] is None) == (head == "landcover")
    assert bool(page["no_painting"]) == (head == "landcover")
    assert (tmp_path / "page" / "data" / "model.js").exists() == (head == "pixels")


def test_a_model_too_big_stays_out(explored_run, reflectance_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "write_onnx", small_model)
    said = []
    write.write_explorer(explored_run, reflectance_dataset, tmp_path, QUIET, said.append, 0.5)
    assert "million parameters" in said[-1]
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"explorer.js", "area-0.js", "area-1.js"}
    assert "more than 0.5 MB" in record(tmp_path, "explorer")["no_painting"]


def test_a_killed_page_is_not_there_and_is_written_again(
    explored_run, reflectance_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(write, "write_onnx", small_model)
    arguments = (explored_run, reflectance_dataset, tmp_path / "page", QUIET, QUIET)
    write.write_explorer(*arguments)

    def killed(path, text):
        if path.name == "style.css":
            raise KeyboardInterrupt
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            write.write_explorer(*arguments)
    assert not (tmp_path / "page" / "index.html").exists()
    write.write_explorer(*arguments)
    assert (tmp_path / "page" / "index.html").exists()


@pytest.mark.slow
def test_a_killed_page_goes_on_where_it_stopped(
    explored_run, reflectance_dataset, tmp_path, monkeypatch
):
    exported, asked = [], []

    def export(run, path, what):
        exported.append(path)
        small_model(run, path, what)

    def squares(image, *arguments):
        """Two passes over some squares, killed in the first one over the third few."""
        asked.append(image.numpy().tobytes())
        if len(asked) == 5:
            raise KeyboardInterrupt
        return blended_squares(image, *arguments)

    monkeypatch.setattr(write, "write_onnx", export)
    monkeypatch.setattr(area, "SQUARES_AT_ONCE", 2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write.write_explorer(explored_run, reflectance_dataset, whole, QUIET, QUIET)
    exported.clear()
    monkeypatch.setattr(area, "blended_squares", squares)
    with pytest.raises(KeyboardInterrupt):
        write.write_explorer(explored_run, reflectance_dataset, killed, QUIET, QUIET)
    assert not killed.exists()
    write.write_explorer(explored_run, reflectance_dataset, killed, QUIET, QUIET)
    assert len(exported) == 1
    assert asked[0] == asked[1] not in asked[4:]
    assert contents(killed) == contents(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "killed"}


@pytest.mark.slow
@pytest.mark.long
def test_a_page_ended_again_and_again_ends_in_the_same_bytes(
    explorer, explored_run, reflectance_dataset, tmp_path
):
    page = tmp_path / "page"
    command = [sys.executable, "-m", "bharateo", "explore", str(explored_run.path), "--dataset",
               str(reflectance_dataset.path), "--output", str(page)]  # fmt: skip
    moments = random.Random(0)
    for by in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        parts = page.with_name(".page.parts")
        while not any(parts.glob("*.*")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 6))
        process.send_signal(by)
        process.wait()
        if (page / "index.html").exists():
            assert contents(page) == contents(explorer)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert contents(page) == contents(explorer)


def test_a_file_of_somebody_in_a_page_is_not_lost(
    explored_run, reflectance_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(write, "write_onnx", small_model)
    arguments = (explored_run, reflectance_dataset, tmp_path / "page", QUIET, QUIET)
    write.write_explorer(*arguments)
    (tmp_path / "page" / "data" / "notes.txt").write_text("mine")
    write.write_explorer(*arguments)
    assert (tmp_path / "page" / "data" / "notes.txt").read_text() == "mine"


def test_a_folder_of_something_else_is_left_alone(explored_run, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["explore", str(explored_run.path), "--output", str(tmp_path)]) == 1
    assert "thesis.txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_missing_runtime_is_named_with_its_remedy(explored_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(write, "runtime_files", lambda: runtime.runtime_files(tmp_path))
    output = str(tmp_path / "page")
    assert main(["explore", str(explored_run.path), "--output", output]) == 1
    assert "make explorer" in capsys.readouterr().err
