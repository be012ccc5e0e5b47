import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bharateo.report import charts, html
from bharateo.report.charts import MUTED, SERIES, Line


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_names_at_the_ends_of_lines_keep_their_order_and_distance(places):
    moved = charts.spread(sorted(places), 0.075)
    assert all(b - a >= 0.075 - 1e-9 for a, b in pairwise(moved))
    assert max(moved) <= 1 + 1e-9


def chart(values=(0.5, 0.2, 0.1), **line):
    lines = [Line("total", values, SERIES[0], **line), Line("part", [0.1] * len(values), "#111")]
    epochs = range(1, len(values) + 1)
    return charts.line_chart(
        "Loss", "Loss from 0.5 to 0.1", lines, {"1": 1}, "epoch", epochs, "{:.2f}".format, 0.6
    )


def svg(*drawn):
    """Charts as the page shows them."""
    return html.article_template().environment.globals["charts"](drawn)


def words(drawn):
    return [text for *_, text in drawn.texts]


def test_a_chart_uses_the_pages_colours_and_type_and_says_what_it_shows():
    page = svg(chart())
    assert "var(--series-1)" in page
    assert "font-family" not in page
    assert 'role="img" aria-label="Loss from 0.5 to 0.1"' in page
    assert "total 0.10" in page


def test_what_a_line_is_called_stays_text():
    page = svg(charts.interval_chart("<i>", '"', [Line("<b>", [1.0], intervals=[None])], str))
    assert "&lt;b&gt;" in page and "<b>" not in page and "<i>" not in page


def test_charts_have_no_ids_so_none_can_clash():
    assert "id=" not in svg(chart(), chart())


def test_the_same_chart_is_the_same_bytes():
    assert svg(chart()) == svg(chart())


def test_a_line_runs_through_its_values_from_zero_to_the_top():
    drawn = chart((0.6, 0.3, 0.0))
    path = next(path for _, colour, path in drawn.paths if colour == SERIES[0])
    places = [tuple(map(float, place)) for place in re.findall(r"([\d.]+) ([\d.]+)", path)]
    across, down = zip(*places, strict=True)
    assert across[1] - across[0] == pytest.approx(across[2] - across[1])
    assert down[1] - down[0] == pytest.approx(down[2] - down[1], abs=0.02)
    floor = next(y for _, y, _, _, text in drawn.texts if text == "0")
    assert down[2] == floor


def test_a_chart_of_one_epoch_shows_a_point():
    drawn = chart((0.5,))
    assert "total 0.50" in words(drawn)
    assert len(drawn.dots) == 2
    assert not chart().dots


def test_missing_epochs_leave_a_gap_and_the_last_measured_value():
    assert "total 0.20" in words(chart((None, 0.2, None)))
    gap = next(path for _, colour, path in chart((0.1, None, 0.2)).paths if colour == SERIES[0])
    assert gap.count("M") == 2 and "L" not in gap


def test_a_level_is_one_line_across_the_chart():
    style, _, path = next(p for p in chart((0.3,), style="level").paths if p[1] == SERIES[0])
    assert style == "level" and re.fullmatch(r"M[\d.]+ [\d.]+H[\d.]+", path)


def test_an_interval_chart_names_every_method_and_value():
    estimates = [
        Line("this model", [0.8], SERIES[0], intervals=[(0.75, 0.85)]),
        Line("copy", [0.7], MUTED, intervals=[None]),
    ]
    drawn = charts.interval_chart("Accuracy", "", estimates, lambda v: f"{100 * v:.1f} %")
    assert {"this model", "80.0 %", "copy", "70.0 %"} <= {*words(drawn)}
    assert [style for style, *_ in drawn.paths].count("interval") == 1
    assert len(drawn.dots) == 2


def test_values_that_are_all_alike_are_drawn():
    line = Line("a", [0.0], intervals=[(0.0, 0.0)])
    assert charts.interval_chart("x", "x", [line], str).dots


def test_a_mark_is_a_dotted_line_at_its_place_under_its_name():
    lines = [Line("total", [0.5, 0.2, 0.1, 0.1, 0.3], SERIES[0])]
    plain, marked = (
        charts.line_chart(
            "Loss", "Loss", lines, {"1": 1}, "epoch", range(1, 6), "{:.2f}".format, 0.6, marks=marks
        )
        for marks in (None, {"kept": 3})
    )
    ((style, _, path),) = [each for each in marked.paths if each not in plain.paths]
    assert style == "level"
    place, above, below = map(float, re.fullmatch(r"M([\d.]+) ([\d.]+)V([\d.]+)", path).groups())
    drawn = next(path for _, colour, path in marked.paths if colour == SERIES[0])
    assert f"L{place} " in drawn
    assert above < below
    ((x, y, anchor, *_),) = [text for text in marked.texts if text[-1] == "kept"]
    assert (x, anchor) == (place, "middle")
    assert 0 < y <= above
