"""Handing a run over to other programs: export."""

from __future__ import annotations

import argparse
from pathlib import Path

from bharateo.cli.verbs import Verbs, add_verb


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        _export,
        "export",
        "a run for other programs: a Hub folder, timm weights, an ONNX file",
        "Write a run in a form that other programs load, and say what they may be fed.\n\n"
        "hub:  a folder with safetensors, contract and a model card written from the run; copy\n"
        "      it, or upload it by `hf upload USER/NAME FOLDER`. BharatEOEncoder.from_pretrained\n"
        "      reads both, and every verb takes the folder as RUN.\n"
        "timm: a folder for timm.create_model('local-dir:FOLDER', pretrained=True): the encoder,\n"
        "      with the normalisation folded in. It knows no missing pixels.\n"
        "onnx: one file, compared with PyTorch before it is written.\n\n"
        "  bharateo export runs/v0 --to hub --output hub/v0 --license cc-by-4.0\n"
        "  bharateo export runs/v0 --to timm --output timm/v0\n"
        "  bharateo export runs/v0 --to onnx --output v0.onnx\n"
        "  bharateo export runs/v0 --to onnx --what autoencoder --output v0-mae.onnx",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder made by pretrain")
    parser.add_argument("--to", choices=("hub", "timm", "onnx"), required=True,
                        help="what to write")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="PATH",
                        help="the folder (hub, timm) or file (onnx) to write")  # fmt: skip
    parser.add_argument("--what", choices=("encoder", "autoencoder"),
                        help="onnx: the encoder, or the whole with its masked tokens and heads "
                        "(default: encoder)")  # fmt: skip
    parser.add_argument("--license", metavar="ID",
                        help="hub: the weights' licence on the card, as the Hub names it (default: "
                        "cc-by-4.0 where the labels are, else other)")  # fmt: skip


def _export(options: argparse.Namespace) -> None:
    from bharateo import stages
    from bharateo.errors import ConfigError

    for option, format_ in (("what", "onnx"), ("license", "hub")):
        if getattr(options, option) is not None and options.to != format_:
            raise ConfigError(f"--{option} is for --to {format_}: leave it out for {options.to}")
    stages.export(
        options.run,
        options.to,
        options.output,
        what=options.what or "encoder",
        licence=options.license,
    )
