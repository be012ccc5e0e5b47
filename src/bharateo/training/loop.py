"""The training loop: from a dataset and a configuration to a run."""

from __future__ import annotations

import math
import signal
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from bharateo.accounting import Accounting
from bharateo.chips.store import Dataset
from bharateo.config import Config, HeadConfig, differences, to_record
from bharateo.errors import ConfigError, ContractError, DivergedError, RunError, Stopped
from bharateo.files import remove_leftovers, write_json, write_text
from bharateo.models.heads import HEADS, Batch, build_heads
from bharateo.models.mae import build_model
from bharateo.models.objective import Objective, weighted_loss
from bharateo.models.patches import Mask
from bharateo.outputs import free_name
from bharateo.plain_yaml import read_yaml, write_yaml
from bharateo.progress import Progress, unseen
from bharateo.sensor import named_bands
from bharateo.training.contract import (
    BEST_FILE,
    CHECKPOINT_FILE,
    CONFIG_FILE,
    CONTRACT_FILE,
    DIVERGED_FILE,
    EVENTS_FILE,
    HISTORY_FILE,
    TENSORBOARD_FOLDER,
    Epoch,
    Event,
    Log,
    read_rows,
)
from bharateo.training.data import (
    RawBatch,
    fixed_batch,
    fixed_batches,
    fixed_windows,
    training_chips,
)
from bharateo.training.engine import Engine, Launched, Learner, open_engine
from bharateo.training.loader import Loader, read_ahead
from bharateo.training.optimisers import learning_rate
from bharateo.training.planning import AFTER_STEPS, Forecast
from bharateo.training.run import (
    BestEpoch,
    Checkpoint,
    Run,
    dataset_fingerprint,
    load_best,
    load_checkpoint,
    make_contract,
    model_statistics,
    restore_training_state,
    save_best,
    save_checkpoint,
    save_run,
    training_state,
)

FITTED_CHIPS = 64
"""Training chips that what training does not move is fitted to, and targets are looked at."""

CHECKPOINT_SHARE = 0.02
"""Share of the time that writing checkpoints may take."""


def pretrain(
    dataset: Dataset,
    config: Config,
    run: Path,
    progress: Progress = unseen,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Train a model on the train split and return the finished run.

    Goes on from the run's checkpoint if there is one; a finished run of the same configuration
    is returned as it is. The weights depend on dataset, configuration and machine alone, not on
    how often training was interrupted. Under ``torchrun`` all ranks call it, and all must see
    the run's folder; ``progress`` (after every step) and ``say`` are called on each.

    Raises:
        RunError: the folder holds another configuration's run.
        ConfigError, ContractError: the configuration does not fit the dataset or the machine.
        DivergedError: a loss or gradient is no number; the chips are in ``diverged.json``.
        RankLostError: another rank has gone.
        Stopped: SIGTERM or Ctrl-C; the checkpoint holds everything done.
        StorageError: the disk is full; the last checkpoint stays.
    """
    if config.training.bands:
        dataset = dataset.with_bands(named_bands(config.training.bands))
    with open_engine(config) as engine, engine.noticing_lost_ranks():

        def finished() -> bool:
            check_fit(config, dataset, engine.num_ranks)
            take_folder(run, config, dataset)
            return (run / CONTRACT_FILE).exists()

        if not engine.by_first(finished):
            trainer = Trainer(dataset, config, run, engine)
            trainer.train(progress, say)
            trainer.finish_run(say)
    return Run.open(run)


def check_fit(config: Config, dataset: Dataset, num_ranks: int = 1) -> None:
    """Refuse a configuration that does not fit the dataset's squares, or the ranks."""
    training, model = config.training, config.model
    for name in ("epochs", "batch_size", "lr", "chips_per_epoch", "masks_per_chip",
                 "shuffle_window", "lanes"):  # fmt: skip
        value = getattr(training, name)
        if value is not None and value <= 0:
            raise ConfigError(f"training.{name} must be more than 0, got {value}")
    micro, prefetch = config.machine.micro_batch, config.machine.prefetch
    if micro is not None and micro <= 0:
        raise ConfigError(f"machine.micro_batch must be more than 0, got {micro}")
    if prefetch < 0:
        raise ConfigError(f"machine.prefetch must be 0 or more, got {prefetch}")
    if training.batch_size < num_ranks:
        raise ConfigError(
            f"training.batch_size {training.batch_size} is less than the {num_ranks} ranks: start "
            "fewer, or raise it"
        )
    if training.batch_size % training.masks_per_chip:
        raise ConfigError(
            f"training.batch_size {training.batch_size} is not a multiple of "
            f"training.masks_per_chip {training.masks_per_chip}: a batch holds all masks of a chip"
        )
    if training.schedule == "cosine" and training.warmup_epochs > training.epochs:
        raise ConfigError(
            f"training.warmup_epochs {training.warmup_epochs:g} is more than training.epochs "
            f"{training.epochs}: the learning rate would never come to training.lr; lower the one "
            "or raise the other"
        )
    if training.jitter and not dataset.sensor.standardised:
        raise ConfigError(
            f"training.jitter {training.jitter:g}: {dataset.sensor.title} holds colours that stand "
            "for classes, which no light changes: set it to 0"
        )
    if not config.heads:
        raise ConfigError(f"heads is empty: give at least one of {', '.join(HEADS)}")
    blind = [name for name in config.heads if name in HEADS and not HEADS[name].learns_of_visible]
    if model.mask_ratio == 0 and blind:
        raise ConfigError(
            f"model.mask_ratio 0 hides no patch, and heads.{blind[0]} learns of hidden ones alone: "
            "raise it, or leave the head out"
        )
    Accounting(  # refuses sizes that make no tokens, or none to hide
        1, 1, model.chip_px, model.patch_px, dataset.sensor.num_bands, model.mask_ratio
    )
    if model.chip_px > dataset.size_px:
        raise ContractError(
            f"model.chip_px {model.chip_px} is larger than the stored squares of {dataset.path} "
            f"({dataset.size_px} px); build with a larger data.plan.size_px"
        )
    if not len(dataset.indices("train")):
        raise ContractError(f"{dataset.path} has no chip in its train split")
    of_classes = [name for name in config.heads if name in HEADS and HEADS[name].classes]
    if of_classes and not (dataset.chips["labelled_fraction"] > 0).any():
        raise ConfigError(
            f"heads.{of_classes[0]} learns from labels, and {dataset.path} holds none: leave the "
            "head out of the configuration, or build with labels"
        )
    # Refuses sizes, heads and targets that nothing comes of, before the folder is taken for them.
    built = build_model(model, *model_statistics(dataset), dataset.sensor.band_names)
    heads = build_heads(config.heads, built)
    objective = Objective(built, heads, config.heads)
    if frozen := [name for name, head in heads.by_name().items() if head.frozen]:
        some = training_chips(dataset, model, FITTED_CHIPS, training.seed)
        objective.fit(some, training.seed)
        found = objective.conditioning(some)
        for name in frozen:
            if dead := name in found and found[name].dead():
                raise ConfigError(
                    f"heads.{name}: nothing can be learned from this target on {dataset.path}: "
                    f"{dead}; choose another heads.{name}.options.target"
                )
    if training.keep == "best":
        weights = torch.tensor([*objective.weights.values()])
        val = fixed_batches(dataset, "val", model, training.batch_size)
        if not any((objective.counts(batch, mask) * weights).any() for _, batch, mask in val):
            why = "has nothing to predict" if len(dataset.indices("val")) else "is empty"
            raise ConfigError(
                f"training.keep best: the val split of {dataset.path} {why}, so no epoch is better "
                "than another; build with a larger data.plan.split.val, or set training.keep to "
                "last"
            )


def take_folder(run: Path, config: Config, dataset: Dataset) -> None:
    """Write ``config.yaml`` and the dataset's fingerprint, or check that those there agree.

    The section ``data`` that is written is that of the dataset, and none where the dataset does not
    say how it was built: the configuration's own may be of any other place.

    Raises:
        RunError: the folder holds a run of another configuration or dataset.
    """
    header = f"# dataset fingerprint: {dataset_fingerprint(dataset)}\n"
    path = run / CONFIG_FILE
    record = to_record(config)
    del record["data"]
    of_dataset = {} if dataset.recipe is None else {"data": dataset.recipe}
    text = header + write_yaml(of_dataset | record)
    if not path.exists():
        write_text(path, text)
        return
    remove_leftovers(run)
    there = differences(read_yaml(path), config)
    if not path.read_text().startswith(header):
        there = [*there, "the dataset is another one"]
    begun = (CHECKPOINT_FILE, BEST_FILE, CONTRACT_FILE, HISTORY_FILE, DIVERGED_FILE)
    if there and any((run / name).exists() for name in begun):
        raise RunError(
            f"{run} holds another run: {'; '.join(there)}. Delete the folder to start over, or "
            f"choose another: --output {free_name(run)}"
        )
    if there:  # of a training that ended before it had anything to keep
        write_text(path, text)


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


@dataclass(frozen=True)
class Pace:
    """How fast training goes; ``data_wait`` is the share of the time spent waiting for data."""

    chips_per_s: float
    data_wait: float
    seconds_left: float


class SpikeWatch:
    """Notices losses and gradients far above what is usual."""

    def __init__(self) -> None:
        self._last: defaultdict[tuple[str, str | None], deque[float]] = defaultdict(
            lambda: deque(maxlen=_USUAL_OVER)
        )

    def look(self, record: StepRecord, band_set: str | None) -> list[dict[str, Any]]:
        """The spikes of a step: which number, its value, and what is usual where the same set of
        bands is shown.
        """
        found = []
        for name, times in SPIKES.items():
            value, last = getattr(record, name), self._last[name, band_set]
            usual = statistics.median(last) if len(last) >= _USUAL_AFTER else value
            if value > times * usual:
                found.append({"step": record.step, "spike": name, "value": value, "usual": usual})
            last.append(value)
        return found


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


class StopWish:
    """While entered, notes SIGTERM and SIGINT in ``signal`` instead of ending the program.

    A second Ctrl-C ends it at once. Outside the main thread, where Python allows no handlers,
    it does nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopWish:
        if threading.current_thread() is threading.main_thread():
            for each in (signal.SIGTERM, signal.SIGINT):
                self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@dataclass
class Clock:
    """Where the time of this session went, in seconds."""

    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    saving_took: float = 0.0
    steps: int = 0

    def due(self, every: float) -> bool:
        """Whether a checkpoint is due; with 0 it always is."""
        least = every and max(every, self.saving_took / CHECKPOINT_SHARE)
        return time.monotonic() - self.saved >= least


class Trainer(Learner):
    """What learns in one run on one rank, its data, and the loop over them.

    ``sums`` are the metrics of the epoch under way; ``best`` is the best epoch so far whose weights
    lie in the run's folder, None unless they are to be kept.
    """

    def __init__(
        self, dataset: Dataset, config: Config, run: Path, engine: Engine | None = None
    ) -> None:
        torch.manual_seed(config.training.seed)
        some = training_chips(dataset, config.model, FITTED_CHIPS, config.training.seed)
        super().__init__(
            config, dataset.sensor, *model_statistics(dataset), engine or Engine(), some
        )
        self.dataset, self.run, self.sums, self.clock = dataset, run, MetricSums(), Clock()
        self.best: BestEpoch | None = None
        side_by_side = len(fixed_windows([0], dataset.size_px, config.model.chip_px))
        self.chips_per_epoch = (
            config.training.chips_per_epoch or len(dataset.indices("train")) * side_by_side
        )
        self.steps_per_epoch = math.ceil(self.chips_per_epoch / config.training.batch_size)
        self.num_steps = config.training.epochs * self.steps_per_epoch
        self.loader = Loader(
            dataset,
            config,
            self.chips_per_epoch,
            self.engine.device,
            self.engine.rank,
            self.engine.num_ranks,
        )

    def train(
        self, progress: Progress = unseen, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Every step from the checkpoint, or from the start, to the end."""
        first, engine = self.resume(), self.engine
        done = first // self.steps_per_epoch
        history = Log(self.run / HISTORY_FILE, read_rows(self.run / HISTORY_FILE, Epoch)[:done])
        events = Log(
            self.run / EVENTS_FILE,
            [r for r in read_rows(self.run / EVENTS_FILE, Event) if r["step"] < first],
        )
        wanted = self.config.machine.tensorboard and engine.first
        board = TensorBoard(self.run / TENSORBOARD_FOLDER if wanted else None, first)
        for name, found in self.conditioning.items() if first == 0 else ():
            say(f"heads.{name}, target: {found}")
        forecast = None
        if self.num_steps - first >= 3 * AFTER_STEPS:  # long enough for some seconds of measuring
            bands = self.dataset.sensor.num_bands
            forecast = Forecast(self.config, bands, self.chips_per_epoch, engine)
            say(forecast.planned())
        spikes, self.clock = SpikeWatch(), Clock()
        if engine.asynchronous:  # steps are taken before they are looked at
            self.save(first)
        waiting: list[Launched] = []
        with StopWish() as wish:
            for step, raw in self.loader.steps(first, self.num_steps):
                stop, save = self.agree(
                    wish.signal, self.clock.due(self.config.training.checkpoint_seconds)
                )
                waiting.append(self.step(step, raw))
                self.clock.steps += 1
                ended = step + 1 == self.num_steps
                epoch_ended = (step + 1) % self.steps_per_epoch == 0
                stop = 0 if ended else stop
                kept = epoch_ended or stop or save
                ready = len(waiting) - (engine.asynchronous and not kept)
                records = [self.finish(launched) for launched in waiting[:ready]]
                del waiting[:ready]
                if kept:
                    self.check_weights(step)
                notes = []
                for record in records:
                    unusual = spikes.look(record, self.band_set(record.step))
                    self.note_spikes(unusual, events, say)
                    self.sums.add({**record.sums, "grad_norm": (record.grad_norm, 1)})
                    metrics, pace = self.sums.means(self.config.heads), self.pace(record.step)
                    board.write(
                        record.step,
                        {
                            "loss": record.loss,
                            "grad_norm": record.grad_norm,
                            "lr": record.lr,
                            "chips_per_s": pace.chips_per_s,
                            "data_wait": pace.data_wait,
                        },
                    )
                    if (record.step + 1) % self.steps_per_epoch == 0:
                        self.end_epoch(history, board, record, metrics, pace)
                    notes.append((record.step + 1, self.note(record.step, metrics, pace)))
                if ended or stop or save:
                    self.save(step + 1)
                for taken, note in notes:
                    progress(taken, self.num_steps, note)
                if forecast and self.clock.steps == AFTER_STEPS:
                    say(forecast.compared(self.clock.steps, pace.data_wait))
                if stop:
                    board.close()
                    raise Stopped(
                        f"stopped after step {step + 1} of {self.num_steps}, all of them kept; "
                        "the same command goes on from there",
                        stop,
                    )
        board.close()

    def step(self, step: int, raw: RawBatch) -> Launched:
        """One optimiser step on this rank's share of the batch.

        Raises:
            DivergedError: a loss or gradient is no number; weights are as before the step.
        """
        lr = learning_rate(self.config, step, self.steps_per_epoch)
        launched = self.differentiate(step, lr, raw)
        if not self.engine.asynchronous:
            self.finish(launched)
        self.update(step)
        return launched

    def batch(self, step: int) -> tuple[Batch, Mask]:
        """What this rank's share of a step shows, out of turn."""
        return self.prepare(self.loader.load(step))

    def finish(self, launched: Launched) -> StepRecord:
        """The numbers of a step.

        Raises:
            DivergedError: one of them is no number.
        """
        loss, *sums = launched.totals.tolist()
        pairs = _by_name(launched.metrics, sums)
        record = StepRecord(launched.step, loss, launched.grad_norm.item(), launched.lr, pairs)
        for what in ("loss", "grad_norm"):
            if not math.isfinite(getattr(record, what)):
                self.diverged(record, what)
        return record

    def diverged(self, record: StepRecord, what: str) -> None:
        """Write down what is known of a step whose loss or gradient is no number, and end."""
        value, broken = getattr(record, what), []
        if self.engine.asynchronous:  # the step has been taken already
            self.resume()
        else:
            broken = self.broken()
        found = {what: str(value), "lr": record.lr, "not_finite_before": broken}
        alone = [] if broken else self.not_finite_alone(record.step)
        cause = "The chips of the step are"
        if broken:
            cause = f"Step {record.step - 1} left no numbers in {_some(broken)}; all of them are"
        elif alone:
            cause = (
                f"Chips {_some(alone)} of the dataset have no finite loss by themselves; they are"
            )
        self.give_up(record.step, f"{what} is {value} at step {record.step}", cause, found, alone)

    def check_weights(self, step: int) -> None:
        """Refuse to keep, or to judge, weights that a step has left without numbers.

        Raises:
            DivergedError: the step's loss and gradients were finite, what came of them is not.
        """
        if broken := self.broken():
            what = f"{_some(broken)} hold no numbers after step {step}"
            cause = "Its loss and gradients were finite: its update is the cause; all names are"
            self.give_up(step, what, cause, {"not_finite_after": broken}, [])

    def give_up(
        self, step: int, what: str, cause: str, told: Mapping[str, object], alone: list[int]
    ) -> None:
        """Leave word of a diverged step in the run's folder, and end."""
        found = {
            "step": step,
            **told,
            "chips_not_finite_alone": alone,
            "chips_of_the_step": sorted({*self.loader.chips(step).tolist()}),
        }
        self.engine.by_first(lambda: write_json(self.run / DIVERGED_FILE, found))
        raise DivergedError(
            f"{what}: lower training.lr (now {self.config.training.lr}) and start in another "
            f"--output. {cause} in {self.run / DIVERGED_FILE}; all else in the folder is of before"
        )

    def not_finite_alone(self, step: int) -> list[int]:
        """The chips of a step, of all ranks, that have no finite loss by themselves."""
        found = []
        with torch.no_grad(), self.engine.autocast():
            for part in self.parts(self.loader.load(step), 1):
                batch, mask = self.prepare(part)
                counts = self.objective.counts(batch, mask)
                loss, _ = self.objective(batch, mask, counts, self.band_set(step))
                if len(part) and not loss.isfinite():
                    found.append(int(batch.chip[0]))
        self.engine.reshard(self.module)
        return sorted({chip for some in self.engine.gathered(found) for chip in some})

    def agree(self, stop: int, save: bool) -> tuple[int, bool]:
        """Whether to stop (the signal's number) and whether to save, the same on all ranks."""
        if self.engine.num_ranks == 1:
            return stop, save
        wishes = torch.tensor([stop, save and self.engine.first])
        asked, due = self.engine.most(wishes).tolist()
        return asked, bool(due)

    def note_spikes(
        self, found: list[dict[str, Any]], events: Log, say: Callable[[str], None]
    ) -> None:
        """Write spikes down with their chips, and say so."""
        for each in found:
            say(
                f"step {each['step']}: {each['spike']} is {each['value']:.4g}, usually "
                f"{each['usual']:.4g} ({EVENTS_FILE})"
            )
            if self.engine.first:
                chips = self.loader.chips(each["step"]).tolist()
                events.add({**each, "chips": sorted({*chips})})

    def end_epoch(
        self,
        history: Log,
        board: TensorBoard,
        record: StepRecord,
        metrics: Mapping[str, float],
        pace: Pace,
    ) -> None:
        """The epoch's line in the history; the sums begin anew.

        Weights that are the best so far are kept before the line and the next checkpoint tell of
        their epoch: training goes on from there, or comes by again.

        Raises:
            DivergedError: the best epoch is to be kept, and this one's ``val_loss`` is no number.
        """
        epoch = record.step // self.steps_per_epoch + 1
        with self.averaged():
            val = {f"val_{name}": value for name, value in self.validate().items()}
            if self.config.training.keep == "best":
                self.keep_if_best(record.step, epoch, val["val_loss"])
        row = {
            "epoch": epoch,
            **metrics,
            "lr": record.lr,
            "chips_per_s": round(pace.chips_per_s, 1),
            "data_wait": round(pace.data_wait, 4),
            **val,
        }
        if self.engine.first:
            history.add(row)
        board.write(record.step, val)
        self.sums = MetricSums()

    def keep_if_best(self, step: int, epoch: int, val_loss: float) -> None:
        """Write the weights as they are now aside, if no epoch before had a lower ``val_loss``."""
        if not math.isfinite(val_loss):
            what = f"val_loss is {val_loss} after epoch {epoch}, so none can be said to be the best"
            cause = "The losses and weights of training were finite; the chips of its last step are"
            self.give_up(step, what, cause, {"val_loss": str(val_loss)}, [])
        if self.best and self.best.val_loss <= val_loss:
            return
        best = BestEpoch(epoch=epoch, val_loss=val_loss)
        weights = training_state(self.objective, [])
        self.engine.by_first(lambda: save_best(self.run, best, weights))
        self.best = best

    def validate(self) -> dict[str, float]:
        """Metrics of the val split on its fixed windows and masks; empty without one.

        A thread cuts the next batches meanwhile, and numbers are looked at after the last one.
        """
        config, engine = self.config, self.engine
        chips, model = self.dataset.indices("val").tolist(), config.model
        windows = fixed_windows(chips, self.dataset.size_px, model.chip_px)
        size = config.training.batch_size
        batches = [windows[start : start + size] for start in range(0, len(windows), size)]
        rounds = math.ceil(len(batches) / engine.num_ranks)
        numbers = range(engine.rank, rounds * engine.num_ranks, engine.num_ranks)
        totals, names = torch.zeros((), dtype=torch.float64, device=engine.device), ()

        def read(number: int) -> tuple[Batch, Mask]:
            batch, mask = fixed_batch(self.dataset, batches[number % len(batches)], model)
            return (batch.pinned(), mask.pinned()) if engine.asynchronous else (batch, mask)

        with closing(read_ahead(read, numbers, config.machine.prefetch)) as pairs:
            for number, (batch, mask) in zip(numbers, pairs, strict=True):
                batch, mask = batch.to(engine.device), mask.to(engine.device)
                counts = self.objective.counts(batch, mask)
                with torch.no_grad(), engine.autocast():
                    metrics = self.module(batch, mask, counts)[1]
                names = tuple(metrics)
                if number < len(batches):  # ranks take turns; shards need all of them in each
                    pair = [each.double() for pair in metrics.values() for each in pair]
                    totals = totals + torch.stack(pair)
        engine.reshard(self.module)
        whole = MetricSums()
        for sums in engine.gathered(totals.tolist() if totals.ndim else []):
            whole.add(_by_name(names, sums))
        return whole.means(config.heads)

    def pace(self, step: int) -> Pace:
        """How fast it goes, after a step."""
        seconds = time.monotonic() - self.clock.began
        steps_per_s = self.clock.steps / seconds
        return Pace(
            steps_per_s * self.config.training.batch_size,
            self.loader.wait_s / seconds,
            (self.num_steps - step - 1) / steps_per_s,
        )

    def note(self, step: int, metrics: Mapping[str, float], pace: Pace) -> str:
        """Where training stands after a step, in a few words: loss, and what heads are known by."""
        epoch, left = step // self.steps_per_epoch + 1, int(pace.seconds_left)
        heads = [
            f"{metric.phrase} {metrics[metric.name]:.4f}"
            for name in self.config.heads
            for metric in HEADS[name].metrics
            if metric.phrase and metric.name in metrics
        ]
        return "  ".join(
            [
                f"epoch {epoch}/{self.config.training.epochs}",
                f"loss {metrics['loss']:.3f}",
                *heads,
                f"{pace.chips_per_s:.0f} chips/s",
                f"{left // 60}:{left % 60:02d} left",
            ]
        )

    def save(self, step: int) -> None:
        """Replace the checkpoint by the state after ``step`` steps."""
        began = time.monotonic()
        state = training_state(self.objective, self.optimisers, self.average)
        checkpoint = Checkpoint(step, self.sums.sums, state)
        self.engine.by_first(lambda: save_checkpoint(self.run, checkpoint))
        self.clock.saved = time.monotonic()
        self.clock.saving_took = self.clock.saved - began

    def resume(self) -> int:
        """Restore the checkpoint if there is one; the steps done."""
        checkpoint = load_checkpoint(self.run)
        if checkpoint is None:
            return 0
        file = self.run / CHECKPOINT_FILE
        if checkpoint.step > self.num_steps:
            raise RunError(
                f"{file} is of step {checkpoint.step} of {self.num_steps}; delete it to train from "
                "the start"
            )
        restore_training_state(
            checkpoint.state, self.objective, self.optimisers, file, self.average
        )
        self.sums = MetricSums(checkpoint.sums)
        if self.config.training.keep == "best" and checkpoint.step >= self.steps_per_epoch:
            # Of an epoch after the checkpoint it is still the best when that epoch comes again.
            self.best = self.engine.by_first(lambda: load_best(self.run, self.objective)[0])
        return checkpoint.step

    def finish_run(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Write the run's weights and the contract that declares it complete."""
        if self.best:
            best, num_epochs = self.best, self.config.training.epochs
            say(
                f"kept: the weights after epoch {best.epoch} of {num_epochs}, whose val_loss of "
                f"{best.val_loss:.4f} is the lowest"
            )
        with self.averaged():
            last = {} if self.best else training_state(self.objective, [])

            def write() -> None:
                weights = load_best(self.run, self.objective)[1] if self.best else last
                contract = make_contract(
                    self.config,
                    self.dataset,
                    self.objective,
                    self.run,
                    self.chips_per_epoch,
                    self.best,
                )
                save_run(self.run, weights, contract)
                (self.run / BEST_FILE).unlink(missing_ok=True)

            self.engine.by_first(write)


def _by_name(names: Sequence[str], numbers: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Metric -> (sum, count), from all sums and counts in a row; nothing of none."""
    return dict(zip(names, zip(numbers[::2], numbers[1::2], strict=True), strict=False))


def _some(found: Sequence[object]) -> str:
    """The first three of a list, and how many more there are."""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(str(each) for each in found[:3]) + more
