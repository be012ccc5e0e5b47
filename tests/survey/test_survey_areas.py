"""Areas from answers: as estimated by hand, by zone, and refused where they would mislead."""

import json
import shutil

import numpy as np
import pandas as pd
import pyogrio
import pytest

from bharateo.errors import ConfigError, ContractError, SourceError
from bharateo.survey.estimators import Sample, share
from bharateo.verbs.cli import main
from bharateo.verbs.survey import areas, sample
from survey.class_maps import (
    NAMES,
    answer,
    districts,
    write_classes,
    write_probabilities,
)


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory, world):
    """A map with probabilities, two districts, and an answered sample of each."""
    from bharateo.display import Display

    folder, quiet = tmp_path_factory.mktemp("surveyed"), Display(quiet=True)
    map_file = write_classes(folder / "map.tif", world.mapped)
    write_probabilities(folder / "map-probabilities.tif", world.shares)
    zones = districts(folder / "zones.gpkg")
    sample(map_file, folder / "p.gpkg", total=600, display=quiet)
    sample(map_file, folder / "z.gpkg", per_class=40, zones=zones, zone_field="name",
           display=quiet)  # fmt: skip
    for name in ("p", "z"):
        answer(folder / f"{name}.gpkg", world.truth)
    return folder


@pytest.fixture
def folder(surveyed, tmp_path):
    return shutil.copytree(surveyed, tmp_path / "copy")


def relabel(points, change):
    table = pyogrio.read_dataframe(points, layer="points")
    change(table)
    pyogrio.write_dataframe(table, points, layer="points")


def by_class(record, zone="all"):
    return {each.class_name: each for each in record.classes if each.zone == zone}


def test_figures_are_those_of_the_estimators_and_hold_the_truth(folder, world, quiet):
    plan = json.loads((folder / "p.json").read_text())
    record = areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv",
                   estimator="design-based", display=quiet)  # fmt: skip
    row, col, stratum = np.array(plan["points"]).T
    design = Sample(
        stratum,
        np.array([each["m2"] for each in plan["strata"]]),
        np.array([each["cells"] for each in plan["strata"]]),
    )
    found = by_class(record)
    (whole,) = record.zones
    assert whole.hectares == pytest.approx(1200, rel=1e-3)
    for number, name in enumerate(NAMES):
        by_hand = share(design, world.truth[row, col] == number)
        hectares = found[name].hectares
        assert hectares.value == pytest.approx(by_hand.value * whole.hectares, rel=1e-4)
        assert hectares.low == pytest.approx(by_hand.low * whole.hectares, rel=1e-3)
        assert found[name].points == (world.truth[row, col] == number).sum()
        assert found[name].mapped_hectares == pytest.approx(
            (world.mapped == number).mean() * whole.hectares, rel=1e-3
        )
        true = {
            "hectares": (world.truth == number).mean() * whole.hectares,
            "users_accuracy": (world.truth == number)[world.mapped == number].mean(),
            "producers_accuracy": (world.mapped == number)[world.truth == number].mean(),
        }
        for figure, value in true.items():  # of this sample; how often, says the benchmark
            shown = getattr(found[name], figure)
            assert shown.low <= value <= shown.high, (name, figure)
    assert whole.overall_accuracy.low < (world.truth == world.mapped).mean()
    assert (world.truth == world.mapped).mean() < whole.overall_accuracy.high


def test_probabilities_make_intervals_narrower(folder, quiet):
    plain, helped = (
        areas(folder / "map.tif", folder / "p.gpkg", folder / f"{name}.csv", estimator=name,
              display=quiet)
        for name in ("design-based", "model-assisted")
    )  # fmt: skip
    widths = [
        sum(each.hectares.high - each.hectares.low for each in record.classes)
        for record in (plain, helped)
    ]
    assert widths[1] < 0.95 * widths[0]
    assert "model-assisted" in helped.estimator
    auto = areas(folder / "map.tif", folder / "p.gpkg", folder / "auto.csv", display=quiet)
    assert auto.classes == helped.classes


def test_probabilities_of_another_map_are_not_used(folder, world, quiet):
    write_probabilities(folder / "map-probabilities.tif", world.shares, "f2")
    record = areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv", display=quiet)
    assert record.estimator == "stratified"
    with pytest.raises(ConfigError, match="no probabilities"):
        areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv",
              estimator="model-assisted", display=quiet)  # fmt: skip


def test_zones_have_their_own_figures_that_add_up(folder, quiet):
    record = areas(folder / "map.tif", folder / "z.gpkg", folder / "a.csv",
                   estimator="design-based", display=quiet)  # fmt: skip
    assert [each.zone for each in record.zones] == ["all", "east", "west"]
    assert [each.hectares for each in record.zones] == pytest.approx([1200, 600, 600], rel=1e-3)
    parts = [by_class(record, zone) for zone in ("all", "east", "west")]
    for name in NAMES:
        whole, east, west = (part[name].hectares.value for part in parts)
        assert whole == pytest.approx(east + west, rel=1e-6)
    assert all(each.points == 160 for each in record.zones[1:])


def test_the_zones_may_be_moved_but_not_changed(folder, quiet):
    def estimate(**options):
        return areas(folder / "map.tif", folder / "z.gpkg", folder / "a.csv", display=quiet,
                     **options)  # fmt: skip

    plan = json.loads((folder / "z.json").read_text())
    moved = folder / "elsewhere.gpkg"
    shutil.copy(plan["zones_file"], moved)
    assert len(estimate(zones=moved).zones) == 3
    with pytest.raises(ConfigError, match="is not the file of zones"):
        estimate(zones=districts(folder / "other.gpkg", width_m=3000))
    with pytest.raises(ConfigError, match="drawn without zones"):
        areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv", zones=moved, display=quiet)


def test_another_map_of_the_same_cells_is_judged_by_ratios(folder, world, quiet):
    worse = world.mapped.copy()
    worse[:, ::3] = 1  # fields
    write_classes(folder / "worse.tif", worse, fingerprint="f3")
    record = areas(folder / "worse.tif", folder / "p.gpkg", folder / "w.csv", display=quiet)
    assert "whose classes are its strata" in record.notes[-1]
    overall, truth = record.zones[0].overall_accuracy, (worse == world.truth).mean()
    assert overall.low <= truth <= overall.high
    fields = by_class(record)["fields"]
    true = (world.truth == 1)[worse == 1].mean()
    assert fields.users_accuracy.low <= true <= fields.users_accuracy.high
    first = areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv",
                  estimator="design-based", display=quiet)  # fmt: skip
    assert by_class(first)["fields"].hectares == fields.hectares  # areas need no map


def test_answers_that_are_missing_are_told_and_bounded(folder, world, quiet):
    answer(folder / "p.gpkg", world.truth, skip=range(1, 61))
    record = areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv",
                   estimator="design-based", display=quiet)  # fmt: skip
    assert (record.zones[0].points, record.zones[0].missing) == (540, 60)
    assert "60 of 600 points have no answer" in record.notes[0]
    for each in record.classes:
        fewest, most = each.hectares_if_missing
        assert fewest <= each.hectares.value <= most
    answer(folder / "p.gpkg", world.truth, skip=range(1, 6))
    record = areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv", display=quiet)
    assert record.classes[0].hectares_if_missing is None


def test_a_stratum_without_an_answer_widens_everything(folder, quiet):
    plan = json.loads((folder / "p.json").read_text())
    strata = np.array(plan["points"])[:, 2]
    before = areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv", display=quiet)
    relabel(folder / "p.gpkg",
            lambda t: t.__setitem__("label", t["label"].where(strata != 2)))  # fmt: skip
    after = areas(folder / "map.tif", folder / "p.gpkg", folder / "b.csv", display=quiet)
    town = plan["strata"][2]["m2"] / sum(each["m2"] for each in plan["strata"])
    assert after.zones[0].unseen == pytest.approx(town)
    for one, other in zip(before.classes, after.classes, strict=True):
        assert other.hectares.high > one.hectares.high
    assert by_class(after)["town"].users_accuracy.value is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.__setitem__("label", "tree"), "add --more-classes 'tree'"),
        (lambda t: t.__setitem__("label", None), "has no labels yet"),
        (lambda t: t.loc.__setitem__(4, t.loc[8]), "has point 9 twice"),
        (lambda t: t.loc.__setitem__((4, "id"), 9000), "the sample beside it has 1 to 600"),
        (lambda t: t.__setitem__("geometry", t.translate(2e-4, 0)), "was moved from its cell"),
    ],
)
def test_labels_that_mislead_are_refused(change, said, folder, quiet):
    relabel(folder / "p.gpkg", change)
    with pytest.raises(ConfigError, match=said):
        areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv", display=quiet)
    assert not (folder / "a.csv").exists()


def test_labels_may_be_codes_or_in_any_case_and_name_classes_the_map_lacks(folder, world, quiet):
    plain = areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv", display=quiet)

    def spell(table):
        table["label"] = table["label"].replace({"fields": " Fields", "town": "2"})

    relabel(folder / "p.gpkg", spell)
    again = areas(folder / "map.tif", folder / "p.gpkg", folder / "b.csv", display=quiet)
    assert again.classes == plain.classes
    relabel(folder / "p.gpkg", lambda t: t.loc.__setitem__((slice(0, 9), "label"), "orchard"))
    more = areas(folder / "map.tif", folder / "p.gpkg", folder / "c.csv",
                 more_classes=["orchard"], display=quiet)  # fmt: skip
    orchard = by_class(more)["orchard"]
    assert (orchard.points, orchard.mapped_hectares) == (10, 0)
    assert orchard.hectares.low > 0
    assert orchard.producers_accuracy.value == 0


def test_a_map_that_learned_from_the_points_is_refused(folder, world, quiet):
    points = pyogrio.read_dataframe(folder / "p.gpkg", layer="points")
    learned = [[each.x, each.y] for each in points.geometry[:5]]
    taught = write_classes(folder / "taught.tif", world.mapped, learned=learned)
    with pytest.raises(ContractError, match=r"1, 2, 3, 4, 5 of .* were used to make"):
        areas(taught, folder / "p.gpkg", folder / "a.csv", display=quiet)
    others = [[each[0] + 1e-3, each[1]] for each in learned]
    write_classes(folder / "taught.tif", world.mapped, learned=others)
    assert not areas(taught, folder / "p.gpkg", folder / "a.csv", display=quiet).notes
    # A probe beside a map is of it; what neither says is said.
    (folder / "probe.json").write_text(json.dumps({"product": "probe", "trained_at": learned}))
    with pytest.raises(ContractError, match="were used"):
        areas(folder / "map.tif", folder / "p.gpkg", folder / "b.csv", display=quiet)
    (folder / "probe.json").write_text(json.dumps({"product": "probe"}))
    record = areas(folder / "map.tif", folder / "p.gpkg", folder / "b.csv", display=quiet)
    assert "does not say which points it learned from" in record.notes[0]


def test_maps_of_other_cells_are_refused(folder, world, quiet):
    holes = world.mapped.copy()
    holes[5, 5] = 255
    write_classes(folder / "holes.tif", holes)
    write_classes(folder / "small.tif", world.mapped[:100])
    for name, said in (("holes.tif", "has data in other cells"), ("small.tif", "another grid")):
        with pytest.raises(ContractError, match=said):
            areas(folder / name, folder / "p.gpkg", folder / "a.csv", display=quiet)
    (folder / "p.json").unlink()
    with pytest.raises(SourceError, match=r"keep the \.json"):
        areas(folder / "map.tif", folder / "p.gpkg", folder / "a.csv", display=quiet)


def test_on_degrees_cells_count_by_their_size(tmp_path, quiet):
    """Two classes with as many cells, one of them farther north, where cells are smaller."""
    import rasterio
    from affine import Affine
    from pyproj import Geod

    path, step = tmp_path / "map.tif", 0.01
    codes = np.repeat([[[0]], [[1]]], 100, 1).repeat(20, 2).reshape(1, 200, 20).astype(np.uint8)
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:4326", width=20, height=200, count=1,
                       dtype="uint8", nodata=255,
                       transform=Affine(step, 0, 70, 0, -step, 62)) as file:  # fmt: skip
        file.write(codes)
    record = sample(path, tmp_path / "p.gpkg", per_class=20, display=quiet)
    globe = Geod(ellps="WGS84")
    for stratum, north in zip(record.strata, (62, 61), strict=True):
        lon = [70, 70.2, 70.2, 70]
        true = globe.polygon_area_perimeter(lon, [north, north, north - 1, north - 1])[0]
        assert stratum.m2 == pytest.approx(abs(true), rel=2e-4)


def test_tables_and_page_are_written_and_made_again(folder, capsys):
    arguments = ["areas", str(folder / "map.tif"), str(folder / "z.gpkg"), "--output",
                 str(folder / "a.csv")]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "overall accuracy" in said
    table = pd.read_csv(folder / "a.csv")
    assert len(table) == 12
    assert (table["hectares_low"] <= table["hectares"]).all()
    assert {*table["estimator"]} == {"stratified, areas model-assisted"}
    page = (folder / "a.html").read_text()
    assert page.count('<th scope="row">') == 12
    assert "http" not in page.replace("http-equiv", "")
    before = (folder / "a.json").read_bytes()
    assert main(arguments) == 0
    assert (folder / "a.json").read_bytes() == before
    (folder / "mine.csv").write_text("a,b\n")
    assert main([*arguments[:-1], str(folder / "mine.csv")]) == 1
    assert (folder / "mine.csv").read_text() == "a,b\n"
