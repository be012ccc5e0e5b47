"""Counting and planning: tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bharateo.errors import ConfigError
from bharateo.verbs.arguments import AlwaysShown, PathLike

if TYPE_CHECKING:
    from bharateo.display import Display
    from bharateo.training.planning import Plan, Timing

Size = Literal["nano", "tiny", "small", "base"]
MachineName = Literal["this", "h100", "h200", "a100", "l4", "rtx4090"]


def tokens(
    run: PathLike | None = None,
    *,
    chips: int | None = None,
    epochs: int = 1,
    bands: int = 3,
    chip_px: int = 128,
    patch_px: int = 16,
    mask_ratio: float = 0.75,
    model: Size | None = None,
    machine: MachineName | None = None,
    num_machines: int | None = None,
    watts: float | None = None,
    grid: Annotated[float | None, Parameter(metavar="KG_PER_KWH")] = None,
    masks_per_chip: int | None = None,
    batch_size: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] | None = None,
    display: AlwaysShown = None,
) -> None:
    """Count tokens, pixels and scalars of a run, and plan one.

    Counts what a run is shown and asked: tokens, pixels and scalars, each by its name. Without
    arguments: the two published runs. With RUN: a finished run, as presented. With --model also
    FLOPs and bytes; with --machine also hours, energy and its CO2.

      bharateo tokens
      bharateo tokens runs/v0
      bharateo tokens --chips 5000 --epochs 100 --bands 10 --model nano \\
          --machine this
      bharateo tokens --chips 1000000 --epochs 100 --bands 10 --model base \\
          --machine h200

    Args:
        run: a finished run's folder
        chips: chips presented in an epoch
        epochs: epochs
        bands: bands of a chip
        chip_px: side of a chip
        patch_px: side of a patch
        mask_ratio: share of tokens hidden
        model: plan this model: parameters, FLOPs, bytes
        machine: plan for this machine (measured in a few seconds) or a GPU by its data sheet, at
            an assumed 30 % of its peak: hours, energy, CO2
        num_machines: machines or GPUs (default: 1)
        watts: power of one machine (default: its data sheet's; 15 W a core for this one)
        grid: CO2 of a kWh (default: 0.727, India in FY 2023-24)
        masks_per_chip: presentations of every chip read, each with its own mask (default: 1)
        batch_size: chips of a step (default: 64)
        precision: of the matrix products (default: auto, bf16 where the machine has it)

    Raises:
        ConfigError: a number cannot be counted with, or an option would have no effect.
        RunError: the folder holds no finished run.
    """
    from bharateo.accounting import Accounting, published
    from bharateo.config import SIZES, TrainingConfig
    from bharateo.display import Display
    from bharateo.training.planning import MACHINES, THIS, PlanRequest

    training: dict[str, Any] = {
        "masks_per_chip": masks_per_chip,
        "batch_size": batch_size,
        "precision": precision,
    }
    power: dict[str, Any] = {"num_machines": num_machines, "watts": watts, "grid": grid}
    for given, needs, there, choices in (
        ({"machine": machine, **training}, "model", model, SIZES),
        (power, "machine", machine, (THIS, *MACHINES)),
    ):
        for name, value in given.items():
            if value is not None and there is None:
                raise ConfigError(
                    f"--{name.replace('_', '-')} needs --{needs}: add one of "
                    f"{', '.join(choices)}, or leave it out"
                )
    if model and chips is None and run is None:
        raise ConfigError("--model needs chips to plan for: add --chips N, or name a finished RUN")
    bytes_per_value, display = 2, display or Display()
    if run is not None:
        from bharateo.training.contract import read_contract

        contract = read_contract(Path(run))
        bytes_per_value = 1 if contract.sensor.dtype == "uint8" else 2
        accounts = {str(run): contract.accounting}
    elif chips is not None:
        accounts = {"as given": Accounting(chips, epochs, chip_px, patch_px, bands, mask_ratio)}
    else:
        accounts = dict(published())
    if model is None:
        for title, account in accounts.items():
            display.table(title, account.rows())
        return
    training, power = (
        {name: value for name, value in given.items() if value is not None}
        for given in (training, power)
    )
    request = PlanRequest(model, machine, training=TrainingConfig(**training), **power)
    for title, account in accounts.items():
        plan = request.plan(account, bytes_per_value)
        measured = _measured(plan, display).rows() if machine == THIS else ()
        display.table(f"{title}, {model} model", (*plan.rows(), *measured))


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
