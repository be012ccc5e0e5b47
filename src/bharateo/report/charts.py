"""Charts in the page's own colours (CSS variables): they follow a dark page and a printed one.

A chart is what there is to draw, in the units of its view box; the templates' macro ``chart`` makes
it an SVG.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from matplotlib.ticker import MaxNLocator

SERIES = ("var(--series-1)", "var(--series-2)", "var(--series-3)")
MUTED = "var(--muted)"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart: its values (None where nothing was measured) and their intervals.

    ``style`` is "", "dashed", or "level": a single value to compare with, dotted across the chart.
    """

    label: str
    values: Sequence[float | None]
    colour: str = MUTED
    style: str = ""
    intervals: Sequence[Interval | None] = ()

    @property
    def measured(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]


@dataclass(frozen=True)
class Chart:
    """A drawing under its title; ``alt`` says in its stead what it shows."""

    title: str
    alt: str
    width: float
    height: float
    paths: list[tuple[str, str, str]] = field(default_factory=list)
    """Style, colour and path data."""
    dots: list[tuple[float, float, str]] = field(default_factory=list)
    """Place and colour."""
    texts: list[tuple[float, float, str, str, str]] = field(default_factory=list)
    """Place, anchor, colour and words."""


def line_chart(
    title: str,
    alt: str,
    lines: Sequence[Line],
    ticks: Mapping[str, float],
    axis: str,
    places: Sequence[float],
    show: Callable[[float], str],
    top: float,
    width: float = 331,
    marks: Mapping[str, float] | None = None,
) -> Chart:
    """Lines over ``places``, from zero to ``top``, each named at its right end with its last value.

    ``ticks`` are labels along the axis, ``marks`` those of dotted lines across it. Lines with
    intervals have dots, and stand a little beside each other so that these can be told apart.
    """
    left, right, above, below = 36.0, width - (109 if width < 400 else 200), 8.0, 0.55 * width
    chart = Chart(title, alt, width, round(below + 28))
    margin = 0.2 if any(line.intervals for line in lines) else 0.0
    first, last = places[0] - margin, max(places[-1], places[0] + (1 if not margin else 0)) + margin

    def x(place: float) -> float:
        return round(left + (right - left) * (place - first) / (last - first), 2)

    def y(value: float) -> float:
        return round(below - (below - above) * value / top, 2)

    for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top):
        if tick <= top:
            chart.paths.append(("rule", "", f"M{left} {y(tick)}H{right}"))
            chart.texts.append((left - 4, y(tick), "end", MUTED, _short(show(tick))))
    for label, place in ticks.items():
        chart.texts.append((x(place), below + 9, "middle", MUTED, label))
    chart.texts.append((right, below + 22, "end", MUTED, axis))
    chart.paths.append(("rule", "", f"M{left} {above}V{below}"))
    for label, place in (marks or {}).items():
        chart.paths.append(("level", MUTED, f"M{x(place)} {above}V{below}"))
        chart.texts.append((x(place), above - 6, "middle", MUTED, label))
    for number, line in enumerate(lines):
        if line.style == "level":
            chart.paths.append(("level", line.colour, f"M{left} {y(line.measured[-1])}H{right}"))
            continue
        beside = 0.05 * (number - (len(lines) - 1) / 2) if line.intervals else 0.0
        points = [
            None if value is None else (x(place + beside), y(value))
            for place, value in zip(places, line.values, strict=True)
        ]
        drawn = "".join(
            f"{'L' if before else 'M'}{point[0]} {point[1]}"
            for before, point in pairwise([None, *points])
            if point
        )
        chart.paths.append((line.style, line.colour, drawn))
        if line.intervals or len(places) == 1:
            chart.dots.extend((*point, line.colour) for point in points if point)
        for place, interval in zip(places, line.intervals, strict=False):
            if interval:
                ends = f"M{x(place + beside)} {y(interval[0])}V{y(interval[1])}"
                chart.paths.append(("interval", line.colour, ends))
    named = sorted((line for line in lines if line.measured), key=lambda line: line.measured[-1])
    heights = spread([line.measured[-1] / top for line in named], 0.075)
    for line, height in zip(named, heights, strict=True):
        words = f"{line.label} {show(line.measured[-1])}".strip()
        chart.texts.append((right + 6, y(height * top), "start", line.colour, words))
    return chart


def interval_chart(
    title: str, alt: str, estimates: Sequence[Line], show: Callable[[float], str]
) -> Chart:
    """A dot and its interval for everyone who was measured, one below the other."""
    left, right, above, pitch = 103.0, 288.0, 4.0, 21.6
    below = above + pitch * len(estimates)
    chart = Chart(title, alt, 331, round(below + 20))
    shown = [(one, one.measured[0], one.intervals[0]) for one in estimates]
    drawn = [end for _, value, interval in shown for end in interval or (value, value)]
    margin = 0.05 * (max(drawn) - min(drawn)) or 1.0
    low, high = min(drawn) - margin, max(drawn) + margin

    def x(value: float) -> float:
        return round(left + (right - left) * (value - low) / (high - low), 2)

    for tick in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high):
        if low <= tick <= high:
            chart.paths.append(("rule", "", f"M{x(tick)} {above}V{below}"))
            chart.texts.append((x(tick), below + 9, "middle", MUTED, _short(show(tick))))
    chart.paths.append(("rule", "", f"M{left} {below}H{right}"))
    for place, (one, value, interval) in enumerate(shown):
        y = round(above + pitch * (place + 0.5), 2)
        if interval:
            ends = f"M{x(interval[0])} {y}H{x(interval[1])}"
            chart.paths.append(("interval", one.colour, ends))
        chart.dots.append((x(value), y, one.colour))
        chart.texts.append((left - 4, y, "end", MUTED, one.label))
        chart.texts.append((right + 6, y, "start", one.colour, show(value)))
    return chart


def _short(shown: str) -> str:
    """A value as an axis needs it: without zeros at the end."""
    number, _, unit = shown.partition(" ")
    return f"{float(number):g} {unit}".strip()


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in 0..1, moved as little as one pass each way can, ``gap`` apart."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    for index in range(len(moved) - 1, -1, -1):
        ceiling = moved[index + 1] - gap if index + 1 < len(moved) else 1.0
        moved[index] = min(moved[index], ceiling)
    return moved
