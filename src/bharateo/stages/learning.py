"""From pixels to a run and its report: build, pretrain, evaluate, report; and what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bharateo.config import Config, DataConfig, section_to_yaml
from bharateo.display import Display
from bharateo.errors import ConfigError
from bharateo.stages.opening import open_dataset, to_score

if TYPE_CHECKING:
    from bharateo.accounting import Accounting
    from bharateo.chips.store import Dataset
    from bharateo.chips.workers import Workers
    from bharateo.results import Evaluation, Scores
    from bharateo.sources import Recipe
    from bharateo.training.planning import Plan, Request, Timing
    from bharateo.training.run import Run


def open_recipe(data: DataConfig, display: Display) -> Recipe:
    """The source named in the configuration, on its ROIs."""
    from bharateo import sources

    return sources.open_recipe(data, display.say)


def build(
    config: Config,
    output: str | Path,
    display: Display | None = None,
    workers: Workers | None = None,
) -> Dataset:
    """The dataset of a configuration's ``data`` section, built in the folder ``output``.

    Raises:
        ConfigError, RegionError: a place or plan is impossible.
        SourceError: pixels cannot be had.
        BuildError: too many reads failed.
        DatasetError: the folder holds another plan's dataset.
        StorageError: the disk is full.
    """
    from bharateo.chips.build import build as build_chips
    from bharateo.memory import return_freed_memory

    return_freed_memory()
    output, display = Path(output), display or Display()
    recipe = open_recipe(config.data, display)
    with display.bar("build") as bar:
        dataset = build_chips(
            recipe, config.data.plan, output, config.data.seed, bar.update, workers, display.say,
            # A training's configuration has a ``data`` section too, which need not be this one.
            recipe_text=section_to_yaml(config, "data"),
        )  # fmt: skip
    splits = ", ".join(f"{count} {name}" for name, count in dataset.info["splits"].items())
    display.say(f"dataset: {output} ({splits} squares of {dataset.size_px} px)")
    for warning in dataset.info["warnings"]:
        display.say(f"warning: {warning}")
    if failed := dataset.info["failed"]:
        display.say(
            f"warning: {len(failed)} reads failed for good and are left out (see 'failed' in "
            f"{output / 'dataset.json'}); the first: {failed[0]['reason']}"
        )
    return dataset


def dry_run(config: Config, display: Display, mbit: float, num_cores: int) -> None:
    """Print what a build would take at ``mbit`` Mbit/s, without reading a pixel of the image."""
    from bharateo.chips.budget import budget
    from bharateo.chips.build import coarse_look
    from bharateo.chips.layouts import LAYOUTS, lay_out
    from bharateo.errors import UnreachableError

    recipe, plan, seed = open_recipe(config.data, display), config.data.plan, config.data.seed
    if LAYOUTS[plan.strategy].by_pixels:
        raise ConfigError(
            f"plan.strategy {plan.strategy!r} chooses its chips by looking at the pixels, so there "
            "is nothing to print beforehand: --dry-run is for the strategies blocks and files"
        )
    look, occasions = coarse_look(recipe, plan), recipe.image.occasion_names
    try:
        layout = lay_out(recipe.regions, plan, seed, occasions, look)
    except UnreachableError as error:
        display.say(
            "The labels' overviews cannot be seen, so all ground is taken for land and classes "
            f"are not balanced: {str(error).split(';')[0]}."
        )
        layout = lay_out(recipe.regions, plan, seed, occasions)
    display.table("what the build will take", budget(recipe, layout).rows(mbit, num_cores))


def pretrain(
    config: Config,
    dataset: Dataset | str | Path,
    output: str | Path,
    display: Display | None = None,
) -> Run:
    """A run in the folder ``output``: a configuration's model, trained on a dataset's train split.

    Raises:
        ConfigError: a key does not fit the dataset.
        RunError: the folder holds another configuration's run.
        DivergedError: a loss is no number.
        Stopped: by Ctrl-C or SIGTERM, with a checkpoint.
        StorageError: the disk is full.
    """
    from bharateo.training.loop import pretrain as train

    dataset, output, display = open_dataset(dataset), Path(output), display or Display()
    with display.bar("pretrain") as bar:
        run = train(dataset, config, output, bar.update, display.say)
    display.say(f"run: {output} ({run.contract.num_parameters / 1e6:.2f} M parameters)")
    return run


def evaluate(
    run: Run | str | Path,
    dataset: Dataset | str | Path | None = None,
    output: str | Path | None = None,
    display: Display | None = None,
) -> Evaluation:
    """Scores of what a run makes of hidden patches, beside the baselines, as in ``output``.

    Without ``dataset`` the run's own, without ``output`` the run's ``evaluation.json``.

    Raises:
        ConfigError: another dataset is given without ``output``.
        ContractError: the dataset breaks the run's contract.
    """
    from bharateo.evaluation.evaluate import evaluate as score

    opened, ground, output = to_score(run, dataset, output, "evaluation.json")
    display = display or Display()
    with display.bar("evaluate") as bar:
        record = score(opened, ground, output, bar.update)
    for split, scores in record.splits.items():
        model, copy = scores.model, scores.baselines["nearest_visible"]
        beside = (
            f"{metric.phrase or metric.title} {_beside(model, copy, metric.name)}"
            for metric in record.metrics
            if metric.against
        )
        display.say(f"{split}: {', '.join(beside)}")
    display.say(f"evaluation: {output}")
    return record


def _beside(model: Scores, copy: Scores, metric: str) -> str:
    def shown(value: float | None) -> str:
        return "nothing to measure" if value is None else f"{value:.4f}"

    return f"{shown(model.value(metric))} (nearest visible token {shown(copy.value(metric))})"


def write_report(run: Run | str | Path, display: Display | None = None) -> Path:
    """The path of the report of a run, which is evaluated first if that has not been done.

    Raises:
        RunError: the folder holds no finished run.
        DatasetError: the evaluated dataset has gone.
    """
    from bharateo.report import write_report as draw

    folder = Path(run) if isinstance(run, str | Path) else run.path
    display = display or Display()
    if not (folder / "evaluation.json").exists():
        evaluate(run, display=display)
    display.say("report: drawing")
    path = draw(folder)
    display.say(f"report: {path}")
    return path


def tokens(
    run: str | Path | None = None,
    account: Accounting | None = None,
    request: Request | None = None,
    display: Display | None = None,
) -> None:
    """Print the account of a run, of given numbers, or of the two published runs.

    With a ``request`` for a plan: what its model takes for that account.

    Raises:
        RunError: the folder holds no finished run.
    """
    from bharateo.accounting import published

    bytes_per_value, display = 2, display or Display()
    if run is not None:
        from bharateo.training.contract import read_contract

        contract = read_contract(Path(run))
        bytes_per_value = 1 if contract.sensor.dtype == "uint8" else 2
        accounts = {str(run): contract.accounting}
    elif account is not None:
        accounts = {"as given": account}
    else:
        accounts = dict(published())
    for title, each in accounts.items():
        if request is None:
            display.table(title, each.rows())
        else:
            plan = request.plan(each, bytes_per_value)
            measured = _measured(plan, display).rows() if request.machine == "this" else ()
            display.table(f"{title}, {request.size} model", (*plan.rows(), *measured))


def _measured(plan: Plan, display: Display) -> Timing:
    """A plan carried out by this machine."""
    from bharateo.training.engine import open_engine
    from bharateo.training.planning import Timing, measure

    display.say("Measuring this machine: a few seconds, or five steps where those take longer.")
    with open_engine(plan.config) as engine:
        timing = Timing(plan, measure(plan, engine))
    machine, peak = timing.machine, timing.machine.peak[timing.precision]
    display.say(
        f"Measured: {timing.chips_per_s / plan.num_machines:,.4g} chips/s in batches of "
        f"{plan.config.training.batch_size:,}, {machine.share * peak / 1e9:,.4g} GFLOP/s, "
        f"{100 * machine.share:.3g} % of the {peak / 1e9:,.4g} GFLOP/s that a large "
        f"{timing.precision} product reaches."
    )
    if machine.watts is None and plan.watts is None:
        display.say("Its power is not known: add --watts W for energy and CO2.")
    return timing
