"""Maps at the pixel from many labels: a dense head on a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bharateo.verbs.arguments import (
    Location,
    MaybeDevice,
    MaybeDisplay,
    Output,
    RunLike,
    Words,
    open_run,
)

if TYPE_CHECKING:
    from bharateo.inference.dense import FineTuned


def finetune(
    run: RunLike,
    labels: Location,
    output: Output,
    *,
    classes: Words = (),
    class_field: str | None = None,
    truth: Annotated[Location | None, Parameter(metavar="LABELS")] = None,
    steps: Annotated[int, Parameter(metavar="N")] = 600,
    squares: Annotated[int | None, Parameter(metavar="N")] = None,
    unfreeze: bool = False,
    quick: bool = False,
    seed: int = 0,
    device: MaybeDevice = None,
    display: MaybeDisplay = None,
) -> FineTuned:
    """Many labels into a head that maps every pixel, on a run.

    Trains a dense head on the dataset of a run: convolutions at full resolution, which the run's
    encoder tells what is around. Weights are chosen on the val split, and everything is scored on
    the test split, beside a random forest on bands and their neighbourhood and a U-Net from
    scratch, which are given the same labels and the same processor time. Killed and run again, it
    goes on where it stopped.

      bharateo finetune runs/v0 --labels worldcover --output dense
      bharateo finetune runs/v0 --labels crops.tif -o crops --classes 1=rice 2=wheat
      bharateo finetune runs/v0 --labels fields.gpkg --class-field crop -o crops
      bharateo map crops district.tif --output crops.tif

    What it makes is a run, which map takes as RUN. Some hundred labelled pixels a class, spread
    over the splits, are a start; with a handful of points take teach.

    Args:
        run: a folder made by pretrain, whose dataset is still there
        labels: `worldcover` for the labels that the dataset holds; a raster of classes, of any
            grid; or polygons or points (GeoPackage, GeoJSON, Shapefile, FlatGeobuf, .csv). What is
            not labelled is not asked for
        output: the folder to make or to go on with
        classes: classes to learn: names, or CODE=NAME for codes of a raster (default: all)
        class_field: of polygons or points, the field with the classes (default: class, label,
            name or the like)
        truth: better labels, in any of the same forms, of the test ground to score by; the labels
            themselves are then scored as well
        steps: steps of 16 chips
        squares: take so many of the labelled squares of the train split, drawn by the seed
            (default: all)
        unfreeze: train the encoder too, at a tenth of the head's rate
        quick: leave out the random forest and the U-Net, which take twice as long as the head
        seed: of all that is drawn

    Returns:
        What finetune.json holds.

    Raises:
        ConfigError: the labels do not do, or ``output`` holds something else.
        DatasetError: the run's dataset has gone.
        RunError: the run's files are damaged.
        SourceError: the labels cannot be read.
    """
    from bharateo.display import Display
    from bharateo.evaluation.finetune import Asked, finetune_run, lines
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    opened, output, display = open_run(run, device), Path(output), display or Display()
    asked = Asked(
        str(labels), tuple(classes), class_field, None if truth is None else str(truth), steps,
        squares, unfreeze, not quick, seed,
    )  # fmt: skip
    with display.bar("finetune") as bar:
        record = finetune_run(opened, asked, output, bar.update, display.say)
    for line in lines(record):
        display.say(line)
    display.say(f"dense head: {output}; map with it: bharateo map {output} RASTER --output MAP.tif")
    return record
