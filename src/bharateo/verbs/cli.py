"""The command line, made from the verbs' signatures and docstrings."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, get_origin

from cyclopts import App, CycloptsError, Group, Parameter

from bharateo.display import Display
from bharateo.errors import BharatEOError, ConfigError, RankLostError, Stopped
from bharateo.machine import first_rank
from bharateo.verbs.composite import write_composite
from bharateo.verbs.demo import demo
from bharateo.verbs.doctor import doctor
from bharateo.verbs.finetune import finetune
from bharateo.verbs.ground import embed, explore, export, map_raster, search, teach
from bharateo.verbs.hectares import hectares, polygons
from bharateo.verbs.machine import tokens
from bharateo.verbs.pipeline import build, evaluate, pretrain, write_report
from bharateo.verbs.schema import schema
from bharateo.verbs.scores import ablate, probe, probe_task, score_search
from bharateo.verbs.survey import areas, change, sample
from bharateo.version import __version__

if TYPE_CHECKING:
    from cyclopts import ArgumentCollection
    from cyclopts.help import HelpPanel
    from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status.

    0: done; 1: refused, with one line that says why; 2: the command line cannot be parsed; 130 or
    128 + a signal: stopped.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # rasterio's word on a file cut short; our own error follows it
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
    try:
        refuse_old_words(words)
        if not words:
            raise CycloptsError("Which verb?")
        verb, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        if given.arguments.get("display"):  # --quiet
            given.arguments["display"] = Display(quiet=True)
        return 1 if inspect.unwrap(verb)(**given.arguments) is False else 0
    except CycloptsError as error:
        error.verbose = False
        said = " ".join(str(error).split())
        page = f"bharateo {words[0]}" if words and words[0] in VERBS else "bharateo"
        print(f"{page}: {said} (`{page} --help` says more)", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if first_rank():
            print(f"bharateo: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except BharatEOError as error:
        message = " ".join(str(error).split())
        message = with_whole_command(message, words)
        if first_rank() or isinstance(error, RankLostError):  # others would say the same
            print(f"bharateo: {type(error).__name__}: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bharateo: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def with_whole_command(message: str, words: Sequence[str]) -> str:
    """A refusal that ends with an option of the verb and its value, such as ``--allow unit``, as
    one that ends with the whole command to be typed.

    ``words`` are those after ``bharateo``. What the option was given before stays where it may be
    given several times, but for one of the same name (``NAME=``), or that the message names.
    """
    found = re.search(r"(--[a-z-]+) [^\s`'\"]+$", message)
    if found is None or re.search(r"\bbharateo \w[^`]*$", message[: found.start()]):
        return message  # no option, or a whole command already
    own = {each.name: each for each in arguments_of(words[0])} if words[0] in VERBS else {}
    if found[1] not in own:
        return message
    option, before, new = own[found[1]], message[: found.start()], found[0].split()[1]
    several = get_origin(option.hint) in (list, frozenset)
    kept, rest = [], list(words)
    while rest:
        name, equals, old = rest[0].partition("=")
        given = rest[: 1 if equals or name not in option.names else 2]
        old = old if equals else given[-1]
        wrong = f"{found[1]} {old}" in before
        same = "=" in new and old.partition("=")[0] == new.partition("=")[0]
        if name not in option.names or (several and not (wrong or same)):
            kept += given
        rest = rest[len(given) :]
    return f"{before}{shlex.join(['bharateo', *kept, *found[0].split()])}"


def arguments_of(verb: str) -> ArgumentCollection:
    """What a verb takes on the command line."""
    with app.app_stack([verb]):
        return app[verb].assemble_argument_collection(parse_docstring=True)


def refuse_old_words(words: Sequence[str]) -> None:
    """Name the verb that has taken the place of an option (of version 0.1, for one release).

    Raises:
        ConfigError: the words are of before; the message ends with the command of today.
    """
    verb, rest = next(iter(words), ""), [*words[1:]]
    named = {word.partition("=")[0] for word in rest}
    if verb == "evaluate" and "--task" in named:
        place = next(i for i, word in enumerate(rest) if word.partition("=")[0] == "--task")
        _, equals, folder = rest.pop(place).partition("=")
        rest += [folder] if equals else [rest.pop(place)] if place < len(rest) else ["FOLDER"]
        new = "probe-task"
    elif verb == "evaluate" and "--probe" in named:
        new, rest = "probe", [word for word in rest if word != "--probe"]
    elif verb == "search" and "--score" in named:
        new, rest = "score-search", [word for word in rest if word != "--score"]
    elif verb == "probe" and "--points" in named:
        new = "teach"
    else:
        return
    raise ConfigError(f"this is a verb of its own now: {shlex.join(['bharateo', new, *rest])}")


# Help


class HelpPage:
    """A verb's page as plain text: what it says can be copied, and reads the same in a file."""

    def __call__(self, console: Console, options: Any, panel: HelpPanel) -> None:
        """A list of options, arguments or verbs, each with its meaning beside it."""
        if not panel.entries:
            return
        self._say(console, f"{panel.title}:")
        if text := panel_text(panel.description):
            self._say(console, textwrap.indent(wrapped(text, console.width - 2), "  "))
        rows = [(", ".join(each.display_labels_with_metavar), each) for each in panel.entries]
        indent = min(24, 4 + max(len(name) for name, _ in rows))
        for name, entry in rows:
            notes = [panel_text(entry.description)]
            if entry.choices:
                sign = "|" if len(entry.choices) < 7 else " | "  # where a line may break
                notes.append(f"[{sign.join(entry.choices)}]")
            if entry.required and not entry.positional_label:
                notes.append("(required)")
            if entry.default:
                notes.append(f"(default: {entry.default})")
            first = f"  {name}".ljust(indent)
            text = " ".join(" ".join(filter(None, notes)).split())
            if len(first) > indent or first[-1] != " ":
                self._say(console, first.rstrip())
                first = " " * indent
            self._say(console, textwrap.fill(text, console.width, initial_indent=first,
                      subsequent_indent=" " * indent, break_on_hyphens=False) or first)  # fmt: skip
        self._say(console, "")

    def render_usage(self, console: Console, options: Any, usage: Any) -> None:
        """The line that says in which order words come."""
        self._say(console, f"Usage: {str(usage).strip()}\n")

    def render_description(self, console: Console, options: Any, description: Any) -> None:
        """What the verb does; lines that are indented are as they are."""
        self._say(console, wrapped(panel_text(description), console.width))

    def _say(self, console: Console, text: str) -> None:
        console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True, style="")


def wrapped(text: str, width: int) -> str:
    """Paragraphs filled to a width, each with an empty line after it; indented ones as they are."""
    return "\n".join(
        f"{part if part.startswith('  ') else textwrap.fill(part, width, break_on_hyphens=False)}\n"
        for part in text.split("\n\n")
    )


def panel_text(text: Any) -> str:
    """What cyclopts holds as something to render, as it was written."""
    plain = getattr(text, "primary_renderable", text)
    return str(getattr(plain, "plain", plain) or "").strip("\n")


def shown_default(value: Any) -> str:
    """A default as it is typed; nothing for what is not there."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None or value is False or value == frozenset() else str(value)


app = App(
    name="bharateo",
    version=f"bharateo {__version__}",
    help="Masked-autoencoder pretraining for Earth observation, from public pixels to an honest "
    "report. Every verb turns one folder into the next: a configuration into a dataset, a dataset "
    "into a run, a run into an evaluation and a report. Every verb can be killed and run again; it "
    "goes on where it stopped.",
    help_epilogue="Start with `bharateo demo`. `bharateo doctor` says what this machine can do, "
    "and `bharateo completion --help` how the shell completes all this at TAB.",
    help_format="plaintext",
    help_formatter=HelpPage(),
    group_commands=Group("Verbs"),
    group_arguments=Group("Arguments", sort_key=0),
    group_parameters=Group("Options", sort_key=1),
    default_parameter=Parameter(negative=(), show_default=shown_default, allow_repeating=True),
)


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Verbs, options and files completed by the shell.

    Prints a script with which the shell completes verbs, options, choices and paths.

    bash, in the next shell on (where the package bash-completion is installed):

      mkdir -p ~/.local/share/bash-completion/completions
      bharateo completion bash > ~/.local/share/bash-completion/completions/bharateo

    zsh, with `fpath+=~/.zfunc` before `autoload -U compinit; compinit` in ~/.zshrc:

      mkdir -p ~/.zfunc
      bharateo completion zsh > ~/.zfunc/_bharateo

    fish:

      mkdir -p ~/.config/fish/completions
      bharateo completion fish > ~/.config/fish/completions/bharateo.fish

    Args:
        shell: the shell
    """
    print(app.generate_completion(shell=shell))


# Every verb, in the order of --help, and which of its parameters come without the name of an
# option.
VERBS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "demo": (demo, ()),
    "build": (build, ("config",)),
    "pretrain": (pretrain, ("config",)),
    "evaluate": (evaluate, ("run",)),
    "report": (write_report, ("run",)),
    "probe": (probe, ("run",)),
    "probe-task": (probe_task, ("run", "folder")),
    "ablate": (ablate, ("config",)),
    "tokens": (tokens, ("run",)),
    "composite": (write_composite, ()),
    "embed": (embed, ("run", "location")),
    "map": (map_raster, ("run", "location")),
    "teach": (teach, ("source", "location")),
    "finetune": (finetune, ("run",)),
    "sample": (sample, ("map_file",)),
    "areas": (areas, ("map_file", "labels")),
    "change": (change, ("before", "after")),
    "hectares": (hectares, ("location",)),
    "polygons": (polygons, ("location",)),
    "search": (search, ("embedding", "location")),
    "score-search": (score_search, ("run", "dataset")),
    "explore": (explore, ("run",)),
    "export": (export, ("run",)),
    "doctor": (doctor, ()),
    "schema": (schema, ("what",)),
    "completion": (completion, ("shell",)),
}


def _command(verb: Callable[..., Any], words: Sequence[str]) -> Callable[..., None]:
    """A verb as the command line reads it: some parameters by their place, all others by name."""

    @wraps(verb)
    def command(**given: Any) -> Any:
        return verb(**given)

    parameters = inspect.signature(verb).parameters
    given = [parameters[name].replace(kind=inspect.Parameter.POSITIONAL_ONLY) for name in words]
    named = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in parameters.items()
        if name not in words
    ]
    command.__signature__ = inspect.Signature([*given, *named])  # type: ignore[attr-defined]
    # What a verb returns takes long to import.
    command.__annotations__ = {n: t for n, t in verb.__annotations__.items() if n != "return"}
    return command


for _place, (_name, (_verb, _words)) in enumerate(VERBS.items()):
    app.command(
        _command(_verb, _words), name=_name, help=inspect.getdoc(_verb), help_epilogue="",
        sort_key=_place,
    )  # fmt: skip
