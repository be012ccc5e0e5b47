"""What frozen features are worth: probes of a run, on tasks of others, and over a grid of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bharateo.config import Config
from bharateo.display import Display
from bharateo.errors import ConfigError
from bharateo.stages.opening import open_dataset, open_run, to_score

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from bharateo.chips.store import Dataset
    from bharateo.evaluation.outside import Resize
    from bharateo.inference.inputs import Reading
    from bharateo.results import Ablation, Probes, TaskEvaluation
    from bharateo.training.run import Run


def evaluate_task(
    run: Run | str | Path,
    folder: str | Path,
    output: str | Path,
    *,
    layout: str | None = None,
    resize: Resize = "bilinear",
    split_file: str | Path | None = None,
    reading: Reading | None = None,
    display: Display | None = None,
) -> TaskEvaluation:
    """Scores of probes of a run's features on labelled chips that others made, as in ``output``.

    ``layout`` (``eurosat`` or ``geobench``; else as the folder looks) says how the chips lie;
    chips of another size are stretched (``bilinear``) or put amid invalid pixels (``pad``).

    Raises:
        DatasetError: the folder is no such task, or the split does not fit it.
        ContractError: bands are missing, or the numbers are of another unit.
    """
    from bharateo.evaluation.outside import HEADER, open_task, rows
    from bharateo.evaluation.outside import evaluate_task as score
    from bharateo.outputs import check_outputs, json_with

    opened, display = open_run(run), display or Display()
    inputs = [*opened.own_files, *([] if split_file is None else [split_file])]
    check_outputs("evaluate --task", {Path(output): json_with("task")}, inputs)
    split = None if split_file is None else Path(split_file)
    task, overridden = open_task(Path(folder), opened, reading, layout, split)
    counts = ", ".join(f"{count} {split}" for split, count in task.counts.items())
    display.say(f"task: {task.folder} ({len(task.classes)} classes; {counts}; {task.split})")
    for note in [*task.notes, *(f"{field}: {what}" for field, what in overridden.items())]:
        display.say(f"note: {note}")
    with display.bar("evaluate") as bar:
        record = score(opened, task, Path(output), resize, overridden, bar.update)
    display.columns(HEADER, rows(record))
    display.say(f"evaluation: {output}")
    return record


def probe(
    run: Run | str | Path,
    dataset: Dataset | str | Path | None = None,
    output: str | Path | None = None,
    *,
    levels: Sequence[str] = ("patch", "chip"),
    budgets: Sequence[int | Literal["all"]] = (5, 20, 100, "all"),
    features: Sequence[str] | None = None,
    zones: str | Path | None = None,
    zone_field: str | None = None,
    seed: int = 0,
    display: Display | None = None,
) -> Probes:
    """Scores of probes of a run's frozen features, beside simpler features, as in ``output``.

    Without ``dataset`` the run's own, without ``output`` the run's ``probes.json``. ``budgets``
    are labels a class; ``features`` are kinds of features (None: all there are); ``zones`` is a
    file of polygons to score one by one, named by its column ``zone_field``.

    Raises:
        ConfigError: a level or a kind of features does not exist, or another dataset is given
            without ``output``.
        ContractError: the dataset breaks the run's contract, or has no train or no test chips.
        RegionError: ``zones`` holds no polygons, or no such column.
    """
    from bharateo.evaluation import probe_table
    from bharateo.evaluation.features import MAKERS
    from bharateo.evaluation.probing import probe_run
    from bharateo.evaluation.zones import Zoning

    opened, ground, output = to_score(run, dataset, output, "probes.json")
    display = display or Display()
    zoning = Zoning.of(ground, None if zones is None else Path(zones), zone_field)
    with display.bar("probe") as bar:
        record = probe_run(
            opened, ground, output, levels=levels, budgets=budgets,
            features=tuple(MAKERS) if features is None else features, zoning=zoning, seed=seed,
            on_step=bar.update,
        )  # fmt: skip
    for level, why in record.skipped.items():
        display.say(f"no {level} is probed: {why}")
    for title, header, rows in probe_table.text_tables(record):
        display.columns(header, rows, title)
    for sentence in probe_table.sentences(record):
        display.say(sentence)
    display.say(f"probes: {output}")
    return record


def ablate(
    config: Config,
    dataset: Dataset | str | Path,
    output: str | Path,
    *,
    vary: Sequence[str] = (),
    full: bool = False,
    seeds: int | None = None,
    quick: bool = False,
    display: Display | None = None,
) -> Ablation:
    """The table of a grid of trainings, each with something of the configuration changed.

    ``vary`` are texts ``KEY=VALUE,VALUE`` (none: the land-cover loss and the bands), changed one
    at a time or in every combination (``full``), with 3 ``seeds`` each. ``quick`` is the smallest
    grid: with land-cover labels and without, 2 seeds, at most ten epochs.

    Raises:
        ConfigError: a key or value does not exist, or no seed is asked for.
        RunError: the folder holds another ablation.
        ContractError: the dataset has no test ground.
    """
    from bharateo.evaluation import ablation
    from bharateo.evaluation.ablation import explained, header, rows

    seeds = (2 if quick else 3) if seeds is None else seeds
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: give at least 1")
    dataset, output, display = open_dataset(dataset), Path(output), display or Display()
    factors = ablation.default_factors(dataset)
    if quick:
        config, factors = ablation.quick(config)
    if vary:
        factors = [ablation.Factor.parse(text) for text in vary]
    cells = ablation.grid(config, dataset, factors, full)
    display.say(f"ablate: {len(cells)} cells x {seeds} seeds = {len(cells) * seeds} trainings")
    with display.bar("ablate") as bar:
        record = ablation.ablate(cells, dataset, output, seeds, bar.update)
    display.columns(header(record.factors), rows(record))
    display.say(explained(record))
    display.say(f"table: {output / 'ablation.md'}")
    return record
