import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import pytest
from made_up_run import fingerprint, split_scores, write_run

from bharateo.chips.store import Dataset
from bharateo.errors import RunError
from bharateo.report import ground, html, render
from bharateo.sensor import SENTINEL2_L1C, WORLDCOVER_PALETTE
from bharateo.training.contract import Kept
from explorer.in_browser import NEEDS_CHROMIUM, serious

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "rect", "image", "use", "circle"}


class Page(HTMLParser):
    """Checks that elements close in order, and gathers what the tests ask about."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.elements = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def _note(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.links += [v for k, v in attrs.items() if k in ("href", "xlink:href", "src")]

    def named(self, *tags):
        return [attrs for tag, attrs in self.elements if tag in tags]


@pytest.fixture
def page(dataset, make_run, make_example):
    examples = [make_example(dataset, chip) for chip in range(3)]
    return html.article(make_run(dataset), dataset, examples)


def test_the_page_asks_for_nothing_outside_itself(page):
    parsed = Page(page)
    assert all(link.startswith(("data:", "#")) for link in parsed.links)
    assert not re.search(r"@import|url\((?!#)", page)
    assert not parsed.named("script", "iframe")


def test_ids_are_unique_and_every_inner_link_leads_somewhere(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    inner = {link[1:] for link in parsed.links if link.startswith("#") and len(link) > 1}
    inner |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert inner <= set(parsed.ids)


def test_every_image_has_words_and_every_scrolling_table_takes_the_keyboard(page):
    parsed = Page(page)
    drawings = [svg for svg in parsed.named("svg") if svg.get("class") != "defs"]
    assert len(drawings) > 20
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 15 for svg in drawings)
    scrolling = [div for div in parsed.named("div") if div.get("class") == "scroll"]
    assert scrolling
    assert all(div["tabindex"] == "0" and div["aria-label"] for div in scrolling)
    assert parsed.named("a")[0]["href"] == "#main"


def test_headings_go_down_one_level_at_a_time(page):
    levels = [int(level) for level in re.findall(r"<h([1-6])\b", page)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_the_same_run_gives_the_same_page(dataset, make_run, make_example):
    pages = {html.article(make_run(dataset), dataset, [make_example(dataset)]) for _ in range(2)}
    assert len(pages) == 1


def test_the_page_says_what_was_trained_and_how_it_stands(page, dataset):
    assert "0.80 million parameters" in page
    assert f"trained for 3 epochs on {dataset.sensor.title}" in page
    assert "names the land cover of 80.1 % of the hidden patches, against 75.0 %" in page
    assert "The model beats the copy on both." in page
    assert "On ground held out for testing," in page


def test_sources_caveats_and_attribution_are_in_plain_sight(dataset, make_run):
    files = make_run(dataset, provenance={"source": "x", "why": "Pixels: these, because <so>."})
    page = html.article(files, dataset, [])
    assert "made-up pixels; labels: made-up labels." in page
    assert "Pixels: these, because &lt;so&gt;." in page
    assert dataset.sensor.notes in page
    assert all(line in page for line in dataset.attribution)
    assert "Told otherwise" in html.article(files, dataset, [], why="told otherwise")


def test_every_band_counts_in_the_account(page, dataset):
    bands = dataset.sensor.num_bands
    pixels = 96 * 3 * 12 * 16 * 16
    assert f"{pixels:,}" in page
    assert f"{pixels * bands:,}" in page


def test_native_classes_are_counted_with_nodata_apart(dataset, page):
    counts = dataset.info["regions"][0]["native_counts"]
    rows = ground.histogram(counts, dataset.info["class_scheme"])
    assert rows[-1]["name"] == "no data"
    assert rows[-1]["css"] is None
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert {row["code"] for row in rows} == {int(code) for code in counts}
    assert "Tree cover" in page


def test_held_out_blocks_are_outlined_over_training_ground(dataset):
    chips = dataset.chips[dataset.chips["region"] == "first"]
    frames = ground.outlines(chips, by_block=True)
    assert len(frames) == chips["block"].nunique()
    splits = [frame.split for frame in frames]
    assert splits == sorted(splits, key=lambda split: split != "train")
    for frame in frames:
        assert frame.height >= 64
        assert frame.width >= 64


def test_without_held_out_ground_the_page_warns(make_dataset, make_run, make_example):
    dataset = make_dataset(WORLDCOVER_PALETTE, held_out=False)
    page = html.article(make_run(dataset), dataset, [make_example(dataset)])
    assert "No ground was held out" in page
    assert "On its own training chips it names" in page
    assert "Loss, validation" not in page


def test_with_held_out_ground_it_does_not(page):
    assert "No ground was held out" not in page
    assert "Loss, validation" in page


def test_a_run_evaluated_on_another_dataset_says_so(make_dataset, make_run):
    dataset = make_dataset(WORLDCOVER_PALETTE, held_out=False)
    page = html.article(make_run(dataset, own_dataset=False), dataset, [])
    assert "Evaluated on another dataset" in page
    assert "No ground was held out" not in page


def test_what_could_not_be_measured_is_left_out_not_zero(make_dataset, make_run):
    dataset = make_dataset(WORLDCOVER_PALETTE)
    scores = split_scores(num_blocks=1)
    for one in (scores["model"], *scores["baselines"].values()):
        classes = [name for name in one if name.startswith(("esa", "confusion"))]
        one.update(dict.fromkeys(classes))
        one["masked_mae_ci95"] = None
    scores["model_against_nearest_visible"] = {}
    page = html.article(make_run(dataset, splits={"test": scores}), dataset, [])
    assert "chance is not excluded" in page
    assert 'aria-label="not measured"' in page
    Page(page)


def test_a_run_of_one_epoch_has_its_curves(make_dataset, make_run):
    dataset = make_dataset(WORLDCOVER_PALETTE)
    assert "Loss, training" in html.article(make_run(dataset, epochs=1), dataset, [])


def kept(files, **how):
    contract = files.contract.model_copy(update={"kept": Kept(**how)})
    return replace(files, contract=contract)


def test_the_epoch_that_was_kept_is_said_and_marked(make_dataset, make_run):
    dataset = make_dataset(WORLDCOVER_PALETTE)
    files = kept(make_run(dataset), rule="best", epoch=2, val_loss=0.25, average=0.1)
    page = html.article(files, dataset, [])
    said = (
        "after epoch 2, as a moving average (training.average 0.1), with the lowest validation "
        "loss (0.25)"
    )
    assert f"; its weights are those {said}." in page
    assert re.search(rf'<th scope="row">weights</th>\s*<td[^>]*>{re.escape(said)}</td>', page)
    alts = re.findall(r'aria-label="([^"]* from epoch 1 to 3: [^"]*)"', page)
    assert len(alts) > 4
    assert all(alt.endswith(", epoch 2 kept") for alt in alts)
    assert len(re.findall(">kept</text>", page)) == len(alts)
    Page(page)


def test_a_run_that_kept_its_last_weights_has_no_mark(make_dataset, make_run):
    dataset = make_dataset(WORLDCOVER_PALETTE)
    plain = html.article(make_run(dataset), dataset, [])
    assert "its weights are" not in plain and "kept" not in plain
    averaged = kept(make_run(dataset), rule="last", epoch=3, average=0.1)
    page = html.article(averaged, dataset, [])
    assert (
        "; its weights are those after epoch 3, as a moving average (training.average 0.1)." in page
    )
    assert ">kept</text>" not in page


def test_text_from_files_is_escaped(make_dataset, make_run):
    dataset = make_dataset(WORLDCOVER_PALETTE)
    files = make_run(dataset)
    page = html.article(files, dataset, [], why="<script>alert(1)</script>")
    assert "<script>" not in page


class Panels(HTMLParser):
    """How many panels every element of a figure holds itself, by the element's class."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "div":
            self.open.append([attrs.get("class", ""), 0])
            self.elements.append(self.open[-1])
        elif attrs.get("class") == "cell":
            self.open[-1][1] += 1

    def handle_endtag(self, tag):
        if tag == "div":
            self.open.pop()

    def of(self, name):
        return [count for own, count in self.elements if own == name]

    def classes(self):
        return {word for own, _ in self.elements for word in own.split()}


def captions(page):
    return re.findall("<figcaption>(.*?)</figcaption>", page, flags=re.DOTALL)


def test_both_composites_are_on_the_page_and_errors_once(make_dataset, make_run, make_example):
    dataset = make_dataset(SENTINEL2_L1C)
    examples = [make_example(dataset, chip) for chip in range(3)]
    page = html.article(make_run(dataset), dataset, examples)
    drawn = Panels(page)
    assert drawn.of("grid trio") == [3, 3]
    assert drawn.of("quad") == [4] * 3
    assert drawn.of("composite") == [4] * 6
    assert page.count(">error, mean") == page.count(">copy&#39;s error, mean") == 3
    for name in dataset.sensor.composites:
        assert page.count(f'<p class="shown">{name}</p>') == 3
        for region in dataset.regions:
            assert re.search(f'aria-label="{region}, [^"]*, {name}"', page)


def test_every_picture_caption_states_the_stretch_of_both_composites(
    make_dataset, make_run, make_example
):
    dataset = make_dataset(SENTINEL2_L1C)
    page = html.article(make_run(dataset), dataset, [make_example(dataset)])
    sensor = render.as_shown(dataset)
    notes = [render.stretch_note(sensor, name) for name in sensor.composites]
    assert all("each band stretched linearly by itself from 2 % to 98 %" in note for note in notes)
    notes = [note.replace("'", "&#39;") for note in notes]
    stated = [text for text in captions(page) if notes[0] in text]
    assert len(stated) == 4  # two regions, chips, reconstructions
    assert all(notes[1] in text for text in stated)


def test_a_single_composite_keeps_its_pairs_triples_and_rows(make_dataset, make_run, make_example):
    dataset = make_dataset(WORLDCOVER_PALETTE)
    examples = [make_example(dataset, chip) for chip in range(3)]
    page = html.article(make_run(dataset), dataset, examples)
    drawn = Panels(page)
    assert drawn.of("grid pair") == [2, 2]
    assert drawn.of("triple") == [3] * 6  # labels, and patch classes
    assert drawn.of("row") == [6] * 3
    assert not {"trio", "quads", "quad", "compared", "composite", "errors"} & drawn.classes()
    assert "The image is palette colour, shown as it is; beside it the land cover." in page
    assert "Chips (palette colour, shown as it is), their land cover" in page


def without_overviews(dataset, names):
    """The dataset as a build leaves it that kept no overview of some regions."""
    regions = [
        {key: value for key, value in record.items() if key != "overview"}
        if record["name"] in names
        else record
        for record in dataset.info["regions"]
    ]
    for name in names:
        for file in (dataset.path / "overviews").glob(f"{name}-*.npy"):
            file.unlink()
    return Dataset(dataset.path, {**dataset.info, "regions": regions})


def test_a_region_without_an_overview_is_named_but_not_drawn(dataset, make_run):
    dataset = without_overviews(dataset, ["first"])
    page = html.article(make_run(dataset), dataset, [])
    assert "<h3>second</h3>" in page
    assert "<h3>first</h3>" not in page
    assert "<p>Not drawn here: first.</p>" in page


def test_regions_with_an_overview_are_drawn_first(make_dataset, make_run, monkeypatch):
    monkeypatch.setattr(ground, "MOST_REGIONS_DRAWN", 1)
    dataset = make_dataset(WORLDCOVER_PALETTE)
    assert "Not drawn here: second." in html.article(make_run(dataset), dataset, [])
    dataset = without_overviews(dataset, ["first"])
    page = html.article(make_run(dataset), dataset, [])
    assert "<h3>second</h3>" in page
    assert "Not drawn here: first." in page


def test_a_page_without_any_overview_still_lists_its_regions(make_dataset, make_run):
    dataset = without_overviews(make_dataset(WORLDCOVER_PALETTE), ["first", "second"])
    page = html.article(make_run(dataset), dataset, [])
    assert "Not drawn here: first, second." in page
    Page(page)


def test_a_long_list_of_regions_not_drawn_is_folded(make_dataset, make_run, monkeypatch):
    monkeypatch.setattr(ground, "MOST_REGIONS_DRAWN", 0)
    monkeypatch.setattr(ground, "_MOST_NAMES_IN_SIGHT", 1)
    dataset = make_dataset(WORLDCOVER_PALETTE)
    page = html.article(make_run(dataset), dataset, [])
    assert "<summary>2 regions are not drawn here</summary>\n<p>first, second.</p>" in page
    Page(page)


@pytest.fixture
def stages(monkeypatch):
    """Stand-ins for the two modules that need a trained model."""
    reconstruction, checkpoint = ModuleType("reconstruction"), ModuleType("checkpoint")
    reconstruction.reconstruct = lambda run, dataset, split, count: []
    checkpoint.Run = SimpleNamespace(open=lambda path: None)
    checkpoint.dataset_fingerprint = fingerprint
    monkeypatch.setitem(sys.modules, "bharateo.evaluation.reconstruction", reconstruction)
    monkeypatch.setitem(sys.modules, "bharateo.training.run", checkpoint)


def test_write_report_writes_one_file_into_the_run(stages, make_dataset, make_run, tmp_path):
    dataset = make_dataset(WORLDCOVER_PALETTE)
    run = write_run(tmp_path / "run", make_run(dataset))
    before = set(run.iterdir())
    path = html.write_report(run)
    assert path == run / "report.html"
    assert set(run.iterdir()) - before == {path}
    assert path.stat().st_size < 4_000_000
    assert path.read_text().startswith("<!doctype html>")


def test_an_evaluation_of_other_pixels_is_refused(stages, make_dataset, make_run, tmp_path):
    evaluated, other = make_dataset(WORLDCOVER_PALETTE), make_dataset(WORLDCOVER_PALETTE, False)
    run = write_run(tmp_path / "run", make_run(evaluated))
    with pytest.raises(RunError, match="is of another dataset"):
        html.write_report(run, other.path)


@pytest.mark.parametrize(
    ("missing", "verb"),
    [("evaluation.json", "bharateo evaluate"), ("history.jsonl", "bharateo pretrain")],
)
def test_a_missing_file_names_the_verb_that_makes_it(
    stages, missing, verb, make_dataset, make_run, tmp_path
):
    run = write_run(tmp_path / "run", make_run(make_dataset(WORLDCOVER_PALETTE)))
    (run / missing).unlink()
    with pytest.raises(RunError, match=f"{missing}.*{verb}"):
        html.write_report(run)


@NEEDS_CHROMIUM
@pytest.mark.slow
@pytest.mark.parametrize("sensor", [SENTINEL2_L1C])
def test_axe_finds_nothing_serious_on_the_page_of_a_run(browser, page, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page)
    for width, scheme in ((390, "dark"), (1280, "light")):
        shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        shown.goto(file.as_uri())
        assert serious(shown) == []
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        shown.close()
