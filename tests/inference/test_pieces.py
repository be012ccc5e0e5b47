"""Pieces that survive the program that made them."""

import numpy as np
import pytest
import torch

from bharateo.errors import StorageError
from bharateo.inference.pieces import CellGrid, answer_all, fingerprint, in_precision, scratch

GRID = CellGrid((100, 100), 32, 8, 8)
PLAN = {"of": "numbers", "options": [1, {"two": None}]}


def read(row, col, height, width):
    image = np.arange(100.0, dtype=np.float32)[None, row : row + height, None]
    return np.repeat(image, width, 2), np.ones((height, width), bool)


def first_row(image, valid):
    return image[:, :, ::8, ::8].flatten(2).transpose(1, 2)


def nothing(*_):
    pass


class Counting:
    """Asked for pieces, and stopped after so many."""

    def __init__(self, most=99):
        self.num, self.most = 0, most

    def __call__(self, image, valid):
        if self.num == self.most:
            raise KeyboardInterrupt
        self.num += 1
        return first_row(image, valid)


def answers_of(folder, ask, **options):
    answers = answer_all(GRID, read, ask, folder, nothing, side=5, **options)
    whole = np.zeros((*GRID.shape, answers.num_dims))
    for piece, values in answers:
        whole[piece.rows, piece.cols] = values
    return whole


def test_pieces_are_put_together_as_the_grid_says(tmp_path):
    answers = answers_of(tmp_path, first_row)
    np.testing.assert_allclose(answers[..., 0], np.repeat(8.0 * np.arange(13)[:, None], 13, 1))


def test_what_was_done_is_not_done_again(tmp_path):
    stopped, again = Counting(4), Counting()
    with (
        pytest.raises(KeyboardInterrupt),
        scratch(tmp_path / "out.tif", PLAN, nothing) as folder,
    ):
        answers_of(folder, stopped)
    said = []
    with scratch(tmp_path / "out.tif", PLAN, said.append) as folder:
        kept = answers_of(folder, again)
    assert again.num == 9 - 4
    assert said == []
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(kept, answers_of(tmp_path, Counting()))


def test_pieces_of_another_plan_are_cleared_and_that_is_said(tmp_path):
    with pytest.raises(KeyboardInterrupt), scratch(tmp_path / "out.tif", PLAN, nothing) as folder:
        answers_of(folder, Counting(4))
    said, again = [], Counting()
    with scratch(tmp_path / "out.tif", {**PLAN, "of": "others"}, said.append) as folder:
        answers_of(folder, again)
    assert again.num == 9
    assert "held pieces of another input, run or options: deleted" in said[0]


@pytest.mark.parametrize("mark", [None, "", "{", "[]"])
def test_pieces_without_a_plan_are_cleared(tmp_path, mark):
    folder = tmp_path / ".out.tif.parts"
    folder.mkdir()
    (folder / "0-0.npy").write_bytes(b"half a clearing")
    if mark is not None:
        (folder / "plan.json").write_text(mark)
    said = []
    with scratch(tmp_path / "out.tif", PLAN, said.append) as folder:
        assert not (folder / "0-0.npy").exists()
    assert said


def test_two_programs_do_not_write_the_same_output(tmp_path):
    with (
        scratch(tmp_path / "out.tif", PLAN, nothing),
        pytest.raises(StorageError, match=r"another program is writing .*out\.tif"),
        scratch(tmp_path / "out.tif", PLAN, nothing),
    ):
        pass


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"cannot write .*out\.tif .*choose another --output"),
        scratch(tmp_path / "file" / "out.tif", PLAN, nothing),
    ):
        pass


def test_progress_goes_from_none_to_all(tmp_path):
    shown = []
    answer_all(GRID, read, first_row, tmp_path, lambda *now: shown.append(now), side=5)
    assert [done for done, _, _ in shown] == [*range(10)]
    assert {total for _, total, _ in shown} == {9}


def test_answers_are_kept_in_the_type_asked_for(tmp_path):
    for dtype in ("float16", "float32"):
        (tmp_path / dtype).mkdir()
        answers = answer_all(GRID, read, first_row, tmp_path / dtype, nothing, dtype)
        assert {values.dtype for _, values in answers} == {np.dtype(dtype)}


def test_plans_differ_by_what_they_hold_not_by_its_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_the_precision_is_that_of_matrix_products():
    ones = torch.ones(1, 1, 8, 8)
    dtypes = [
        in_precision(lambda image, valid: image @ image, precision)(ones, ones > 0).dtype
        for precision in ("fp32", "bf16")
    ]
    assert dtypes == [torch.float32, torch.bfloat16]
