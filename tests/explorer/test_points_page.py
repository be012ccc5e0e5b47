"""The points of a survey answered on a page, in a real browser."""

import json
import re
import shutil

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from bharateo.display import Display
from bharateo.errors import ConfigError
from bharateo.survey.areas import read_answers
from bharateo.survey.ground import ClassMap
from bharateo.verbs.survey import areas, sample
from explorer.in_browser import NEEDS_CHROMIUM, downloaded, serious
from survey.class_maps import AFFINE, NAMES, answer, write_classes

QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """Map, points and plan of a sample with pictures."""
    folder = tmp_path_factory.mktemp("survey #1")
    codes = np.arange(40 * 50).reshape(40, 50) % 4
    class_map, image = write_classes(folder / "map.tif", codes), folder / "image.tif"
    with rasterio.open(
        image, "w", driver="GTiff", crs="EPSG:32643", transform=AFFINE, width=50, height=40,
        count=3, dtype="uint16",
    ) as file:  # fmt: skip
        file.write(np.random.default_rng(0).integers(1, 3000, (3, 40, 50)).astype(np.uint16))
    points = folder / "points #1.gpkg"
    plan = sample(class_map, points, per_class=2, image=image, display=QUIET)
    return class_map, points, plan, codes


@pytest.fixture
def page(browser, survey):
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.goto(survey[1].with_name("points #1-label.html").as_uri())
    yield page
    page.context.close()
    assert complaints == []


@NEEDS_CHROMIUM
def test_answers_by_key_are_what_areas_reads(page, survey, tmp_path):
    class_map, points, plan, codes = survey
    truth = [int(codes[row, col]) for row, col, _ in plan.points]
    for number, code in enumerate(truth):
        shown = page.locator("#picture")
        assert shown.get_attribute("src").endswith(f"{number + 1:04}.png")
        assert (
            page.evaluate("byId('picture').decode().then(() => byId('picture').naturalWidth)")
            == 776
        )
        page.keyboard.press("0" if number == 3 else str(code + 1))
        assert page.locator("#done").inner_text().startswith(f"{number + 1} of 8 answered")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Delete")
    page.locator("#answers button", has_text=NAMES[truth[6]]).click()
    saved = downloaded(page, "#save", points.parent)
    found = read_answers(saved, plan, ClassMap(class_map))
    expected = np.where(np.arange(8) == 3, -1, truth)
    np.testing.assert_array_equal(found.codes, expected)
    by_hand = points.with_name("by-hand.gpkg")
    by_hand.write_bytes(points.read_bytes())
    by_hand.with_suffix(".json").write_bytes(points.with_suffix(".json").read_bytes())
    answer(by_hand, codes, skip=(4,))
    one, other = (areas(class_map, file, tmp_path / f"{n}.csv", display=QUIET)
                  for n, file in enumerate((saved, by_hand)))  # fmt: skip
    assert one.classes == other.classes
    assert one.zones == other.zones


@NEEDS_CHROMIUM
def test_answers_outlast_the_page_and_come_from_a_file(page, survey, tmp_path):
    page.keyboard.press("1")
    page.keyboard.press("0")
    page.reload()
    assert page.locator("#done").inner_text() == "2 of 8 answered"
    assert page.locator("#asked").inner_text() == "Point 3"
    saved = downloaded(page, "#save", tmp_path)
    page.evaluate("localStorage.clear()")
    page.reload()
    assert page.locator("#done").inner_text() == "0 of 8 answered"
    page.locator("#file").set_input_files(saved)
    page.locator("#said", has_text="2 answers").wait_for()
    labels = gpd.read_file(saved)["label"]
    assert labels.tolist()[:2] == ["forest", "unsure"]
    assert labels[2:].isna().all()
    assert "another sample" in page.evaluate("points.load('{\"sample\": \"x\"}', 'it')")


@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious_on_the_page_of_points(width, page):
    page.set_viewport_size({"width": width, "height": 800})
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@NEEDS_CHROMIUM
@pytest.mark.slow
def test_axe_finds_nothing_serious_on_the_page_of_areas(browser, survey, tmp_path):
    class_map, points, _, codes = survey
    for file in (points, points.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    answer(tmp_path / points.name, codes)
    areas(class_map, tmp_path / points.name, tmp_path / "areas.csv", display=QUIET)
    for width, scheme in ((390, "dark"), (1280, "light")):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.goto((tmp_path / "areas.html").as_uri())
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


def test_the_page_does_not_say_what_the_map_says(survey):
    points = survey[1]
    text = points.with_name("points #1-label.html").read_text()
    shown = json.loads(re.search(r'id="survey">(.*?)</script>', text)[1])
    assert {*shown} == {"sample", "file", "plan", "map", "classes", "points"}
    assert shown["classes"] == list(NAMES)
    for number, (lon, lat, picture) in enumerate(shown["points"], 1):
        assert [type(lon), type(lat)] == [float, float]
        assert picture == f"points%20%231-pictures/{number:04}.png"


def test_a_page_of_somebody_is_left_alone(survey, tmp_path):
    class_map, points, *_ = survey
    (tmp_path / "p-label.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"p-label\.html"):
        sample(class_map, tmp_path / "p.gpkg", per_class=2, image=points.parent / "image.tif",
               display=QUIET)  # fmt: skip
    assert (tmp_path / "p-label.html").read_text() == "mine"
