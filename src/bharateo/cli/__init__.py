"""The command line: verbs and their options. Each stage is imported when its verb is called."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from bharateo.cli import (
    ablation,
    doctor,
    embedding,
    explorer,
    handover,
    mapping,
    pipeline,
    search,
    tokens,
)
from bharateo.cli.parser import Parser
from bharateo.cli.verbs import FIRST_RANK
from bharateo.errors import BharatEOError, RankLostError, Stopped
from bharateo.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status (0 done, 1 refused with a message, 130 stopped).

    A command line that cannot be parsed exits with 2.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    # rasterio's word on a file cut short; our own error follows it
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
    try:
        status: int | None = options.verb(options)
    except Stopped as stopped:
        if FIRST_RANK:
            print(f"bharateo: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except BharatEOError as error:
        message = " ".join(str(error).split())
        if FIRST_RANK or isinstance(error, RankLostError):  # others would say the same
            print(f"bharateo: {type(error).__name__}: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bharateo: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return status or 0


def build_parser() -> argparse.ArgumentParser:
    """Every verb with its options."""
    parser = Parser(
        prog="bharateo",
        description="Masked-autoencoder pretraining for Earth observation, from public pixels to "
        "an honest report. Every verb turns one folder into the next: a configuration into a "
        "dataset, a dataset into a run, a run into an evaluation and a report. Every verb can be "
        "killed and run again; it goes on where it stopped.",
        epilog="Start with `bharateo demo`. `bharateo doctor` says what this machine can do, and "
        "`bharateo completion --help` how the shell completes all this at TAB.",
    )
    parser.add_argument("--version", action="version", version=f"bharateo {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for each in (
        pipeline,
        tokens,
        embedding,
        mapping,
        ablation,
        search,
        explorer,
        handover,
        doctor,
    ):
        each.add(verbs)
    return parser
