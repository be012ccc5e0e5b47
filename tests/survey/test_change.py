"""Noise is no change, planted change is found, and maps that cannot be compared are refused."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from bharateo.errors import ConfigError, ContractError, SourceError
from bharateo.survey.change import Share, _above_repeats, _Blocks, _row
from bharateo.verbs.cli import main
from bharateo.verbs.survey import change
from survey.class_maps import AFFINE, districts, write_classes

SHAPE = (240, 320)


def noisy(truth, rng, share=0.12):
    """A map of a truth with errors in clumps of some cells, as maps have them."""
    field = gaussian_filter(rng.normal(size=truth.shape), 1.5)
    wrong = field > np.quantile(field, 1 - share)
    return np.where(wrong, (truth + rng.integers(1, 4, truth.shape)) % 4, truth)


def planted(truth, share):
    """A truth in which a rectangle of ground became town (2)."""
    height = int(truth.shape[0] * 0.4)
    width = round(share * truth.size / height)
    after = truth.copy()
    square = after[20 : 20 + height, 30 : 30 + width]
    after[20 : 20 + height, 30 : 30 + width] = np.where(square == 2, 3, 2)
    return after


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng, folder = np.random.default_rng(5), tmp_path_factory.mktemp("change")
    truth = rng.choice(4, (30, 40), p=[0.5, 0.35, 0.14, 0.01]).repeat(8, 0).repeat(8, 1)
    for name, ground in (
        ("before", truth), ("again", truth), ("third", truth), ("same", truth),
        ("after", planted(truth, 0.02)),
    ):  # fmt: skip
        write_classes(folder / f"{name}.tif", noisy(ground, rng))
    districts(folder / "zones.gpkg", width_m=3200, height_m=2400)
    col, row = rng.integers(200, 320, 400), rng.integers(0, 240, 400)  # east of the change
    x, y = AFFINE @ (col + 0.5, row + 0.5)
    table = {"label": np.where(np.arange(400) < 300, "Stable", "unsure")}
    gpd.GeoDataFrame(table, geometry=gpd.points_from_xy(x, y), crs="EPSG:32643").to_file(
        folder / "stable.gpkg"
    )
    return folder


def found(folder, after, tmp_path, quiet, **options):
    options = {name: folder / value for name, value in options.items()}
    if "zones" in options:
        options["zone_field"] = "name"
    return change(folder / "before.tif", folder / f"{after}.tif", tmp_path / "c.csv",
                  display=quiet, **options)  # fmt: skip


@pytest.mark.parametrize("floor", [{"repeats": "again.tif"}, {"stable": "stable.gpkg"}])
def test_noise_alone_is_no_change(floor, folder, tmp_path, quiet):
    record = found(folder, "same", tmp_path, quiet, zones="zones.gpkg", **floor)
    assert [each.zone for each in record.zones] == ["all", "east", "west"]
    for each in record.zones:
        assert each.differs > 0.15  # a fifth of the cells flip
        assert each.floor.low < each.floor.value < each.floor.high
        assert not each.found
        assert each.hectares_changed is None
    assert all("no change can be told" in each for each in [*record.lines()][1:4])


def test_planted_change_is_found_where_it_is(folder, tmp_path, quiet):
    record = found(folder, "after", tmp_path, quiet, zones="zones.gpkg", repeats="again.tif")
    whole, east, west = record.zones
    true = 0.02 * 240 * 320 / 100  # hectares
    for each in (whole, west):
        assert each.found
        assert each.hectares_changed.low < true < each.hectares_changed.high
    assert not east.found
    assert east.least_hectares < 0.02 * east.hectares
    table = pd.read_csv(tmp_path / "c.csv")
    assert table["change"].tolist() == ["found", "no change can be told", "found"]


def test_the_floor_of_stable_points_is_in_the_mix_of_classes(folder, tmp_path, quiet):
    record = found(folder, "after", tmp_path, quiet, stable="stable.gpkg")
    floor = record.zones[0].floor
    assert floor.low < 0.22 < floor.high
    assert floor.high - floor.low < 0.12
    assert record.floor_from == "300 stable points of stable.gpkg"


def test_several_repeats_say_how_dates_differ(folder, tmp_path, quiet):
    one = found(folder, "same", tmp_path, quiet, repeats="again.tif")
    both = [folder / "again.tif", folder / "third.tif"]
    record = change(folder / "before.tif", folder / "same.tif", tmp_path / "c.csv",
                    repeats=both, display=quiet)  # fmt: skip
    assert any("one repeat cannot say" in each for each in one.notes)
    assert not any("one repeat cannot say" in each for each in record.notes)
    assert not record.zones[0].found


def test_in_a_hundred_tries_noise_is_told_from_change():
    """Blocks as a district has them: noise that differs from place to place, change in a few."""
    rng, missed, alarms = np.random.default_rng(1), 0, 0
    num, cells, share = 200, 1000, 0.02
    for _ in range(100):
        rate = np.clip(rng.normal(0.2, 0.08, num), 0.02, 0.6)
        # Errors come in clumps of about four cells.
        again, same = (4 * rng.binomial(cells // 4, rate) / cells for _ in range(2))
        changed = np.zeros(num)
        changed[rng.choice(num, 8, replace=False)] = share * num / 8
        after = changed + (1 - changed) * same
        for differs, true in ((same, 0.0), (after, share)):
            m2, pairs = np.full(num, 1e5), np.stack([differs, again], 1) * 1e5
            blocks = _Blocks(np.zeros(num, int), m2, pairs, np.ones((1, 256)), 100.0)
            row = _above_repeats("all", blocks, np.array([0]))
            if true:
                hectares = true * num * 10
                told = row.hectares_changed
                missed += not (row.found and told.low <= hectares <= told.high)
            else:
                alarms += row.found
    assert missed <= 5
    assert alarms <= 5


def test_changed_ground_flips_no_more_than_once():
    blocks = _Blocks(np.zeros(1, int), np.full(1, 1e6), np.array([[3e5]]), np.ones((1, 256)), 100.0)
    row = _row("all", blocks, np.ones(1, bool), 0.3, Share(value=0.2, low=0.15, high=0.25))
    changed = row.hectares_changed
    assert changed.value == pytest.approx(100 * (0.3 - 0.2) / 0.8)
    assert (changed.low, changed.high) == pytest.approx((100 * 0.05 / 0.75, 100 * 0.15 / 0.85))


def test_what_cannot_be_compared_is_refused(folder, tmp_path, quiet):
    before = folder / "before.tif"
    small = write_classes(tmp_path / "small.tif", np.zeros((100, 100)))
    other = write_classes(tmp_path / "other.tif", np.zeros(SHAPE), ("forest", "rice"))
    foreign = write_classes(tmp_path / "foreign.tif", np.zeros(SHAPE), crs="EPSG:32644")
    for after, said in ((small, "another grid"), (other, "other classes"), (foreign, "grid")):
        with pytest.raises(ContractError, match=said):
            change(before, after, tmp_path / "c.csv", repeats=folder / "again.tif", display=quiet)
    with pytest.raises(ContractError, match="other classes"):
        change(before, folder / "same.tif", tmp_path / "c.csv", repeats=other, display=quiet)
    with pytest.raises(ConfigError, match="what flips without change"):
        change(before, folder / "same.tif", tmp_path / "c.csv", display=quiet)
    with pytest.raises(SourceError, match="does not exist"):
        change(before, tmp_path / "no.tif", tmp_path / "c.csv", repeats=other, display=quiet)


def test_too_little_says_nothing(folder, tmp_path, quiet):
    few = gpd.read_file(folder / "stable.gpkg")[:20]
    few.to_file(tmp_path / "few.gpkg")
    with pytest.raises(ConfigError, match="20 points on ground of both maps"):
        change(folder / "before.tif", folder / "same.tif", tmp_path / "c.csv",
               stable=tmp_path / "few.gpkg", display=quiet)  # fmt: skip
    for name in ("a", "b", "c"):
        write_classes(tmp_path / f"{name}.tif", np.zeros((8, 8)))
    record = change(tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "c.csv",
                    repeats=tmp_path / "c.tif", display=quiet)  # fmt: skip
    assert record.zones[0].floor is None
    assert "blocks of ground" in record.zones[0].line()


def test_a_table_of_somebody_else_is_left_alone(folder, tmp_path, capsys):
    (tmp_path / "c.csv").write_text("mine")
    arguments = ["change", str(folder / "before.tif"), str(folder / "same.tif"), "--repeat",
                 str(folder / "again.tif"), "--output"]  # fmt: skip
    assert main([*arguments, str(tmp_path / "c.csv")]) == 1
    assert (tmp_path / "c.csv").read_text() == "mine"
    assert main([*arguments, str(tmp_path / "d.csv")]) == 0
    assert main([*arguments, str(tmp_path / "d.csv")]) == 0
    assert "no change can be told" in capsys.readouterr().out
