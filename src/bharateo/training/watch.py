"""What a run tells while it trains: ``history.jsonl``, ``events.jsonl``, TensorBoard."""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from bharateo.artefacts import Record, checked, parse_json
from bharateo.config import HeadConfig
from bharateo.errors import ConfigError, RunError
from bharateo.files import read_bytes, write_text
from bharateo.models.objective import weighted_loss

SPIKES: Mapping[str, float] = {"loss": 1.5, "grad_norm": 5.0}
"""How many times its usual value makes a spike; usual is the median of the last steps."""

_USUAL_OVER = 100
_USUAL_AFTER = 20


@dataclass
class MetricSums:
    """Metrics as sums and counts, so that means over batches and ranks have no bias."""

    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """Add a batch's sums."""
        for name, (total, count) in sums.items():
            so_far = self.sums.setdefault(name, [0.0, 0.0])
            so_far[0] += total
            so_far[1] += count

    def means(self, heads: Mapping[str, HeadConfig]) -> dict[str, float]:
        """Mean of every metric, and ``loss``, the weighted sum of the heads' losses, first."""
        means = {name: total / max(count, 1) for name, (total, count) in self.sums.items()}
        return {"loss": weighted_loss(means, heads), **means} if means else {}


@dataclass(frozen=True)
class StepRecord:
    """A step's numbers, those of all ranks: ``sums`` are metric -> (sum, count)."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    sums: Mapping[str, tuple[float, float]]


class SpikeWatch:
    """Notices losses and gradients far above what is usual."""

    def __init__(self) -> None:
        self._last: dict[str, deque[float]] = {name: deque(maxlen=_USUAL_OVER) for name in SPIKES}

    def look(self, record: StepRecord) -> list[dict[str, Any]]:
        """The spikes of a step: which number, its value, and the usual one."""
        found = []
        for name, times in SPIKES.items():
            value, last = getattr(record, name), self._last[name]
            usual = statistics.median(last) if len(last) >= _USUAL_AFTER else value
            if value > times * usual:
                found.append({"step": record.step, "spike": name, "value": value, "usual": usual})
            last.append(value)
        return found


class Log:
    """The lines of a run's file, replaced as a whole whenever one is added."""

    def __init__(self, path: Path, keep: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path, self.rows = path, [dict(row) for row in keep]

    def add(self, row: Mapping[str, Any]) -> None:
        """One more line."""
        self.rows.append(dict(row))
        write_text(self.path, "".join(json.dumps(each) + "\n" for each in self.rows))


Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
Whole = Annotated[int, Field(ge=0, le=2**53)]


class Epoch(Record):
    """A line of ``history.jsonl``: the epoch, from 1, and numbers by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number | None]

    epoch: Whole


class Event(Record):
    """A line of ``events.jsonl``: the step, and what happened there."""

    model_config = ConfigDict(extra="allow")

    step: Whole


def read_rows(path: Path, kind: type[Epoch | Event]) -> list[dict[str, Any]]:
    """The lines of a ``.jsonl`` file, plain; none where there is no file.

    Raises:
        RunError: the file cannot be read, or a line is not of this kind.
    """
    remedy = "restore the file, or delete it: training goes on without it"
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            where = f"{path}, line {number}"
            row = parse_json(line, where, RunError, remedy)
            checked(kind, row, where, RunError, remedy)
            rows.append(row)
    return rows


class TensorBoard:
    """Scalars for TensorBoard, or for nobody.

    Raises:
        ConfigError: it was asked for and is not installed.
    """

    def __init__(self, folder: Path | None, first_step: int) -> None:
        self._writer = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"machine.tensorboard is true, but TensorBoard cannot be used ({error}): "
                "pip install bharateo[tensorboard], or leave it out: history.jsonl holds the same"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """The scalars of a step."""
        if self._writer:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Everything to disk."""
        if self._writer:
            self._writer.close()
