"""What ``evaluation.json``, ``probes.json`` and ``provenance.json`` say, as far as it is shown.

A run's folder may come from anybody: whoever shows its scores has these forms checked first. Keys
that nobody reads may be added freely.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt, StringConstraints, model_validator

from bharateo.artefacts import Artefact, Record, checked, read_json
from bharateo.errors import RunError
from bharateo.landcover import NUM_CLASSES

EVALUATION_FILE = "evaluation.json"
PROBES_FILE = "probes.json"
PROVENANCE_FILE = "provenance.json"

Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
Whole = Annotated[int, Field(ge=0, le=2**53)]
Interval = tuple[Number, Number]
Text = Annotated[str, StringConstraints(max_length=10_000)]
Name = Annotated[str, StringConstraints(max_length=250)]
PathText = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00-\x1f]*$")]


class _Open(Record):
    """A part that may say more than is read of it."""

    model_config = ConfigDict(extra="allow")


# evaluation.json


class Metric(_Open):
    """A number that predictions are judged by: ``name`` is its key in files, ``title`` heads a
    column, ``phrase`` names it in a sentence.
    """

    name: Name
    title: Text
    better: Literal["lower", "higher"]
    meaning: Text = ""
    phrase: Text = ""
    unit: Text = ""
    """``%`` of a share, which is kept as 0 to 1; nothing where it is that of the input, or none."""
    baselines: Literal["ranked", "told", "none"] = "ranked"
    """How baselines stand beside it: on equal terms; told what the model must find out, so that
    they are shown and not ranked; without any such number."""
    against: Literal["ratio", "gain"] | None = None
    """How the model is set against the nearest-visible copy: by their ratio, their difference."""
    mean_over_classes: Literal["balanced_accuracy", "macro_f1"] | None = None
    """Taken from the head's confusion matrix."""

    def show(self, value: float) -> str:
        """A value as printed."""
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.4f}"


Unknown = tuple[Number | None, Number | None] | None
"""An interval, where there is one."""

_Row = Annotated[tuple[Whole, ...], Field(min_length=NUM_CLASSES, max_length=NUM_CLASSES)]
Confusion = Annotated[tuple[_Row, ...], Field(min_length=NUM_CLASSES, max_length=NUM_CLASSES)]


class Scores(_Open):
    """Metrics of the model or of a baseline, null where nothing was measured."""

    loss: Number | None = None
    rec_smooth_l1: Number | None = None
    esa_ce: Number | None = None
    masked_mae: Number | None = None
    masked_mae_ci95: Unknown = None
    esa_acc: Number | None = None
    esa_acc_ci95: Unknown = None
    esa_acc_masked: Number | None = None
    esa_acc_masked_ci95: Unknown = None
    esa_acc_visible: Number | None = None
    esa_acc_visible_ci95: Unknown = None
    esa_balanced_acc_masked: Number | None = None
    esa_balanced_acc_masked_ci95: Unknown = None
    esa_macro_f1_masked: Number | None = None
    esa_macro_f1_masked_ci95: Unknown = None
    confusion_masked: Confusion | None = None
    no_interval: dict[Name, Text] = Field(default_factory=dict)
    """Metrics without an interval, and why."""


class Against(_Open):
    """The model beside the copy on the same chips."""

    masked_mae_ratio: Number | None = None
    masked_mae_ratio_ci95: Interval | None = None
    esa_acc_masked_gain: Number | None = None
    esa_acc_masked_gain_ci95: Interval | None = None


class Ground(_Open):
    """Scores on some ground."""

    num_chips: Whole
    num_blocks: Whole
    model: Scores
    baselines: dict[Name, Scores]
    model_against_nearest_visible: Against = Against()


class Split(Ground):
    """Scores on a split, and on every region of it."""

    per_roi: dict[Text, Ground] = Field(default_factory=dict)


class Bootstrap(_Open):
    """How intervals were made."""

    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    unit: Text = "block"
    resamples: Whole = 0


class EvaluatedDataset(_Open):
    """What was evaluated on."""

    name: Text
    path: PathText
    fingerprint: Text


class Scored(_Open):
    """The scores in ``evaluation.json``."""

    splits: Annotated[dict[Name, Split], Field(min_length=1)]


class Evaluation(Scored):
    """The contents of ``evaluation.json``."""

    dataset: EvaluatedDataset
    bootstrap: Bootstrap = Bootstrap()


# probes.json

Budget = PositiveInt | Literal["all"]


class Score(_Open):
    """A metric: its mean over draws, and the interval where there is one."""

    mean: Number
    ci95: Interval | None
    no_interval: Text | None = None


class Who(Record):
    """A row: features, and the probe on them."""

    features: Name
    probe: Name


class Result(_Open):
    """A row's metrics with a budget."""

    features: Name
    probe: Name
    budget: Budget
    accuracy: Score
    balanced_accuracy: Score
    macro_f1: Score


class Difference(Result):
    """How far the encoder lies from a row."""

    baseline: Who


class Zone(_Open):
    """Every row's metrics on a part of the test ground."""

    num_examples: Whole
    results: tuple[Result, ...]


class Zones(_Open):
    """Parts of the test ground, and where the encoder does worst."""

    worst: Text | None
    per_zone: dict[Text, Zone]

    @model_validator(mode="after")
    def _worst_is_there(self) -> Zones:
        if self.worst is not None:
            zone = self.per_zone.get(self.worst)
            if zone is None or all(each.features != "encoder" for each in zone.results):
                raise ValueError("worst is no zone with a result of the encoder")
        return self


class TrainExamples(_Open):
    """How many examples probes were fitted to."""

    num_examples: Whole


class TestExamples(TrainExamples):
    """How many examples probes were scored on."""

    num_blocks: Whole


class Examples(_Open):
    """How many examples there were."""

    train: TrainExamples
    test: TestExamples


class Results(_Open):
    """Every row's metrics with every budget."""

    results: tuple[Result, ...]


class Probed(_Open):
    """The scores in ``probes.json``."""

    levels: dict[Name, Results]


class Level(Results):
    """Everything about patches, or about chips."""

    examples: Examples
    differences: tuple[Difference, ...]
    zones: Zones


class Most(_Open):
    """What is drawn of more."""

    train_examples: Whole


class Probes(_Open):
    """The contents of ``probes.json``."""

    own_dataset: bool
    pretraining_heads: dict[Name, Number]
    most: Most
    draws_per_budget: Whole
    features: dict[Name, Text]
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)]
    zones: Name
    skipped: dict[Name, Text]
    levels: dict[Name, Level]

    @model_validator(mode="after")
    def _rows_are_whole(self) -> Probes:
        for name, level in self.levels.items():
            rows: dict[tuple[str, str], list[Any]] = {}
            for result in level.results:
                rows.setdefault((result.features, result.probe), []).append(result.budget)
            for (features, probe), budgets in rows.items():
                if budgets != [*self.budgets]:
                    raise ValueError(
                        f"level {name!r}: the {probe!r} probe of {features!r} has not a result "
                        "for every budget"
                    )
        return self


class Provenance(_Open):
    """The contents of ``provenance.json``."""

    why: Text = ""


def read_result(kind: type[Artefact], file: Path, verb: str) -> dict[str, Any]:
    """The plain values in a file of a run, checked to be of this kind.

    Raises:
        RunError: it cannot be read or holds what cannot be; the remedy is to run ``verb``.
    """
    remedy = f"run `{verb}` first" if not file.exists() else f"run `{verb}` again"
    plain = read_json(file, RunError, remedy)
    checked(kind, plain, str(file), RunError, remedy)
    found: dict[str, Any] = plain
    return found
