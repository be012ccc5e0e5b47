"""What frozen features are worth: probes of a run, on tasks of others, and over a grid of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from bharateo.errors import ConfigError
from bharateo.verbs.arguments import (
    Budgets,
    ConfigLike,
    DatasetLike,
    KeysOfValues,
    MaybeDevice,
    MaybeDisplay,
    MaybeOutput,
    MaybeReading,
    Output,
    PathLike,
    Readout,
    RunLike,
    Settings,
    Words,
    open_config,
    open_dataset,
    open_run,
)
from bharateo.verbs.pipeline import to_score

if TYPE_CHECKING:
    from bharateo.results import Ablation, Probes, Retrieval, TaskEvaluation


def probe(
    run: RunLike,
    dataset: DatasetLike | None = None,
    output: MaybeOutput = None,
    *,
    levels: Words = ("patch", "chip"),
    budgets: Budgets = (5, 20, 100, "all"),
    features: Words | None = None,
    zones: PathLike | None = None,
    zone_field: str | None = None,
    seed: int = 0,
    readout: Readout = "token",
    bands: Annotated[str | None, Parameter(metavar="SET")] = None,
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> Probes:
    """What a run's frozen features are worth, for few labels and for many.

    Classifies patches and chips of the test ground by probes of the run's features, beside the
    same probes of band statistics, random convolutions and the same encoder with random weights,
    a random forest and the majority class. Writes RUN/probes.json, which `bharateo report` shows.

      bharateo probe runs/v0
      bharateo probe runs/v0 --levels patch --budgets 20 all
      bharateo probe runs/v0 --zones districts.geojson --zone-field name
      bharateo probe runs/v0 --dataset datasets/elsewhere --output elsewhere.json
      bharateo probe runs/any-bands --bands rgb --output rgb.json

    Args:
        run: a folder made by pretrain
        dataset: probe on this dataset instead of the run's own
        output: the JSON file to write (default: RUN/probes.json; needed with --dataset)
        levels: patch, chip or both
        budgets: labels a class, `all`: as many as there are
        features: of encoder, random_encoder, band_statistics, random_convolutions, log_energies
            and the last three with _context (default: all)
        zones: polygons (GeoJSON, GeoPackage) to score one by one (default: the dataset's zones,
            else its regions, else its blocks)
        zone_field: the column with the zones' names
        seed: of the labels, filters and weights drawn
        readout: of the encoder's vectors; views: the mean over a chip's eight flips and turns, each
            a quarter of a patch aside, which takes eight times as long; views+energies: beside it
            the same mean of the energies that the encoder was given
        bands: show the run, and all that is beside it, one of its sets of bands alone (see
            `model.band_sets`; default: all bands, or the largest set that the dataset holds)

    Returns:
        What the file holds.

    Raises:
        ConfigError: a level or a kind of features does not exist, or another dataset or a set of
            bands is given without ``output``.
        ContractError: the dataset breaks the run's contract, or has no train or no test chips.
        RegionError: ``zones`` holds no polygons, or no such column.
    """
    from bharateo.display import Display
    from bharateo.evaluation import probe_table
    from bharateo.evaluation.features import MAKERS
    from bharateo.evaluation.probing import parse_budget, probe_run
    from bharateo.evaluation.zones import Zoning

    counts = [parse_budget(str(each)) for each in budgets]
    if bands is not None and output is None:
        raise ConfigError(
            "a set of bands (--bands) needs a file to write, so that the figures of all bands are "
            f"not replaced: --output {bands}.json"
        )
    opened, ground, output = to_score("probe", run, dataset, output, "probes.json", device)
    opened, ground = opened.meeting(ground, bands)
    display = display or Display()
    zoning = Zoning.of(ground, None if zones is None else Path(zones), zone_field)
    if opened.band_set is not None:
        display.say(f"bands: {ground.path} is read in {opened.bands_read}")
    with display.bar("probe") as bar:
        record = probe_run(
            opened, ground, output, levels=levels, budgets=counts,
            features=tuple(MAKERS) if features is None else features, zoning=zoning, seed=seed,
            readout=readout, on_step=bar.update,
        )  # fmt: skip
    for level, why in record.skipped.items():
        display.say(f"no {level} is probed: {why}")
    for title, header, rows in probe_table.text_tables(record):
        display.columns(header, rows, title)
    for sentence in probe_table.sentences(record):
        display.say(sentence)
    display.say(f"probes: {output}")
    return record


def probe_task(
    run: RunLike,
    folder: PathLike,
    output: Output,
    *,
    layout: Literal["eurosat", "geobench"] | None = None,
    resize: Literal["bilinear", "none", "pad"] = "bilinear",
    readout: Readout = "token",
    split_file: PathLike | None = None,
    reading: MaybeReading = None,
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> TaskEvaluation:
    """Probe a run's frozen features on labelled chips that others made.

    Scores the features beside simpler ones, on EuroSAT's 13-band GeoTIFFs (FOLDER/CLASS/*.tif) or
    a classification task of GEO-Bench (FOLDER/*.hdf5 with default_partition.json and
    label_map.json; no pickle is opened).

      bharateo probe-task runs/v1 EuroSAT_MS --output eurosat.json
      bharateo probe-task runs/v1 classification_v1.0/m-eurosat --output m.json

    Args:
        run: a folder made by pretrain
        folder: the chips
        output: the JSON file to write
        layout: how they lie (default: as the folder looks)
        resize: chips of another size than the run's are stretched to it, left as they are, or put
            amid invalid pixels
        readout: of the encoder's vectors; views: the mean over a chip's eight flips and turns, each
            a quarter of a patch aside, which takes eight times as long; views+energies: beside it
            the same mean of the energies that the encoder was given
        split_file: who is in which split: {"train": [file names], "val": [...], "test": [...]}
            (default: GEO-Bench's partition; 60/20/20 of every class of EuroSAT)

    Returns:
        What the file holds.

    Raises:
        DatasetError: the folder is no such task, or the split does not fit it.
        ContractError: bands are missing, or the numbers are of another unit.
    """
    from bharateo.display import Display
    from bharateo.evaluation.outside import HEADER, evaluate_task, open_task, rows
    from bharateo.outputs import check_outputs, json_with

    opened, output, display = open_run(run, device), Path(output), display or Display()
    split = None if split_file is None else Path(split_file)
    inputs = [*opened.own_files, *([] if split is None else [split])]
    check_outputs("probe-task", {output: json_with("task")}, inputs)
    task, overridden = open_task(Path(folder), opened, reading, layout, split)
    counts = ", ".join(f"{count} {name}" for name, count in task.counts.items())
    display.say(f"task: {task.folder} ({len(task.classes)} classes; {counts}; {task.split})")
    if task.band_set is not None:
        display.say(f"bands: {task.folder} is read in {opened.of_set(task.band_set).bands_read}")
    for note in [*task.notes, *(f"{field}: {what}" for field, what in overridden.items())]:
        display.say(f"note: {note}")
    with display.bar("probe-task") as bar:
        record = evaluate_task(opened, task, output, resize, readout, overridden, bar.update)
    display.columns(HEADER, rows(record))
    display.say(f"evaluation: {output}")
    return record


def ablate(
    config: ConfigLike,
    dataset: DatasetLike,
    output: Output,
    *,
    vary: KeysOfValues = (),
    full: bool = False,
    seeds: int | None = None,
    quick: bool = False,
    controls: bool = False,
    targets: bool = False,
    readout: Readout = "token",
    settings: Settings = (),
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> Ablation:
    """Does WorldCover help? Train a grid, probe every run, one table.

    Trains the configuration with something changed, several seeds each, and scores the frozen
    features by a linear probe on the dataset's test ground: one table with intervals over seeds
    and blocks of ground, beside the best features that nothing is trained for. Without --vary:
    the weight of the land-cover loss (0, 0.2, 0.5), its target (mode, fraction), and the usual
    sets of bands that the dataset holds, one changed at a time. Every training is a run folder
    below OUTPUT. Kill it, run it again, ask for more cells or seeds: what is there is kept.

      bharateo ablate configs/sentinel2-10band.yaml --dataset datasets/d --output a
      bharateo ablate configs/sample.yaml --dataset datasets/sample -o a --quick
      bharateo ablate configs/v0.yaml --dataset datasets/v0 --output a \\
          --vary heads.landcover.weight=0,0.2,1 \\
          --vary model.mask_ratio=0.5,0.75 --full
      bharateo ablate configs/sample.yaml --dataset datasets/sample --output a \\
          --vary bands=rgb,B02+B03+B04+B08

    Args:
        config: a YAML file; see configs/
        dataset: a folder made by build
        output: gets a folder a cell, ablation.json and ablation.md
        vary: a key of the configuration and its values, separated by commas; repeat for several
        full: every combination, instead of one key changed at a time
        seeds: trainings of every cell (default: 3; 2 with --quick)
        quick: the smallest grid: with land-cover labels and without, two seeds, at most ten epochs
        controls: also the same network for the same arithmetic without the pretext task (labels
            alone, nothing hidden) and without labels; alone, unless --vary or --quick is given
        targets: also the same network for the same arithmetic without labels, for each thing that
            hidden patches may be asked: pixels, their correction of a smooth fill, and every kind
            of features; alone, unless --vary or --quick is given
        readout: of the runs' vectors; views: the mean over a chip's eight flips and turns, each a
            quarter of a patch aside, which takes eight times as long; views+energies: beside it
            the same mean of the energies that the encoder was given
        settings: override one key of the configuration, e.g. training.lr=0.001; repeat for
            several

    Returns:
        What ablation.json holds.

    Raises:
        ConfigError: a key or value does not exist, or no seed is asked for.
        RunError: the folder holds another ablation.
        ContractError: the dataset has no test ground.
    """
    from bharateo.display import Display
    from bharateo.evaluation import ablation
    from bharateo.evaluation.ablation import explained, header, rows

    seeds = (2 if quick else 3) if seeds is None else seeds
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: give at least 1")
    config = open_config(config, [*settings, *([f"machine.device={device}"] if device else [])])
    dataset, output, display = open_dataset(dataset), Path(output), display or Display()
    factors = ablation.default_factors(dataset)
    if quick:
        config, factors = ablation.quick(config)
    if vary:
        factors = [ablation.Factor.parse(text) for text in vary]
    num_bands = dataset.sensor.num_bands
    also = ablation.controls(config, num_bands) if controls else []
    also += ablation.targets(config, num_bands) if targets else []
    if also and not (vary or quick):
        factors = []
    cells = ablation.grid(config, dataset, factors, full, also)
    display.say(f"ablate: {len(cells)} cells x {seeds} seeds = {len(cells) * seeds} trainings")
    with display.bar("ablate") as bar:
        record = ablation.ablate(cells, dataset, output, seeds, bar.update, readout)
    display.columns(header(record.factors), rows(record))
    display.say(explained(record))
    display.say(f"table: {output / 'ablation.md'}")
    return record


def score_search(
    run: RunLike,
    dataset: DatasetLike,
    output: Output,
    *,
    count: int = 20,
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> Retrieval:
    """How often search finds the class it was asked for, on held-out ground.

    Of the patches found for patches of every class of the test split, on other ground of it: how
    many are of that class, beside the same search with band statistics, random filters and an
    untrained encoder. Writes OUTPUT/precision.json.

      bharateo score-search runs/v0 datasets/v0 --output scores

    Args:
        run: a folder made by pretrain
        dataset: a folder made by build
        output: the folder to write into
        count: places to find

    Returns:
        What the file holds, but for its mark.

    Raises:
        ConfigError: no place is asked for.
        ContractError: the dataset breaks the run's contract.
    """
    from bharateo.display import Display
    from bharateo.evaluation.retrieval import retrieval_record, retrieval_rows
    from bharateo.files import write_json
    from bharateo.outputs import check_outputs, json_of

    if count < 1:
        raise ConfigError(f"--count {count}: ask for one place at least")
    file, display = Path(output) / "precision.json", display or Display()
    check_outputs("score-search", {file: json_of("precision")}, ())
    opened, chips = open_run(run, device), open_dataset(dataset)
    with display.bar("score-search") as bar:
        record = retrieval_record(opened, chips, "test", count, on_step=bar.update)
    write_json(file, record.model_dump())
    display.say(
        f"share of the class among the {count} patches found, on other ground of the test split"
    )
    head, rows = retrieval_rows(record)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        display.say("  ".join(cells).rstrip())
    display.say(f"scores: {file}")
    return record
