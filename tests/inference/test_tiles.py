"""Tiles that survive the program that made them."""

import numpy as np
import pytest
import torch

from bharateo.errors import StorageError
from bharateo.files import scratch
from bharateo.inference.encoder import FrozenEncoder
from bharateo.inference.tiles import CellGrid, predict_tiles
from models.tiny_models import tiny_model

GRID = CellGrid((100, 100), 32, 8, 8)
KEY = "of numbers"


def read(row, col, height, width):
    image = np.arange(100.0, dtype=np.float32)[None, row : row + height, None]
    return np.repeat(image, width, 2), np.ones((height, width), bool)


def first_row(image, valid):
    return image[:, :, ::8, ::8].flatten(2).transpose(1, 2)


def nothing(*_):
    pass


class Counting:
    """Asked for tiles, and stopped after so many."""

    def __init__(self, most=99):
        self.num, self.most = 0, most

    def __call__(self, image, valid):
        if self.num == self.most:
            raise KeyboardInterrupt
        self.num += 1
        return first_row(image, valid)


def predicted_of(folder, ask, **options):
    predicted = predict_tiles(GRID, read, ask, folder, nothing, side=5, **options)
    whole = np.zeros((*GRID.shape, predicted.num_dims))
    for tile, values in predicted:
        whole[tile.rows, tile.cols] = values
    return whole


def test_tiles_are_put_together_as_the_grid_says(tmp_path):
    predicted = predicted_of(tmp_path, first_row)
    np.testing.assert_allclose(predicted[..., 0], np.repeat(8.0 * np.arange(13)[:, None], 13, 1))


def test_what_was_done_is_not_done_again(tmp_path):
    stopped, again = Counting(4), Counting()
    with (
        pytest.raises(KeyboardInterrupt),
        scratch(tmp_path / "out.tif", KEY, nothing) as folder,
    ):
        predicted_of(folder, stopped)
    said = []
    with scratch(tmp_path / "out.tif", KEY, said.append) as folder:
        kept = predicted_of(folder, again)
    assert again.num == 9 - 4
    assert said == []
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(kept, predicted_of(tmp_path, Counting()))


def test_tiles_of_another_key_are_cleared_and_that_is_said(tmp_path):
    with pytest.raises(KeyboardInterrupt), scratch(tmp_path / "out.tif", KEY, nothing) as folder:
        predicted_of(folder, Counting(4))
    said, again = [], Counting()
    with scratch(tmp_path / "out.tif", "of others", said.append) as folder:
        predicted_of(folder, again)
    assert again.num == 9
    assert "held tiles of another input, run or options: deleted" in said[0]


@pytest.mark.parametrize("mark", [None, "", "{", "[]"])
def test_tiles_without_a_key_are_cleared(tmp_path, mark):
    folder = tmp_path / ".out.tif.parts"
    folder.mkdir()
    (folder / "0-0.npy").write_bytes(b"half a clearing")
    if mark is not None:
        (folder / "key").write_text(mark)
    said = []
    with scratch(tmp_path / "out.tif", KEY, said.append) as folder:
        assert not (folder / "0-0.npy").exists()
    assert said


def test_two_programs_do_not_write_the_same_output(tmp_path):
    with (
        scratch(tmp_path / "out.tif", KEY, nothing),
        pytest.raises(StorageError, match=r"another program is writing .*out\.tif"),
        scratch(tmp_path / "out.tif", KEY, nothing),
    ):
        pass


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"cannot write .*out\.tif .*choose another --output"),
        scratch(tmp_path / "file" / "out.tif", KEY, nothing),
    ):
        pass


def test_progress_goes_from_none_to_all(tmp_path):
    shown = []
    predict_tiles(GRID, read, first_row, tmp_path, lambda *now: shown.append(now), side=5)
    assert [done for done, _, _ in shown] == [*range(10)]
    assert {total for _, total, _ in shown} == {9}


def test_predicted_are_kept_in_the_type_asked_for(tmp_path):
    for dtype in ("float16", "float32"):
        (tmp_path / dtype).mkdir()
        predicted = predict_tiles(GRID, read, first_row, tmp_path / dtype, nothing, dtype)
        assert {values.dtype for _, values in predicted} == {np.dtype(dtype)}


def test_the_precision_is_that_of_matrix_products():
    ones = torch.ones(1, 1, 8, 8)
    encoder = FrozenEncoder(tiny_model())
    dtypes = [
        encoder.in_precision(lambda image, valid: image @ image, precision)(ones, ones > 0).dtype
        for precision in ("fp32", "bf16")
    ]
    assert dtypes == [torch.float32, torch.bfloat16]
