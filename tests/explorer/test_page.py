"""The page in a real browser, opened from disk and from a web server."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import geopandas as gpd
import numpy as np
import pytest
import torch
from shapely import Polygon

from bharateo.evaluation.evaluate import predictions
from bharateo.explorer.chips import chips_of_dataset
from bharateo.inference.points import read_points
from bharateo.models.heads import Batch
from bharateo.models.patches import Mask, take_tokens, unpatchify
from explorer.in_browser import NEEDS_CHROMIUM, PATIENCE_S, downloaded, serious, until
from explorer.page_records import array, record

pytestmark = NEEDS_CHROMIUM


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *told):
        pass


@pytest.fixture(scope="module")
def server(explorer):
    handler = partial(Handler, directory=str(explorer))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/index.html"
        served.shutdown()


@pytest.fixture(scope="module")
def page(browser, explorer):
    """The page opened from disk, shared by the tests."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(1000 * PATIENCE_S)
    page.goto((explorer / "index.html").as_uri())
    until(page, "areaView.state.area !== null")
    return page


def show(page, view):
    page.locator(f"nav a[href='#{view}']").click()


def picture(page, canvas="map"):
    """What a canvas shows after its next frame."""
    script = "(id) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame("
    script += "() => done(byId(id).toDataURL()))))"
    return page.evaluate(script, canvas)


def click_on_patch(page, patch, *held):
    show(page, "area")
    at = page.evaluate(
        """(patch) => {
          const { view, area } = areaView.state;
          view.fit();
          return view.toCanvas(...area.centre(patch));
        }""",
        patch,
    )
    page.locator("#map").click(position={"x": at[0], "y": at[1]}, modifiers=held)


def unit_vectors(explorer):
    vectors = array(record(explorer, "area-0")["vectors"]).astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rebuilt(page):
    """The mask, and what came of it, once the model has caught up with it."""
    until(page, "paintView.settled()")
    return page.evaluate(
        """() => {
          const { chip, made } = paintView.state;
          const list = (each) => Array.from(each ?? []);
          return { image: list(chip.image), hidden: list(made.hidden),
                   model: list(made.reconstruction), classes: list(made.classes),
                   copy: list(made.copy), error: made.error, copyError: made.copyError };
        }"""
    )


# From disk and from a server


@pytest.mark.parametrize("address", ["disk", "server"])
def test_the_page_needs_nothing_but_its_own_folder(address, browser, explorer, server):
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((explorer / "index.html").as_uri() if address == "disk" else server)
    until(page, "areaView.state.area !== null")
    click_on_patch(page, 3)
    show(page, "paint")
    assert rebuilt(page)["error"] > 0
    page.close()
    own = explorer.as_uri() if address == "disk" else server.removesuffix("index.html")
    assert [url for url in asked if not url.startswith((own, "blob:", "data:"))] == []
    assert complaints == []


# The area


def test_every_layer_looks_different(page):
    show(page, "area")
    shown = {}
    for layer in page.evaluate("areaView.state.layers.map((each) => each.id)"):
        page.locator(f"input[value='{layer}']").check()
        shown[layer] = picture(page)
    assert {"picture-0", "labels", "predicted", "uncertainty", "suspect", "error"} <= {*shown}
    assert len({*shown.values()}) == len(shown)


def test_two_layers_blend_from_one_to_the_other(page):
    show(page, "area")
    page.locator("input[value='picture-0']").check()
    alone = picture(page)
    page.locator("#over").select_option("predicted")
    seen = []
    for share in ("0", "50", "100"):
        page.locator("#share").fill(share)
        seen.append(picture(page))
    page.locator("#over").select_option("")
    assert seen[0] == alone
    assert len({*seen}) == 3


def test_a_click_lights_the_twenty_patches_most_like_it(page, explorer):
    before = picture(page)
    click_on_patch(page, 5)
    vectors = unit_vectors(explorer)
    likeness = np.delete(vectors @ vectors[5], 5)
    found = page.evaluate("likeness.state.hits")
    assert len(found) == 20 == page.locator(".nearest button").count()
    np.testing.assert_allclose([each for _, each in found], np.sort(likeness)[::-1][:20], atol=1e-5)
    assert picture(page) != before


def test_examples_alike_and_unlike_rank_as_numpy_says(page, explorer):
    click_on_patch(page, 25)
    click_on_patch(page, 40, "Shift")
    click_on_patch(page, 60, "Alt")
    page.locator("#tools input[value='unlike']").check()
    click_on_patch(page, 70)
    page.locator("#tools input[value='choose']").check()
    cosine = unit_vectors(explorer) @ unit_vectors(explorer).T
    score = cosine[:, [25, 40]].mean(1) - 0.5 * cosine[:, [60, 70]].mean(1)
    score[[25, 40, 60, 70]] = -np.inf
    patches, scores = zip(*page.evaluate("likeness.state.hits"), strict=True)
    np.testing.assert_allclose(scores, np.sort(score)[::-1][:20], atol=1e-9)
    np.testing.assert_allclose(score[[*patches]], scores, atol=1e-9)
    page.locator("#unlike button").first.click()
    page.locator("#alike button").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("[likeness.state.alike, likeness.state.unlike]") == [[40], [70]]
    assert page.evaluate("document.activeElement === byId('alike').querySelector('button')")


def test_hits_are_saved_as_geojson(page, reflectance_dataset, tmp_path):
    click_on_patch(page, 25)
    page.locator("#count").select_option("50")
    hits = page.evaluate("likeness.state.hits")
    saved = gpd.read_file(downloaded(page, "#save-hits", tmp_path))
    page.locator("#count").select_option("20")
    assert saved.crs == "EPSG:4326"
    assert saved["rank"].tolist() == [*range(1, 51)]
    np.testing.assert_allclose(saved["score"], [score for _, score in hits], atol=1e-6)
    assert saved["attribution"].str.contains("Pixels by nobody").all()
    geobox = reflectance_dataset.geobox(page.evaluate("areaView.state.area.name"))
    found = saved.to_crs(geobox.crs).geometry
    for shape, (patch, _) in zip(found, hits, strict=True):
        row, col = page.evaluate(
            "(p) => [areaView.state.area.row[p], areaView.state.area.col[p]]", patch
        )
        corners = [
            geobox.affine * (col + dx, row + dy) for dx, dy in ((0, 0), (8, 0), (8, 8), (0, 8))
        ]
        assert shape.symmetric_difference(Polygon(corners)).area < 0.01 * shape.area


def test_the_address_brings_the_page_back(page, browser):
    show(page, "area")
    click_on_patch(page, 25)
    before = page.evaluate("likeness.state.hits")
    click_on_patch(page, 40, "Alt")
    page.locator("#layers input[value='predicted']").check()
    page.evaluate("areaView.state.view.zoom(3)")
    state = "({ ...areaView.told(), hits: likeness.state.hits.map(([patch]) => patch) })"
    until(page, "location.hash.includes('at=')")
    expected = page.evaluate(state)
    other = browser.new_page(viewport=page.viewport_size)
    other.goto(page.url)
    until(other, "likeness.state.hits.length > 0")
    assert other.evaluate(state) == expected
    other.goto(page.url.split("#")[0] + "#paint?alike=9999999,x&layer=no&at=a")  # of another page
    until(other, "!byId('paint').hidden && likeness.state.hits.length === 0")
    show(other, "area")
    first = other.evaluate("areaView.state.area.name")
    other.locator("#place").select_option("1")
    until(other, "location.hash.includes('region=1')")
    until(other, f"areaView.state.area.name !== '{first}'")  # it is fetched
    second = other.evaluate("areaView.state.area.name")
    other.reload()
    until(other, "areaView.state.area !== null && byId('place').value === '1'")
    until(other, f"areaView.state.area.name === '{second}'")
    other.close()
    page.go_back()
    until(page, "areaView.state.base.id === 'picture-0'")
    page.go_back()
    until(page, "likeness.state.unlike.length === 0")
    assert page.evaluate("likeness.state.hits") == before
    page.go_forward()
    until(page, "likeness.state.unlike.length === 1")


def test_labels_are_saved_as_teach_takes_them(page, reflectance_dataset, tmp_path):
    show(page, "area")
    page.locator("#tools input[value='label']").check()
    for name in ("wells", "brick kilns, old"):
        page.locator("#class-name").fill(name)
        page.keyboard.press("Enter")
    page.evaluate("areaView.state.view.fit()")
    page.locator("#map").focus()
    page.keyboard.press("1")
    at = page.evaluate("areaView.state.view.toCanvas(20.2, 30.7)")
    page.locator("#map").click(position={"x": at[0], "y": at[1]})
    page.keyboard.press("2")
    drag_over_map(page, (60, 60), (90, 60))
    path = downloaded(page, "#save-labels", tmp_path)
    points = read_points(path)
    assert points["class"].value_counts()["wells"] == 1
    assert {*points["class"]} == {"wells", "brick kilns, old"}
    geobox = reflectance_dataset.geobox(page.evaluate("areaView.state.area.name"))
    cols, rows = (
        ~geobox.affine * np.stack([each.coords[0] for each in points.to_crs(geobox.crs).geometry]).T
    )
    np.testing.assert_allclose((cols[0], rows[0]), (20.5, 30.5), atol=0.05)
    assert len(cols) > 3
    np.testing.assert_allclose(rows[1:], 60.5, atol=0.05)
    assert cols[1:].min() < 62
    assert cols[1:].max() > 85
    assert page.locator("#command").inner_text() == (
        "bharateo teach RASTER.tif --points labels.geojson "
        "--colour 'wells=#e6194b' --colour 'brick kilns, old=#3cb44b' --output taught"
    )
    page.locator("#undo").click()
    page.locator("#classes [aria-label^='Remove wells']").click()
    assert page.evaluate("labels.state.points.length") == 0
    page.locator("#labels-file").set_input_files(path)
    until(page, f"labels.state.points.length === {len(points)}")
    assert page.locator("#labels-said").inner_text().startswith(f"{len(points)} points")
    page.reload()
    until(page, "areaView.state.area !== null")
    assert page.evaluate("labels.state.points.length") == len(points)  # as the browser keeps them
    page.locator("#tools input[value='choose']").check()


def drag_over_map(page, start, end):
    box = page.locator("#map").bounding_box()
    ends = [
        page.evaluate("(at) => areaView.state.view.toCanvas(...at)", each) for each in (start, end)
    ]
    (x, y), (u, v) = ((box["x"] + at[0], box["y"] + at[1]) for at in ends)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(u, v, steps=6)
    page.mouse.up()


@pytest.mark.parametrize(("text", "why"), [
    ("no", "no GeoJSON"),
    ('{"features": [], "crs": {"properties": {"name": "urn:ogc:def:crs:EPSG::32643"}}}', "32643"),
    ('{"features": [{"geometry": null, "properties": {"class": "x"}}]}', "1 without"),
])  # fmt: skip
def test_what_is_no_file_of_labels_is_said(text, why, page):
    before = page.evaluate("labels.state.points.length")
    assert why in page.evaluate("(text) => labels.load(text, 'it')", text)
    assert page.evaluate("labels.state.points.length") == before


def test_twenty_hits_are_seen_without_scrolling(page):
    page.set_viewport_size({"width": 1440, "height": 900})
    click_on_patch(page, 5)
    click_on_patch(page, 40, "Alt")
    box = page.locator("#nearest").bounding_box()
    page.set_viewport_size({"width": 1280, "height": 800})
    assert box["y"] + box["height"] <= 900


def test_a_thumbnail_leads_to_its_patch(page):
    click_on_patch(page, 5)
    first = page.evaluate("likeness.state.hits[0][0]")
    page.locator(".nearest button").first.click()
    assert page.evaluate("likeness.state.chosen") == first


def test_the_chosen_patch_is_described(page, explorer, explored_run):
    click_on_patch(page, 7)
    area = record(explorer, "area-0")
    shares = array(area["probabilities"])[7] / 65535
    assert shares.sum() == pytest.approx(1, abs=1e-3)
    told = page.locator(".bars li").all_inner_texts()
    assert len(told) == 8
    assert f"{100 * shares.max():.0f} %" in told[0]
    split = area["splits"][array(area["split"])[7]]
    assert split in page.locator(".facts").inner_text()


def test_the_map_is_worked_with_the_keyboard(page):
    click_on_patch(page, 40)
    page.locator("#map").focus()
    beside = [page.evaluate(f"areaView.state.area.beside(40, {dx}, 0)") for dx in (-1, 1)]
    for key in ("ArrowRight", "Shift+Enter", "ArrowLeft", "ArrowLeft", "Alt+Enter"):
        page.keyboard.press(key)
    assert page.evaluate("likeness.state.alike") == [40, beside[1]]
    assert page.evaluate("likeness.state.unlike") == [beside[0]]
    page.keyboard.press("Enter")
    assert page.evaluate("likeness.state.alike") == [beside[0]]
    scale = page.evaluate("areaView.state.view.scale")
    page.keyboard.press("+")
    assert page.evaluate("areaView.state.view.scale") > scale
    page.keyboard.press("0")


# Painting


def test_a_painted_mask_is_rebuilt_as_pytorch_does(page, explored_run, reflectance_dataset):
    show(page, "paint")
    rebuilt(page)
    page.locator("#clear").click()
    box = page.locator("#cells").bounding_box()
    side = box["width"] / 4
    page.mouse.move(box["x"] + side / 2, box["y"] + side / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 3.5 * side, box["y"] + side / 2, steps=8)
    page.mouse.up()
    found = rebuilt(page)
    assert found["hidden"] == [1] * 4 + [0] * 12
    chip = chips_of_dataset(explored_run, reflectance_dataset)[0]
    expected = by_pytorch(explored_run, chip, found["hidden"])
    np.testing.assert_allclose(found["image"], expected["image"].ravel(), atol=1e-5)
    known = np.broadcast_to(chip.valid, expected["model"].shape).ravel()
    for name in ("model", "copy"):
        np.testing.assert_allclose(
            np.array(found[name])[known], expected[name].ravel()[known], atol=1e-3
        )
        off = np.abs(expected[name] - expected["image"])[:, :8][:, chip.valid[:8]]
        assert found[{"model": "error", "copy": "copyError"}[name]] == pytest.approx(
            off.mean(), abs=1e-4
        )
    np.testing.assert_allclose(found["classes"], expected["classes"].ravel(), atol=1e-3)


def by_pytorch(run, chip, hidden):
    """Model and copy of a chip under a mask (band, row, col), and class probabilities."""
    image = torch.from_numpy(chip.image)[None]
    valid = torch.from_numpy(chip.valid.copy())[None]
    order = torch.from_numpy(np.argsort(hidden, kind="stable"))[None]
    mask = Mask(order, hidden.count(0))
    counts = torch.zeros(1, run.model.num_tokens, 8, dtype=torch.int64)
    batch = Batch(image, valid, counts, torch.zeros(1, dtype=torch.int64))
    made = predictions(run, batch, mask)
    given, _ = run.model.patches(image, valid, mask.visible)
    pictures = []
    for name in ("model", "nearest_visible"):
        guessed = take_tokens(made[name]["pixels"], mask.masked)
        patches = mask.restore(torch.cat([given, guessed], 1))
        normalised = unpatchify(patches, run.model.config.patch_px, run.model.grid)
        pictures.append(run.model.normalise.physical_units(normalised)[0].numpy())
    classes = made["model"]["landcover"].softmax(2)[0].numpy()
    return {"image": image[0].numpy(), "model": pictures[0], "copy": pictures[1],
            "classes": classes}  # fmt: skip


@pytest.mark.parametrize("num_visible", [1, 15])
def test_masks_may_leave_one_patch_or_take_one(
    num_visible, page, explored_run, reflectance_dataset
):
    show(page, "paint")
    rebuilt(page)
    page.evaluate("(left) => paintView.change((_, patch) => Number(patch >= left))", num_visible)
    found = rebuilt(page)
    assert found["hidden"].count(0) == num_visible
    chip = chips_of_dataset(explored_run, reflectance_dataset)[0]
    expected = by_pytorch(explored_run, chip, found["hidden"])["model"]
    known = np.broadcast_to(chip.valid, expected.shape).ravel()
    np.testing.assert_allclose(np.array(found["model"])[known], expected.ravel()[known], atol=1e-3)


def test_what_cannot_be_rebuilt_is_said(page):
    show(page, "paint")
    rebuilt(page)
    page.locator("#clear").click()
    assert rebuilt(page)["error"] is None
    assert "Nothing is hidden" in page.locator("#verdict").inner_text()
    page.locator("#invert").click()
    assert rebuilt(page)["error"] is None
    assert "at least one patch" in page.locator("#verdict").inner_text()


def test_a_mask_is_painted_with_the_keyboard(page):
    show(page, "paint")
    rebuilt(page)
    page.locator("#clear").click()
    page.locator("[data-patch='0']").focus()
    for key in ("ArrowDown", "ArrowRight", " "):
        page.keyboard.press(key)
    found = rebuilt(page)
    assert np.flatnonzero(found["hidden"]).tolist() == [5]
    assert page.locator("[data-patch='5']").get_attribute("aria-selected") == "true"


def test_the_slider_hides_its_share_and_the_same_patches_again(page):
    show(page, "paint")
    rebuilt(page)
    masks = []
    for share in ("50", "25", "50"):
        page.locator("#ratio").fill(share)
        masks.append(rebuilt(page)["hidden"])
    assert [sum(mask) for mask in masks] == [8, 4, 8]
    assert masks[0] == masks[2]
    assert all(more >= less for more, less in zip(masks[0], masks[1], strict=True))


# For everyone


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.slow
def test_axe_finds_nothing_serious(width, scheme, page):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    click_on_patch(page, 5)
    for view in ("area", "label", "paint", "about"):
        show(page, "area" if view == "label" else view)
        page.evaluate("(tool) => areaView.take(tool)", "label" if view == "label" else "choose")
        assert serious(page) == [], view
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_colours_follow_the_switch(page):
    page.emulate_media(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    button = page.locator("#theme")
    while "dark" not in button.get_attribute("aria-label"):
        button.click()
    assert page.evaluate(background) != light
    button.click()
    assert page.evaluate(background) == light
