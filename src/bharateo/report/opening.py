"""The first screen of a run's report: the one result, a picture, the ground; and where the model
loses, why and what next, by rule from the run's own figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bharateo.chips.store import Dataset
from bharateo.geography import to_lonlat
from bharateo.models.heads import HEADS
from bharateo.report import ground, panels, render, scores
from bharateo.report.scores import Comparison
from bharateo.results import Evaluation, Metric
from bharateo.training.contract import Contract

if TYPE_CHECKING:
    from bharateo.evaluation.reconstruction import Example

STILL_FALLING = 0.03
"""Share of a training loss: falling by more in the last fifth of the epochs, it had not ended."""

FEW_LABELS = 0.5
"""Share of the training pixels that have a label."""

COPY_IS_RIGHT = 0.9
"""Share of the hidden patches: a copy that is right this often leaves next to nothing to win."""

LITTLE_GROUND = 5_000_000
"""Pixels of training ground. The published experiment has 12.6 million."""

HIDDEN_SHARE = 0.02
"""Share of held-out pixels from which on those under cloud or missing are spoken of."""


@dataclass(frozen=True)
class Loss:
    """Where a model loses: what it is about, and in two sentences why, and what next."""

    what: str
    why: str
    what_next: str


def first_screen(
    dataset: Dataset, evaluation: Evaluation, examples: Sequence[Example]
) -> dict[str, Any]:
    """The headline with its baseline and interval, one chip as it was hidden, rebuilt and is, and
    the ground it lies in.
    """
    split = scores.splits(evaluation)[0]
    found = scores.comparisons(evaluation.splits[split], scores.metrics_of(evaluation))
    shown: list[panels.Panel] = []
    place = dataset.places.replace("_", " ")
    small_map, sensor = None, render.as_shown(dataset)
    if examples:
        example = examples[0]
        drawn = panels.reconstruction_panels(
            example, sensor, sensor.default_composite, ground.classes(dataset)
        )
        labels = {"target": "what is there", "masked input": "what it was shown",
                  "reconstruction": "what it made of it"}  # fmt: skip
        by_label = {panel.label: panel for panel in drawn}
        shown = [
            replace(by_label[label], label=labels[label])
            for label in ("masked input", "reconstruction", "target")
            if label in by_label
        ]
        place = address(dataset, example.region, example.chip, len(example.valid))
        small_map = ground.small_map(dataset, example.region)
    return {
        "shown_as": render.stretch_note(sensor, brief=True),
        "hero": shown,
        "hero_place": place,
        "hero_map": small_map,
        "headline": headline(found),
        "result": "; it ".join(map(result, _wins(found) or found)),
    }


def address(dataset: Dataset, region: str, chip: str, chip_px: int) -> str:
    """Where a chip lies, for people, e.g. ``brandenburg, 52.49° N 12.60° E``."""
    name, record = region.replace("_", " "), dataset.info["regions"][dataset.regions.index(region)]
    if "bounds_lonlat" not in record:
        return name
    row, col = (int(number) for number in chip.split("/")[-2:])
    middle = np.array([[col], [row]]) + chip_px / 2
    (lon,), (lat,) = to_lonlat(dataset.geobox(region), middle)
    north, east = ground.degrees(lat, "N", "S", 2), ground.degrees(lon, "E", "W", 2)
    return f"{name}, {north} {east}"


# What it wins


def _wins(found: Sequence[Comparison]) -> list[Comparison]:
    """Where the model is better than the copy and than every other rule; the certain ones first."""
    won = [one for one in found if one.outcome == "better" and not one.better_rule]
    return sorted(won, key=lambda one: not one.certain)


def headline(found: Sequence[Comparison]) -> str:
    """What the model wins, in a line."""
    if not found:
        return "No hidden patch could be scored"
    if wins := _wins(found):
        return f"{_won(wins[0])}{'' if wins[0].certain is not False else ', perhaps by chance'}"
    ahead = [one for one in found if one.outcome == "better"]
    if ahead:
        rule = scores.method_name(ahead[0].better_rule)
        return (
            f"Hidden {ahead[0].subject}: better than a copy of the nearest patch, not than {rule}"
        )
    if all(one.outcome == "equal" for one in found):
        return "No better and no worse than a copy of the nearest visible patch"
    return "Not yet better than a copy of the nearest visible patch"


def _won(one: Comparison) -> str:
    """By how much, e.g. ``20 % less error on hidden pixels than a copy of the nearest patch``."""
    than = f"hidden {one.subject} than a copy of the nearest patch"
    gain = one.model - one.bar
    if one.metric.against == "ratio" and one.bar:
        change = f"{100 * abs(gain / one.bar):.0f} %"
        return f"{change} {'less error' if gain < 0 else 'more'} on {than}"
    if one.metric.unit == "%":
        return f"{100 * gain:.1f} points more of the {than.replace(' than', ' right than')}"
    return f"{abs(gain):.4g} {'more' if gain > 0 else 'less'} on {than}"


def result(one: Comparison) -> str:
    """What the model and the copy reach, how far apart they are with the interval or that there is
    none, and a rule without learning that does as well.
    """
    said = one.sentence
    if one.difference:
        apart = one.difference.replace(" (", ", ").removesuffix(")")
        said += f" ({apart}{', too few blocks for an interval' if one.certain is None else ''})"
    if one.equal_rule:
        said += f"; {scores.method_name(one.equal_rule)}, which learns nothing, does as well"
    return said


# What it loses


def losses(
    contract: Contract,
    dataset: Dataset,
    evaluation: Evaluation,
    history: Sequence[Mapping[str, Any]],
) -> list[Loss]:
    """Where the model is worse than the copy or than another rule, and why; none where it is not.

    ``dataset`` is the one that was evaluated.
    """
    split, metrics = scores.splits(evaluation)[0], scores.metrics_of(evaluation)
    found = scores.comparisons(evaluation.splits[split], metrics)
    own = evaluation.dataset.fingerprint == contract.dataset.fingerprint
    fitted: list[Comparison] = []
    if "train" in evaluation.splits and split != "train":
        fitted = scores.comparisons(evaluation.splits["train"], metrics)
    by_metric = {one.metric.name: one for one in fitted}
    lost = []
    for one in found:
        if one.outcome != "worse" and not one.better_rule:
            continue
        rule = scores.BAR if one.outcome == "worse" else one.better_rule
        values = scores.measured(evaluation.splits[split], one.metric)
        what = (
            f"{one.subject[:1].upper()}{one.subject[1:]}: {one.metric.show(one.model)}, against "
            f"{one.metric.show(values[rule])} for {scores.method_name(rule)}"
        )
        if own:
            on_train = by_metric.get(one.metric.name)
            why, then = _why(one, on_train, contract, dataset, evaluation.metrics, history)
        else:
            places = contract.dataset.places or "another dataset"
            why = f"It was trained on other ground ({places}), which may not look like this."
            then = "Pretrain a run on this ground, with `bharateo pretrain`, and compare the two."
        lost.append(Loss(what, why, then))
    return lost


def _why(
    lost: Comparison,
    on_train: Comparison | None,
    contract: Contract,
    dataset: Dataset,
    metrics: Sequence[Metric],
    history: Sequence[Mapping[str, Any]],
) -> tuple[str, str]:
    """The first reason that the run's figures speak for, and what to do about it."""
    train = dataset.chips[dataset.chips["split"] == "train"]
    squares = f"{len(train):,} training squares of {dataset.size_px} px"
    head = lost.metric.head
    more_ground = "Build with more places, such as another --roi, and train on those."
    if on_train and on_train.outcome == "better":
        ours, copys = lost.metric.show(on_train.model), lost.metric.show(on_train.bar)
        why = f"On the ground it was trained on it beats the copy ({ours} against {copys}): it has "
        return f"{why}learnt its {squares} by heart.", more_ground
    parts = [each.name for each in metrics if each.head == head and each.weight is not None]
    fell = max((_still_falling(history, name) for name in parts), default=0.0)
    epochs = contract.presented.epochs
    if fell > STILL_FALLING or len(history) == 1:
        why = f"It stopped early, after {scores.plural(epochs, 'epoch')}"
        if len(history) > 1:
            why += f": its training loss still fell by {100 * fell:.0f} % in the last fifth of them"
        longer = f"with `bharateo pretrain` and --epochs {4 * epochs}"
        return f"{why}.", f"Train for longer into another folder, {longer}."
    if head in HEADS and HEADS[head].classes:
        labelled = float(train["labelled_fraction"].mean()) if len(train) else 0.0
        if labelled < FEW_LABELS:
            why = f"Only {100 * labelled:.0f} % of the pixels in its {squares} have a label: there "
            weight = 4 * contract.heads[head].weight
            return f"{why}is little to learn classes from.", (
                "Build with labels that cover the ground, or let those that are there weigh more, "
                f"with --set heads.{head}.weight={weight:g}."
            )
        if lost.bar > COPY_IS_RIGHT:
            why = "Neighbours are so much alike here that a copy is right for "
            mixed = "Build on ground that is more mixed, with --set data.plan.min_classes=3."
            return f"{why}{lost.metric.show(lost.bar)} of the hidden patches.", mixed
    pixels = len(train) * dataset.size_px**2
    if pixels < LITTLE_GROUND:
        why = f"It was trained on {squares}, {pixels / 1e6:.1f} million pixels: that is little."
        return why, more_ground
    why = "The run's figures do not say: there was enough ground, and its loss had ceased to fall."
    return why, (
        "Set a larger model beside it, with --set model.size=small, or other weights of the tasks, "
        "with `bharateo ablate`."
    )


def _still_falling(history: Sequence[Mapping[str, Any]], name: str) -> float:
    """The share of itself by which a training loss fell in the last fifth of the epochs."""
    values = [float(row[name]) for row in history if row.get(name) is not None]
    before = values[-1 - max(len(values) // 5, 1)] if len(values) > 1 else 0.0
    return (before - values[-1]) / before if before > 0 else 0.0


# Under what it lies


def cloud_note(dataset: Dataset, split: str) -> str:
    """What share of a held-out split lies under cloud, as far as the pixels come with a mask of it.

    Sentinel-2 from a catalogue does (its scene classification), and sources that say how they told
    ``cloud``: it is invalid in a dataset. Of other images it is said that nobody knows.
    """
    own = dataset.chips[dataset.chips["split"] == split]
    if split == "train" or not len(own) or not dataset.sensor.standardised:
        return ""
    told = all("cloud" in each["provenance"]["image"] for each in dataset.info["regions"])
    if not told and not own["scene"].notna().all():
        return (
            "These pixels come without a mask of clouds: whether held-out ground lies under one is "
            "to be seen in the pictures alone."
        )
    lost = 1 - own["valid_fraction"]
    if lost.mean() < HIDDEN_SHARE:
        return ""
    by_block = lost.groupby(own["block"]).mean()
    return (
        f"{100 * lost.mean():.0f} % of the {split} ground lies under cloud or its shadow, or is "
        f"missing, and is not judged; most in block {by_block.idxmax()} "
        f"({100 * by_block.max():.0f} %)."
    )
