"""What a map and a probe say of themselves on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_CONTENDERS = {
    "encoder": "this run",
    "band_statistics": "band statistics",
    "random_encoder": "the same encoder, untrained",
}


def map_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Areas, what is out of the domain, and agreement with labels."""
    width = max(len(each["class"]) for each in record["areas"])
    for each in record["areas"]:
        yield f"  {each['class']:{width}}  {each['km2']:12,.2f} km2  {100 * each['share']:5.1f} %"
    yield f"  {'in all':{width}}  {record['km2']:12,.2f} km2"
    outside = record["out_of_domain"]
    if outside is not None:
        beyond = 100 * (1 - record["domain"]["quantile"])
        yield (
            f"out of the run's domain: {100 * outside['share']:.1f} % of the map ({beyond:.0f} % "
            "of the validation ground is)"
        )
    if record["against"] is not None:
        yield from _against_lines(record["against"])


def _against_lines(against: Mapping[str, Any]) -> Iterator[str]:
    if not against["cells"]:
        yield f"against {against['labels']}: no labels here"
        return
    other, rule = against["commonest_label_everywhere"], against["suspect_if"]
    yield (
        f"against {against['labels']}: agreement {against['agreement']:.3f}, balanced "
        f"{against['balanced_agreement']:.3f}, macro-F1 {against['macro_f1']:.3f} (commonest label "
        f"everywhere: {other['agreement']:.3f}, {other['balanced_agreement']:.3f}, "
        f"{other['macro_f1']:.3f})"
    )
    by_label = ", ".join(
        f"{name} {count}" for name, count in against["suspect_by_label"].items() if count
    )
    yield (
        f"suspect labels: {against['suspect']:,} of {against['cells']:,} cells (a label on at "
        f"least {rule['purity_at_least']:.0%} of its patch that the map gives less than "
        f"{rule['probability_below']:.0%}){': ' + by_label if by_label else ''}"
    )


def probe_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Scores of a probe with their intervals, and recall by class."""
    points, score = record["points"], record["score"]
    counts = ", ".join(f"{name} {count}" for name, count in points.items())
    yield f"points: {counts}, in {score['places']} places"
    yield f"balanced accuracy expected on other ground ({score['by']}):"
    for name, title in _CONTENDERS.items():
        low, high = score[name]["balanced_accuracy_ci95"]
        value = score[name]["balanced_accuracy"]
        yield f"  {title:28} {value:.2f}  (95 %: {low:.2f} to {high:.2f})"
    chance = score["one_class"]["balanced_accuracy"]
    yield f"  {'one class for all':28} {chance:.2f}"
    recall = ", ".join(
        f"{name} {'not known' if value is None else f'{value:.2f}'}"
        for name, value in score["encoder"]["recall"].items()
    )
    yield f"recognised of each class: {recall}"
