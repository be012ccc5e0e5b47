import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bharateo.errors import UnknownCodeError
from bharateo.landcover import (
    BHARATEO_CLASSES,
    IGNORE,
    NUM_CLASSES,
    WORLDCOVER,
    class_colours,
    classes_of,
    palette,
    patch_class_counts,
    patch_mode,
)

# ESA WorldCover Product User Manual v2.0, table 3, and the eight classes they fall into.
EXPECTED = {10: 0, 40: 1, 20: 2, 30: 2, 50: 3, 60: 4, 80: 5, 90: 6, 95: 6, 70: 7, 100: 7, 0: IGNORE}

class_maps = arrays(
    np.uint8, (2, 32, 48), elements=st.sampled_from([*range(NUM_CLASSES), IGNORE])
)  # fmt: skip


def test_every_native_code_has_its_class():
    codes = np.array(list(EXPECTED), np.uint8)
    np.testing.assert_array_equal(WORLDCOVER.collapse(codes), list(EXPECTED.values()))
    assert {*WORLDCOVER.native, WORLDCOVER.nodata} == set(EXPECTED)


def test_nodata_is_no_class():
    assert WORLDCOVER.collapse(np.zeros((1, 1), np.uint8)) == IGNORE
    assert WORLDCOVER.describe(0) == "no data"
    assert WORLDCOVER.describe(95) == "Mangroves"


@given(st.integers(0, 255).filter(lambda code: code not in EXPECTED))
def test_any_other_code_is_an_error_that_names_it(code):
    with pytest.raises(UnknownCodeError, match=rf"code {code} in tile\.tif is not"):
        WORLDCOVER.collapse(np.array([10, code, 50], np.uint8), "tile.tif")


def test_native_counts_name_only_what_occurs():
    codes = np.array([[10, 10], [50, 0]], np.uint8)
    assert WORLDCOVER.native_counts(codes) == {0: 1, 10: 2, 50: 1}


def test_the_palette_is_channels_first_and_black_without_a_label():
    ids = np.array([[0, 3], [5, IGNORE]], np.uint8)
    colours = palette(ids)
    assert (colours.shape, colours.dtype) == ((3, 2, 2), np.uint8)
    assert colours[:, 0, 1].tolist() == [215, 48, 39]
    assert colours[:, 1, 1].tolist() == [0, 0, 0]


def test_every_class_has_a_colour_of_its_own():
    colours = {tuple(class_colours()[land_class.id]) for land_class in BHARATEO_CLASSES}
    assert len(colours) == NUM_CLASSES
    assert [land_class.id for land_class in BHARATEO_CLASSES] == list(range(NUM_CLASSES))


@given(class_maps)
def test_patch_counts_agree_with_counting_patch_by_patch(class_ids):
    counts = patch_class_counts(class_ids, 16)
    assert counts.shape == (2, 6, NUM_CLASSES)
    for chip in range(2):
        for token in range(6):
            row, col = token // 3 * 16, token % 3 * 16
            patch = class_ids[chip, row : row + 16, col : col + 16]
            expected = [(patch == land_class.id).sum() for land_class in BHARATEO_CLASSES]
            assert counts[chip, token].tolist() == expected


def test_ties_go_to_the_lowest_class_and_no_label_is_ignored():
    counts = np.array([[0, 3, 0, 3, 0, 0, 0, 0], [0] * 8, [1, 0, 0, 0, 0, 0, 0, 2]])
    assert patch_mode(counts).tolist() == [1, IGNORE, 7]


@given(class_maps)
def test_the_label_of_a_patch_is_one_of_its_most_frequent_classes(class_ids):
    counts = patch_class_counts(class_ids, 16)
    mode = patch_mode(counts)
    labelled = mode != IGNORE
    assert (labelled == (counts.sum(-1) > 0)).all()
    assert (
        counts[labelled][np.arange(labelled.sum()), mode[labelled]] == counts[labelled].max(-1)
    ).all()


def test_a_class_of_two_kinds_is_called_by_the_one_that_occurs():
    native = WORLDCOVER.native
    scheme = {str(code): list(meaning) for code, meaning in native.items()}

    def called(*codes):
        return [each.name for each in classes_of({str(code): 5 for code in codes}, scheme)]

    assert called(10, 90)[6] == "wetland" and called(95)[6] == "mangrove"
    assert called(90, 95)[6] == called()[6] == "wetland_mangrove"
    assert called(20)[2] == "shrub" and called(70)[7] == "snow and ice"
    assert called(20, 30) == [each.name for each in BHARATEO_CLASSES]
    assert [each.id for each in classes_of({"90": 0, "95": 1}, scheme)] == list(range(8))
    assert classes_of({"90": 0, "95": 1}, scheme)[6].name == "mangrove"
