"""Counting and planning: tokens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bharateo.cli.verbs import Verbs, add_verb

if TYPE_CHECKING:
    from bharateo.training.planning import Request

_PLAN_OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {
        "choices": ("nano", "tiny", "small", "base"),
        "help": "plan this model: parameters, FLOPs, bytes",
    },
    "--machine": {
        "choices": ("this", "h100", "h200", "a100", "l4", "rtx4090"),
        "help": "plan for this machine (measured in a few seconds) or a GPU by its data sheet, at "
        "an assumed 30 %% of its peak: hours, energy, CO2",
    },
    "--num-machines": {"type": int, "metavar": "N", "help": "machines or GPUs (default: 1)"},
    "--watts": {
        "type": float,
        "metavar": "W",
        "help": "power of one machine (default: its data sheet's; 15 W a core for this one)",
    },
    "--grid": {
        "type": float,
        "metavar": "KG_PER_KWH",
        "help": "CO2 of a kWh (default: 0.727, India in FY 2023-24)",
    },
    "--masks-per-chip": {
        "type": int,
        "metavar": "K",
        "help": "presentations of every chip read, each with its own mask (default: 1)",
    },
    "--batch-size": {"type": int, "metavar": "N", "help": "chips of a step (default: 64)"},
    "--precision": {
        "choices": ("auto", "fp32", "bf16"),
        "help": "of the matrix products (default: auto, bf16 where the machine has it)",
    },
}


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        _tokens,
        "tokens",
        "count tokens, pixels and scalars of a run, and plan one",
        "Count what a run is shown and asked: tokens, pixels and scalars, each by its name.\n"
        "Without arguments: the two published runs. With RUN: a finished run, as presented.\n"
        "With --model also FLOPs and bytes; with --machine also hours, energy and its CO2.\n\n"
        "  bharateo tokens\n"
        "  bharateo tokens runs/v0\n"
        "  bharateo tokens --chips 5000 --epochs 100 --bands 10 --model nano --machine this\n"
        "  bharateo tokens --chips 1000000 --epochs 100 --bands 10 --model base --machine h200",
    )
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a finished run's folder")
    parser.add_argument("--chips", type=int, help="chips presented in an epoch")
    parser.add_argument("--epochs", type=int, default=1, help="epochs (default: 1)")
    parser.add_argument("--bands", type=int, default=3, help="bands of a chip (default: 3)")
    parser.add_argument("--chip-px", type=int, default=128, help="side of a chip (default: 128)")
    parser.add_argument("--patch-px", type=int, default=16, help="side of a patch (default: 16)")
    parser.add_argument("--mask-ratio", type=float, default=0.75,
                        help="share of tokens hidden (default: 0.75)")  # fmt: skip
    for option, settings in _PLAN_OPTIONS.items():
        parser.add_argument(option, **settings)


def _tokens(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.accounting import Accounting

    account = None
    if options.chips is not None:
        account = Accounting(options.chips, options.epochs, options.chip_px, options.patch_px,
                             options.bands, options.mask_ratio)  # fmt: skip
    stages.tokens(options.run, account, _plan_request(options))


def _plan_request(options: argparse.Namespace) -> Request | None:
    """What to plan, None without --model; an option that would have no effect is refused."""
    from bharateo.errors import ConfigError

    names = [option.removeprefix("--").replace("-", "_") for option in _PLAN_OPTIONS]
    given = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    for name in given:
        needed = "machine" if name in ("num_machines", "watts", "grid") else "model"
        if needed not in given:
            option, choices = name.replace("_", "-"), _PLAN_OPTIONS[f"--{needed}"]["choices"]
            raise ConfigError(
                f"--{option} needs --{needed}: add one of {', '.join(choices)}, or leave it out"
            )
    if not given:
        return None
    if options.chips is None and options.run is None:
        raise ConfigError("--model needs chips to plan for: add --chips N, or name a finished RUN")

    from bharateo.config import TrainingConfig
    from bharateo.training.planning import Request

    training = {n: given.pop(n) for n in ("masks_per_chip", "batch_size", "precision")
                if n in given}  # fmt: skip
    return Request(given.pop("model"), training=TrainingConfig(**training), **given)
