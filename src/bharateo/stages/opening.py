"""What stages take: runs and datasets open or as their folders, one path or several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bharateo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bharateo.chips.store import Dataset
    from bharateo.training.run import Run

    Paths = str | Path | Sequence[str | Path]
    """One path or several."""


def open_run(run: Run | str | Path) -> Run:
    """A run, opened if it is a folder."""
    from bharateo.training.run import Run

    return run if isinstance(run, Run) else Run.open(run)


def open_dataset(dataset: Dataset | str | Path) -> Dataset:
    """A dataset, opened if it is a folder."""
    from bharateo.chips.store import Dataset

    return dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)


def list_of_paths(paths: Paths) -> list[Path]:
    """One path or several as a list."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def to_score(
    run: Run | str | Path,
    dataset: Dataset | str | Path | None,
    output: str | Path | None,
    name: str,
) -> tuple[Run, Dataset, Path]:
    """A run, the ground to score it on and the file to write, which by default are its own.

    Raises:
        ConfigError: figures of other ground would replace the run's own, or ``output`` is
            something else than such figures.
    """
    from bharateo.outputs import check_outputs, json_with

    opened = open_run(run)
    if output is not None:
        output = Path(output)
    elif dataset is None:
        output = opened.path / name
    else:
        raise ConfigError(
            "a dataset (--dataset) needs a file to write (--output FILE), so that the run's own "
            "figures are not replaced by those of other ground"
        )
    figures = {"evaluation.json": "splits", "probes.json": "levels"}
    check_outputs("evaluate", {output: json_with(figures[name])}, opened.own_files)
    return opened, opened.own_dataset() if dataset is None else open_dataset(dataset), output
