"""The figures that verbs write, as typed records: ``evaluation.json``, ``probes.json`` and others.

One definition writes a file and reads it: fields are declared in the order in which they are
written, and ``model_json_schema()`` of a record is its JSON Schema. A run's folder may come from
anybody and from an earlier version: what is there is checked, what nobody needs has a default, and
keys that nobody knows may be added freely.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from bharateo.artefacts import OpenRecord, Record, checked, read_json
from bharateo.errors import RunError
from bharateo.landcover import NUM_CLASSES

EVALUATION_FILE = "evaluation.json"
PROBES_FILE = "probes.json"
PROVENANCE_FILE = "provenance.json"
ABLATION_FILE = "ablation.json"

METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
"""What predictions of classes are scored by."""

Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
Whole = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, StringConstraints(max_length=10_000)]
Name = Annotated[str, StringConstraints(max_length=250)]
PathText = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00-\x1f]*$")]


def _bounds_or_none(value: Any) -> Any:
    """The first version wrote ``[null, null]`` where there was no interval."""
    if not isinstance(value, list):
        return value
    return None if value == [None, None] else tuple(value)


Interval = Annotated[tuple[Number, Number] | None, BeforeValidator(_bounds_or_none)]
"""Of 95 %, where there is one."""

_Row = Annotated[list[Whole], Field(min_length=NUM_CLASSES, max_length=NUM_CLASSES)]
Confusion = Annotated[list[_Row], Field(min_length=NUM_CLASSES, max_length=NUM_CLASSES)]
"""Counts of (true, predicted) classes."""


class Versioned(OpenRecord):
    """The whole contents of a file, by the version of its form."""

    schema_version: Literal[1] = 1


# evaluation.json


class Metric(OpenRecord):
    """A number that a head's predictions are judged by, as the head declares it.

    ``name`` is its key in files, ``title`` heads a column, ``phrase`` names it in a sentence;
    ``subject`` is what it is of, and ``sentence`` says in two places, ``{}``, what the model
    reaches and what the nearest-visible copy does.
    """

    name: Name
    head: Name = ""
    """In a file: the head it is of."""
    weight: Number | None = None
    """In a file: that of the head, if this is what its training minimises."""
    title: Text
    better: Literal["lower", "higher"]
    meaning: Text = ""
    phrase: Text = ""
    subject: Text = ""
    sentence: Text = ""
    unit: Text = ""
    """``%`` of a share, which is kept as 0 to 1; nothing where it is that of the input, or none."""
    baselines: Literal["ranked", "told", "none"] = "ranked"
    """How baselines stand beside it: on equal terms; told what the model must find out, so that
    they are shown and not ranked; without any such number."""
    against: Literal["ratio", "gain"] | None = None
    """How the model is set against the nearest-visible copy: by their ratio, their difference."""
    mean_over_classes: Literal["balanced_accuracy", "macro_f1"] | None = None
    """Taken from the head's confusion matrix."""
    shown: bool = True
    """Whether tables have it: a loss in model units is for curves alone."""

    def show(self, value: float) -> str:
        """A value as printed."""
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.4f}"

    def span(self, interval: tuple[float, float]) -> str:
        """An interval as printed, e.g. ``71.0 to 78.2 %``."""
        low, high = (self.show(bound) for bound in interval)
        return f"{low.removesuffix(' %')} to {high}"

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return max(values) if self.better == "higher" else min(values)


Figure = Number | Interval | list[list[Whole]] | None
"""A metric, its interval, or the confusion matrix of a head that tells classes apart."""


class Figures(OpenRecord):
    """Figures by name: those of a metric stand under its own, ``NAME`` and ``NAME_ci95``."""

    no_interval: dict[Name, Text] = Field(default_factory=dict)
    """Metrics without an interval, and why."""

    __pydantic_extra__: dict[str, Figure] = Field(init=False)

    def value(self, metric: str) -> float | None:
        """A metric by its name, None where nothing was measured."""
        found = (self.model_extra or {}).get(metric)
        return found if isinstance(found, int | float) else None

    def interval(self, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric by its name."""
        found = (self.model_extra or {}).get(f"{metric}_ci95")
        return found if isinstance(found, tuple) else None


class Scores(Figures):
    """``loss``, every metric of every head, and confusion matrices: of the model, or a baseline."""

    confusion_masked: Confusion | None = None
    """Of the land-cover classes."""


class Against(Figures):
    """The model beside the copy on the same chips, ``NAME_ratio`` or ``NAME_gain`` of a metric."""


class GroundScores(OpenRecord):
    """Scores on some ground."""

    num_chips: Whole
    num_blocks: Whole
    model: Scores
    baselines: dict[Name, Scores]
    model_against_nearest_visible: Against = Against()


class SplitScores(GroundScores):
    """Scores on a split, and on every region of it."""

    per_roi: dict[Text, GroundScores] = Field(default_factory=dict)


class Bootstrap(OpenRecord):
    """How intervals were made."""

    unit: Text = "block"
    resamples: Whole = 0
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    least_blocks: Whole | None = None


class ScoredDataset(OpenRecord):
    """What was evaluated on."""

    name: Text
    path: PathText
    fingerprint: Text


class Evaluation(Versioned):
    """The contents of ``evaluation.json``."""

    dataset: ScoredDataset
    own_dataset: bool | None = None
    chip_px: Whole | None = None
    patch_px: Whole | None = None
    mask_ratio: Number | None = None
    metrics: list[Metric] = Field(default_factory=list)
    """Of the run's heads; empty in files of earlier versions."""
    bootstrap: Bootstrap = Bootstrap()
    splits: Annotated[dict[Name, SplitScores], Field(min_length=1)]

    def with_metrics(self, declared: Sequence[Metric]) -> Evaluation:
        """Itself, with what its heads declare where a file of an earlier version does not say."""
        return self if self.metrics else self.model_copy(update={"metrics": [*declared]})


# probes.json

Budget = PositiveInt | Literal["all"]
"""Labels of every class that a probe is shown."""


class MeanScore(OpenRecord):
    """A metric: its mean over draws, and the interval where there is one, or why there is none."""

    mean: Number
    ci95: Interval
    no_interval: Text | None = None


class DrawnScore(MeanScore):
    """A metric with its value in every draw of the labels."""

    per_draw: list[Number] = Field(default_factory=list)


@dataclass(frozen=True)
class ProbeRow:
    """A row of the probe table: a probe on features. The majority class looks at no features."""

    features: Name
    probe: Name


class RowScores(OpenRecord):
    """A row's metrics with a budget."""

    features: Name
    probe: Name
    budget: Budget

    @property
    def row(self) -> ProbeRow:
        """Which row it is."""
        return ProbeRow(self.features, self.probe)

    def score(self, metric: str) -> MeanScore | None:
        """One of ``METRICS`` or the log-loss by its name; None where the probe gives no
        probabilities.
        """
        found: MeanScore | None = getattr(self, metric)
        return found


class ZoneRow(RowScores):
    """A row's metrics in one zone."""

    accuracy: MeanScore
    balanced_accuracy: MeanScore
    macro_f1: MeanScore
    log_loss: MeanScore | None = None


class ClassScores(OpenRecord):
    """How well one class is told, means over draws."""

    f1: Number
    recall: Number
    precision: Number
    support: Whole
    num_blocks: Whole


class TableRow(RowScores):
    """A row's metrics on the whole test ground, and those of every class.

    ``chosen`` is what validation chose in every draw, ``val_log_loss`` what it reached there, the
    mean over draws; ``confusion`` is summed over draws.
    """

    num_labels: list[Whole] = Field(default_factory=list)
    chosen: list[Number] | None = None
    val_log_loss: Number | None = None
    accuracy: DrawnScore
    balanced_accuracy: DrawnScore
    macro_f1: DrawnScore
    log_loss: DrawnScore | None = None
    per_class: dict[Name, ClassScores] = Field(default_factory=dict)
    confusion: Confusion | None = None


class Difference(RowScores):
    """How far the encoder lies from a row."""

    baseline: ProbeRow
    accuracy: DrawnScore
    balanced_accuracy: DrawnScore
    macro_f1: DrawnScore
    log_loss: DrawnScore | None = None


class HumbleBar(OpenRecord):
    """With a budget: the features nothing is trained for whose linear probe has the least log-loss
    on validation ground.
    """

    budget: Budget
    features: Name
    val_log_loss: Number

    @property
    def row(self) -> ProbeRow:
        """Which row of the table it is."""
        return ProbeRow(self.features, "linear")


class ZoneScores(OpenRecord):
    """Every row's metrics on a part of the test ground."""

    num_examples: Whole
    num_blocks: Whole = 0
    results: list[ZoneRow]


class Zones(OpenRecord):
    """Parts of the test ground with the largest budget, and where the encoder does worst."""

    budget: Budget | None = None
    fewest_examples: Whole = 0
    per_zone: dict[Text, ZoneScores]
    worst: Text | None

    @model_validator(mode="after")
    def _worst_is_there(self) -> Zones:
        if self.worst is not None:
            zone = self.per_zone.get(self.worst)
            if zone is None or all(each.features != "encoder" for each in zone.results):
                raise ValueError("worst is no zone with a result of the encoder")
        return self


class SplitExamples(OpenRecord):
    """How many examples a split has, and of which class.

    ``of_chips`` is the share of its chips that was looked at.
    """

    num_examples: Whole
    of_chips: Annotated[float, Field(ge=0, le=1)] = 1.0
    num_chips: Whole = 0
    num_blocks: Whole
    per_class: dict[Name, Whole] = Field(default_factory=dict)


class Examples(OpenRecord):
    """Those that probes were fitted to, chosen by, and scored on."""

    train: SplitExamples
    val: SplitExamples | None = None
    test: SplitExamples


class Level(OpenRecord):
    """Everything about patches, or about chips.

    Means over classes are over ``classes``, whatever is resampled; ``rare_classes`` are left out of
    them, with the number of test blocks that they lie in.
    """

    examples: Examples
    classes: list[Name] = Field(default_factory=list)
    rare_classes: dict[Name, Whole] = Field(default_factory=dict)
    bars: list[HumbleBar] = Field(default_factory=list)
    results: list[TableRow]
    differences: list[Difference]
    zones: Zones

    def bar(self, budget: Budget) -> HumbleBar | None:
        """The humble bar with a budget; None without validation ground."""
        return next((each for each in self.bars if each.budget == budget), None)


class ProbedDataset(OpenRecord):
    """What was probed on."""

    name: Text
    path: PathText
    fingerprint: Text
    bands: list[Name]
    labels: Text


class Most(OpenRecord):
    """What is drawn of more."""

    chips_per_split: Whole = 0
    train_examples: Whole
    nearest_examples: Whole | None = None
    val_examples: Whole = 0


class ProbeIntervals(OpenRecord):
    """How intervals were made."""

    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    resamples: Whole = 0
    least_blocks: Whole = 0
    over: Text = ""


class ProbeConditions(Versioned):
    """Under which conditions probes are fitted."""

    code_version: Text = ""
    weights_sha256: Text = ""
    pretraining_heads: dict[Name, Number]
    dataset: ProbedDataset | None = None
    own_dataset: bool
    chip_px: Whole | None = None
    patch_px: Whole | None = None
    readout: Name = "token"
    seed: int | None = None
    most: Most
    draws_per_budget: Whole
    probes: dict[Name, dict[Name, Text | list[int | float]]] = Field(default_factory=dict)
    """What every probe is, and the settings that validation chooses among."""

    intervals: ProbeIntervals = ProbeIntervals()


class Probes(ProbeConditions):
    """The contents of ``probes.json``."""

    features: dict[Name, Text]
    budgets: Annotated[list[Budget], Field(min_length=1)]
    zones: Name
    skipped: dict[Name, Text]
    levels: dict[Name, Level]

    @model_validator(mode="after")
    def _rows_are_whole(self) -> Probes:
        for name, level in self.levels.items():
            rows: dict[ProbeRow, list[Budget]] = {}
            for result in level.results:
                rows.setdefault(result.row, []).append(result.budget)
            for row, budgets in rows.items():
                if budgets != self.budgets:
                    raise ValueError(
                        f"level {name!r}: the {row.probe!r} probe of {row.features!r} has not a "
                        "result for every budget"
                    )
        return self


# ablation.json, and probes on the chips of others


class ComparedScore(OpenRecord):
    """A metric of one of several, its difference to the base, and every repeat's."""

    mean: Number
    ci95: Interval
    per_seed: list[Number]
    against_base: Number
    against_base_ci95: Interval
    no_interval: Text | None = None


class Compared(OpenRecord):
    """The metrics of one of several beside those of the base."""

    accuracy: ComparedScore
    balanced_accuracy: ComparedScore
    macro_f1: ComparedScore

    def score(self, metric: str) -> ComparedScore:
        """One of ``METRICS`` by its name."""
        found: ComparedScore = getattr(self, metric)
        return found


class AblatedDataset(OpenRecord):
    """What was trained and scored on."""

    name: Text
    fingerprint: Text


class AblationProbe(OpenRecord):
    """How many patches every probe saw."""

    num_train: Whole
    num_test: Whole
    num_blocks: Whole


class AgainstBar(OpenRecord):
    """Differences to the humble bar, whose features are named: mean over seeds, with the interval
    over seeds and ground.
    """

    features: Name
    log_loss: MeanScore | None = None
    """Missing in files of earlier versions."""
    accuracy: MeanScore
    balanced_accuracy: MeanScore
    macro_f1: MeanScore


class AblationCell(OpenRecord):
    """One combination of settings: its run folders, and what they reach."""

    name: Text
    settings: dict[Text, Any]
    runs: list[PathText]
    config: Text
    scores: Compared
    against_bar: AgainstBar | None = None


class Ablation(Versioned):
    """The contents of ``ablation.json``; ``base`` is the name of a cell."""

    code_version: Text
    dataset: AblatedDataset
    base: Text
    factors: list[Text]
    seeds: list[int]
    probe: AblationProbe
    cells: list[AblationCell]


class TaskRun(OpenRecord):
    """The run whose features were probed."""

    path: Text
    dataset: Text


class TaskChips(OpenRecord):
    """What the chips are and how they were read."""

    folder: Text
    layout: Name
    classes: list[Text]
    chips: dict[Name, Whole]
    split: Text
    bands_in_file: list[Text]
    scale: float
    offset: float
    nodata: float | None
    notes: list[Text]


class TaskEvaluation(Versioned):
    """Probes on the chips of others: scores by probe, budget and features."""

    run: TaskRun
    task: TaskChips
    resize: Name
    readout: Name = "token"
    chip_px: Whole
    overridden: dict[Name, Text]
    base: Name
    scores: dict[Name, dict[Name, dict[Name, Compared]]]


# precision.json


class Precision(OpenRecord):
    """Mean share of a class among the ``k`` nearest patches of patches of that class.

    ``chance`` is the share of the class among all patches they could have found; ``ci95`` is over
    the blocks of the asking patches, None where ``no_interval`` says why. ``neighbours`` is the
    fewest that any of them found: less than ``k`` where fewer lie on other blocks.
    """

    precision: Number
    ci95: Interval
    chance: Number
    num_queries: Whole
    num_blocks: Whole
    neighbours: Whole
    no_interval: Text | None


class Retrieval(OpenRecord):
    """The contents of ``precision.json``: precision by features and class."""

    product: Literal["precision"] = "precision"
    split: Name
    k: Whole
    seed: int
    scores: dict[Name, dict[Name, Precision]]


# provenance.json


class Provenance(OpenRecord):
    """The contents of ``provenance.json``."""

    why: Text = ""


Contents = TypeVar("Contents", bound=Record)


def read_result(kind: type[Contents], file: Path, verb: str) -> Contents:
    """What a file of a run says.

    Raises:
        RunError: it cannot be read or holds what cannot be; the remedy is to run ``verb``.
    """
    remedy = f"run `{verb}` first" if not file.exists() else f"run `{verb}` again"
    return checked(kind, read_json(file, RunError, remedy), str(file), RunError, remedy)
