"""Whatever others call their things, it stays text: in the report, the explorer and the model card.

Two of everything are made, one with plain names and one with markup in every name; the second must
have no element that the first has not.
"""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from affine import Affine
from markdown_it import MarkdownIt
from odc.geo.geobox import GeoBox

from bharateo.chips.build import build
from bharateo.evaluation.ablation import markdown
from bharateo.evaluation.evaluate import evaluate
from bharateo.evaluation.probing import probe_run
from bharateo.evaluation.reconstruction import reconstruct
from bharateo.explorer import write
from bharateo.handover import card
from bharateo.handover.card import model_card
from bharateo.landcover import WORLDCOVER
from bharateo.regions import Region
from bharateo.report import html, notebook
from bharateo.results import PROBES_FILE, Ablation, Probes, read_result
from bharateo.sensor import Band, Composite
from bharateo.sources import Recipe
from bharateo.training.run import Run
from handover.tiny_run import tiny_run
from small_datasets import PLAN, Labels, Pixels, many_bands

MARKUP = (
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(2)">',
    "'-alert(3)-'",
    "</script></style></title><svg onload=alert(4)>",
    "a\n\n---\n\n# heading\n\n- item",
    "| cell | `code` ``` *bold* __bold__ ~~gone~~",
    "[link](javascript:alert(5)) ![image](x) <https://a.b>",
    "{{ 7 * 7 }} {% raw %} ${alert(6)} $x^2$",
    "--> ]]> <!-- \u2028 \x07 &lt;b&gt; \\",
)


class Names:
    """Names of things, plain or with markup; a thing has a name of its own."""

    def __init__(self, planted):
        self.planted, self.number = planted, 0

    def __call__(self, *, one_line=False):
        self.number += 1
        if not self.planted:
            return f"name{self.number}"
        turn = self.number % len(MARKUP)
        text = f"name{self.number} {' '.join((MARKUP * 2)[turn : turn + 5])}"[:240]
        return re.sub(r"[\s/\\\x00-\x1f\x7f\u2028]+", "_", text)[:120] if one_line else text


def made(folder, planted):
    """A dataset and a run on it, scored and probed, with such names."""
    name = Names(planted)
    sensor = many_bands(3)
    bands = tuple(Band(name(one_line=True), 10) for _ in sensor.bands)
    composites = {name(): Composite(tuple(band.name for band in bands), 0.0, 1.0)}
    sensor = replace(
        sensor, name=name(), title=name(), bands=bands, composites=composites, notes=name()
    )
    pixels, labels = Pixels(sensor), Labels()
    pixels.name, pixels.attribution = name(), (name(), name())
    labels.name, labels.attribution = name(), (name(),)
    native = {code: (name(), meaning[1]) for code, meaning in WORLDCOVER.native.items()}
    labels.scheme = replace(WORLDCOVER, name=name(), native=native)
    read = pixels.read
    pixels.read = lambda geobox: replace(read(geobox), provenance={"item": name(), name(): 1})
    grid = GeoBox((240, 240), Affine(10, 0, 400_000, 0, -10, 3_000_000), "EPSG:32643")
    recipe = Recipe(name(), [Region(name(one_line=True), grid)], pixels, labels)
    dataset = build(recipe, PLAN, folder / "dataset", 42)
    run = tiny_run(folder / name(one_line=True), dataset)
    contract = json.loads((run.path / "contract.json").read_text())
    contract["dataset"]["path"] = f"data/{name(one_line=True)}"
    (run.path / "contract.json").write_text(json.dumps(contract))
    (run.path / "config.yaml").write_text(yaml.safe_dump({"data": {"aoi": name()}, "x": name()}))
    (run.path / "provenance.json").write_text(json.dumps({"why": name()}))
    (run.path / "history.jsonl").write_text('{"epoch": 1, "loss": 0.5, "lr": 0.1}\n')
    evaluation = evaluate(run, dataset, run.path / "evaluation.json").model_dump()
    split = evaluation["splits"].pop("val")
    split["baselines"][name()] = split["baselines"].pop("bilinear")
    split["per_roi"] = {name(): split["per_roi"].popitem()[1], name(): evaluation["splits"]["test"]}
    split["model"]["no_interval"] = dict.fromkeys(split["model"]["no_interval"], name())
    evaluation["splits"][name()] = split
    evaluation["dataset"]["name"] = name()
    (run.path / "evaluation.json").write_text(json.dumps(evaluation))
    probes = probe_run(
        run, dataset, run.path / "probes.json", levels=["patch"], budgets=["all"],
        features=["encoder", "band_statistics"],
    ).model_dump()  # fmt: skip
    other = name()
    probes["features"][other] = name()
    for each in probes["levels"]["patch"]["results"]:
        if each["features"] == "band_statistics":
            each["features"] = other
    probes["zones"], probes["skipped"] = name(), {name(): name()}
    (run.path / "probes.json").write_text(json.dumps(probes))
    return dataset, Run.open(run.path)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The plain and the planted dataset and run."""
    return [made(tmp_path_factory.mktemp(str(planted)), planted) for planted in (False, True)]


DRAWN = {"g", "path", "use", "defs", "clippath", "text", "circle"}
"""Elements of a chart, which has as many as its numbers ask for."""


class Elements(HTMLParser):
    """Tags with the names of their attributes, in order; text and values do not matter."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag in DRAWN:
            assert not [name for name, _ in attributes if name.startswith("on")]
        else:
            self.found.append((tag, tuple(name for name, _ in attributes)))

    def handle_endtag(self, tag):
        if tag not in DRAWN:
            self.found.append((f"/{tag}", ()))

    def handle_comment(self, data):
        self.found.append(("comment", ()))


def no_other_elements(plain, planted):
    """For pages on which what there is depends on the scores."""
    assert {*Elements(planted).found} <= {*Elements(plain).found}
    assert "<script>alert" not in planted


def same_elements(plain, planted):
    expected, found = Elements(plain).found, Elements(planted).found
    for place, (one, other) in enumerate(zip(expected, found, strict=False)):
        assert one == other, (place, found[max(place - 3, 0) : place + 3])
    assert len(expected) == len(found)
    assert "<script>alert" not in planted


def test_the_report_has_the_same_elements_whatever_things_are_called(both):
    pages = [
        html.article(html.read_run(run.path), dataset, reconstruct(run, dataset, "test", 1))
        for dataset, run in both
    ]
    no_other_elements(*pages)
    assert "&lt;script&gt;alert(1)" in pages[1]


def test_figures_of_a_notebook_have_the_same_elements(both):
    for show in (
        lambda dataset, run: notebook.show_regions(dataset),
        lambda dataset, run: notebook.show_probes(
            read_result(Probes, run.path / PROBES_FILE, "probe")
        ),
    ):
        no_other_elements(*(show(*one)._repr_html_() for one in both))


def test_the_explorer_has_the_same_elements_and_its_data_are_data(both, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "write_onnx", lambda run, path, what: path.write_bytes(b"model"))
    pages = []
    for number, (dataset, run) in enumerate(both):
        page = write.write_explorer(run, dataset, tmp_path / str(number), lambda *told: None, print)
        pages.append(page.read_text())
    same_elements(*pages)
    for script in (tmp_path / "1" / "data").glob("[ae]*-*.js"):
        register = re.fullmatch(r'explorer\.register\("[\w-]+",(.*)\);\n', script.read_text())
        json.loads(register[1])
        assert "\u2028" not in register[1]


def test_the_explorers_scripts_make_elements_of_no_text():
    for script in Path(write.__file__).parent.glob("page/*.js"):
        assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\\(",
                             script.read_text()), script.name  # fmt: skip


def rendered(text):
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


def test_the_model_card_has_the_same_elements_whatever_things_are_called(both):
    headers, bodies = [], []
    for planted, (_, run) in enumerate(both):
        name, scheme = Names(planted), run.contract.class_scheme
        classes = [each.model_copy(update={"name": name()}) for each in scheme.classes]
        scheme = scheme.model_copy(update={"classes": classes})
        contract = run.contract.model_copy(update={"class_scheme": scheme})
        _, header, body = model_card(replace(run, contract=contract)).split("---\n", 2)
        headers.append(yaml.safe_load(header))
        bodies.append(rendered(body))
    assert headers[0].keys() == headers[1].keys()
    assert [len(each["tags"]) for each in headers] == [5, 5]
    same_elements(*bodies)


def test_the_table_of_an_ablation_has_the_same_elements(both):
    score = {
        "mean": 0.5, "ci95": None, "per_seed": [], "against_base": 0.0, "against_base_ci95": None,
    }  # fmt: skip
    pages = []
    for planted in (False, True):
        name = Names(planted)
        scores = dict.fromkeys(
            ("accuracy", "balanced_accuracy", "macro_f1"), score | {"no_interval": name()}
        )
        cell = {"name": name(), "settings": {"a.b": name()}, "scores": scores,
                "runs": [], "config": ""}  # fmt: skip
        pages.append(rendered(markdown(Ablation.model_validate_json(json.dumps({
            "dataset": {"name": name(), "fingerprint": ""}, "factors": [name()], "seeds": [1],
            "cells": [cell], "base": "", "code_version": "",
            "probe": {"num_train": 1, "num_test": 1, "num_blocks": 1},
        })))))  # fmt: skip
    same_elements(*pages)


@pytest.mark.parametrize("text", MARKUP)
def test_a_text_in_markdown_is_one_line_that_reads_as_it_was(text):
    line = card.markdown_text(text)
    assert "\n" not in line
    page = rendered(f"- {line}")
    assert Elements(page).found == Elements(rendered("- plain")).found
