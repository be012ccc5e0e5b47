import json
from dataclasses import replace

import numpy as np
import pytest
from made_up_run import write_run
from test_html import Page

from bharateo.evaluation.features import Features
from bharateo.evaluation.probing import Predictions, level_record
from bharateo.report import html, probes
from bharateo.results import Most, ProbeRow, Probes
from bharateo.sensor import WORLDCOVER_PALETTE

RIGHT = {"encoder": (0.6, 0.9), "random_encoder": (0.4, 0.5), "band_statistics": (0.5, 0.7)}
"""Share of patches named right with 5 labels a class and with all."""


@pytest.fixture(scope="module")
def record():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 800)
    block = np.repeat([f"b{i:02d}" for i in range(20)], 40).astype(object)
    test = Features(np.zeros((800, 0), np.float32), labels, block, np.arange(800))

    def made(share):
        wrong = rng.random((1, 800)) > share
        loss = np.where(wrong, 2, 0.1).astype(np.float32)
        classes = np.where(wrong, (labels + 1) % 3, labels)
        return Predictions(classes, loss, loss.mean(1), np.ones(1), np.full(1, 9))

    results = {
        (ProbeRow(name, probe), budget): made(share)
        for name, shares in RIGHT.items()
        for probe in ("linear", "nearest")
        for budget, share in zip((5, "all"), shares, strict=True)
    }
    results |= {(ProbeRow("majority", "majority"), budget): made(0.33) for budget in (5, "all")}
    level = level_record({"train": test, "test": test}, results, block, 10, 0)
    return Probes(
        own_dataset=True,
        pretraining_heads={"pixels": 1.0},
        most=Most(train_examples=20_000),
        draws_per_budget=5,
        features=dict.fromkeys(RIGHT, "numbers <made> of pixels"),
        budgets=[5, "all"],
        zones="block",
        skipped={"chip": "the labels are of one class"},
        levels={"patch": level},
    )


@pytest.fixture
def page(record, make_dataset, make_run):
    dataset = make_dataset(WORLDCOVER_PALETTE)
    files = make_run(dataset)
    return html.article(replace(files, probes=record), dataset, [])


def test_the_section_says_who_wins_with_figures_and_links_to_it(page, record):
    Page(page)
    assert '<a href="#probes">' in page
    mean = record.levels["patch"].results[1].macro_f1.mean
    assert f'<td class="num best">{mean:.3f}<span class="sr"> (best)</span>' in page
    said = "the encoder beats the humble bar, a linear probe of band statistics (+0.1"
    assert f"Patch, linear probe, all labels: {said}" in page
    assert "log-loss); beats random encoder (+0.4" in page
    assert "The humble bar, the best linear probe of features that nothing was trained for" in page
    assert "No chip was probed: the labels are of one class." in page
    assert "numbers &lt;made&gt; of pixels" in page


def test_every_row_of_the_table_is_in_the_chart(page, record):
    chart = probes.budget_chart(record, "patch", "linear")
    for name in ("encoder", "random encoder", "band statistics", "majority class"):
        assert any(text.startswith(f"{name} 0.") for *_, text in chart.texts)
    assert 'class="scroll" tabindex="0" role="region" aria-label="Probes: patch, linear' in page


def test_the_best_of_every_column_is_marked(record):
    rows = {row.method: row for row in probes.table_rows(record.levels["patch"], "linear")}
    assert all(cell.best for cell in rows["model"].cells)
    assert not any(cell.best for cell in rows["majority"].cells)
    assert [len(row.cells) for row in rows.values()] == [8] * 4


def test_the_encoder_and_its_closest_rival_are_in_colour(record):
    chart = probes.budget_chart(record, "patch", "linear")
    for expected, name in (("--series-1", "encoder 0."), ("--series-2", "band statistics 0.")):
        colour = next(colour for *_, colour, text in chart.texts if text.startswith(name))
        assert expected in colour


def test_a_run_that_was_not_probed_has_no_such_section(make_dataset, make_run):
    dataset = make_dataset(WORLDCOVER_PALETTE)
    assert "#probes" not in html.article(make_run(dataset), dataset, [])


def test_the_probes_of_a_run_folder_are_read(record, make_dataset, make_run, tmp_path):
    run = write_run(tmp_path / "run", make_run(make_dataset(WORLDCOVER_PALETTE)))
    assert html.read_run(run).probes is None
    (run / "probes.json").write_text(json.dumps(record.model_dump()))
    assert html.read_run(run).probes == record
