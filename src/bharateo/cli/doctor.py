"""Comfort: doctor, completion."""

from __future__ import annotations

import argparse
from pathlib import Path

from bharateo.cli.verbs import Verbs, add_verb

_FOLDERS = ("RUN", "DIR", "DATASET", "OTHER", "FOLDER", "DEST")


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    parser = add_verb(
        verbs,
        _doctor,
        "doctor",
        "what this machine can do, and the remedy for what it cannot",
        "Look at packages, GDAL, WorldCover, STAC catalogues, disk, memory, processor and GPU.\n"
        "Every line is ok, a note (something is slow or missing that the demo does not need) or a\n"
        "problem, with its remedy. It takes seconds and changes nothing. The exit status is 1\n"
        "where there is a problem, else 0.\n\n"
        "  bharateo doctor\n"
        "  bharateo doctor --json > doctor.json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser = add_verb(
        verbs,
        _completion,
        "completion",
        "verbs, options and files completed by the shell",
        "Print a script with which the shell completes verbs, options, choices and paths.\n\n"
        "bash, in the next shell on (where the package bash-completion is installed):\n\n"
        "  mkdir -p ~/.local/share/bash-completion/completions\n"
        "  bharateo completion bash > ~/.local/share/bash-completion/completions/bharateo\n\n"
        "zsh, with `fpath+=~/.zfunc` before `autoload -U compinit; compinit` in ~/.zshrc:\n\n"
        "  mkdir -p ~/.zfunc\n"
        "  bharateo completion zsh > ~/.zfunc/_bharateo\n\n"
        "tcsh, with `source ~/.bharateo.tcsh` in ~/.tcshrc:\n\n"
        "  bharateo completion tcsh > ~/.bharateo.tcsh",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def _doctor(options: argparse.Namespace) -> int:
    import json

    from bharateo.display import Display
    from bharateo.doctor import as_json, examine, show, works

    findings = examine()
    if options.json:
        print(json.dumps(as_json(findings), indent=2))
    else:
        show(findings, Display())
    return 0 if works(findings) else 1


def _completion(options: argparse.Namespace) -> None:
    import shtab

    from bharateo.cli import build_parser

    parser = build_parser()
    _complete_paths(parser)
    print(shtab.complete(parser, options.shell))


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Let every argument that takes a path complete to folders, or to folders and files."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _complete_paths(verb)
        elif action.type is Path or action.dest in ("input", "raster", "paths", "against"):
            is_folder = action.dest == "dataset" or action.metavar in _FOLDERS
            action.complete = shtab.DIRECTORY if is_folder else shtab.FILE  # type: ignore[attr-defined]
