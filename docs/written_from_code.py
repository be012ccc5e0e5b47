"""What the site shows of the code and the notebooks, made when it is built so it cannot lag behind.

A page holds a mark such as ``<!-- written from the code: command line -->``; ``WRITTEN`` says what
comes in its place.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import jupytext
import nbformat
from cyclopts.help import HelpEntry, create_parameter_help_panel
from draw_rooms import first_line, rooms
from pydantic.fields import FieldInfo

import bharateo
from bharateo import config
from bharateo.verbs.cli import VERBS, arguments_of, panel_text

ROOT = Path(__file__).parents[1]

# Notebooks


def gather_notebooks() -> None:
    """Put the notebooks where Sphinx finds them: with outputs where they have been run since they
    were changed (``make notebooks``), else as their text pairs have them.
    """
    folder = ROOT / "docs" / "notebooks"
    folder.mkdir(exist_ok=True)
    for pair in sorted((ROOT / "notebooks").glob("*.py")):
        run = ROOT / "build" / "notebooks" / f"{pair.stem}.ipynb"
        if run.exists() and run.stat().st_mtime >= pair.stat().st_mtime:
            content = _without_progress(run)
        else:
            content = jupytext.writes(jupytext.read(pair), fmt="ipynb")
        _write(folder / run.name, content)


def _without_progress(run: Path) -> str:
    """A notebook that was run, less the lines that said how far it was."""
    notebook = nbformat.read(run, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"^[\w-]+: +\d+ %.*\n", "", output.text, flags=re.M)
    return nbformat.writes(notebook)


def _write(page: Path, content: str) -> None:
    """Write a page that Sphinx reads again only where it has changed."""
    page.parent.mkdir(exist_ok=True)
    if not page.exists() or page.read_text() != content:
        page.write_text(content)


# The Python API


def public_names() -> str:
    """Every public name with its first line, under the headings of ``__init__.pyi``."""
    parts = []
    for heading, names in _public():
        parts += [f"## {heading}", ""]
        for name in names:
            summary = _markdown((inspect.getdoc(getattr(bharateo, name)) or "").split("\n\n")[0])
            parts.append(f"- {_linked(name)}: {' '.join(summary.split())}")
        parts.append("")
    return "\n".join(parts)


def _public() -> Iterator[tuple[str, list[str]]]:
    """The headings of ``__init__.pyi``, each with the names below it."""
    text = Path(bharateo.__file__).with_suffix(".pyi").read_text()
    for heading, lines in re.findall(r"^# (.*)\n((?:from .*\n)+)", text, re.M):
        names = re.findall(r" as (\w+)$", lines, re.M)
        if names != ["__version__"]:
            yield heading, names


def _linked(name: str) -> str:
    """A public name as a link to where its room's page tells of it."""
    if name in _VERBS:
        return f"[`bharateo.{name}`](api/verbs.md#bharateo{name})"
    return f"{{py:obj}}`bharateo.{name}`"


def write_rooms() -> None:
    """A page a room of the package, with its functions and classes; what is public comes first.

    Rooms of one module share a page.
    """
    folder = ROOT / "docs" / "reference" / "api"
    single = []
    for room, files in rooms().items():
        if room.endswith("/"):
            name = room.rstrip("/")
            _write(folder / f"{name}.md", _room(f"`bharateo.{name}`", first_line(files[0]), files))
        elif not room.startswith("__"):
            single += files
    opening = "What rooms stand on: the configuration, files, places and errors, a module each."
    _write(folder / "modules.md", _room("Single modules", opening, single))


def _room(title: str, opening: str, files: list[Path]) -> str:
    modules = {_module(path): path for path in files}
    parts = [f"# {title}", _markdown(opening), "## Public"]
    if "bharateo.verbs" in modules:
        parts.append(verbs_in_python())
    public = [name for name, (module, _) in bharateo._HOMES.items() if module in modules]
    directives = [_directive(name) for name in public if name not in {*_VERBS, "__version__"}]
    parts += [_autodoc(*directives)] if directives else []
    if len(parts) == 3:
        parts.pop()
    for module, path in modules.items():
        public = [there for home, there in bharateo._HOMES.values() if home == module]
        defined = (node for node in ast.parse(path.read_text()).body
                   if isinstance(node, ast.FunctionDef | ast.ClassDef))  # fmt: skip
        names = [node.name for node in defined if node.name not in public and node.name[0] != "_"]
        import_module(module)  # else autodoc does, with TYPE_CHECKING set, which pydantic dislikes
        lines = [f".. automodule:: {module}", "   :ignore-module-all:"]
        lines += [f"   :members: {', '.join(names)}"] if names else []
        parts += [f"## `{module}`", _autodoc(*lines)]
    return "\n\n".join(parts) + "\n"


def _module(path: Path) -> str:
    inner = path.relative_to(ROOT / "src").with_suffix("")
    return ".".join(inner.parts).removesuffix(".__init__")


def _directive(name: str) -> str:
    """The autodoc directive of a public name."""
    value = getattr(bharateo, name)
    if inspect.isfunction(value):
        return f".. autofunction:: bharateo.{name}"
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, Exception) else "autoclass"
        return f".. {kind}:: bharateo.{name}\n   :members:"
    return f".. autodata:: bharateo.{name}\n   :no-value:"


def _autodoc(*directives: str) -> str:
    return "\n".join(["```{eval-rst}", *directives, "```"])


# The verbs


def command_line() -> str:
    """Every verb with its description, examples and options."""
    return "\n".join(map(_page_of, VERBS))


def told(name: str) -> docstring_parser.Docstring:
    """What a verb's function says of itself."""
    return docstring_parser.parse(inspect.getdoc(VERBS[name][0]) or "")


def examples(name: str) -> Iterator[str]:
    """The commands that a verb's own help shows."""
    text = told(name).long_description or ""
    for command in re.findall(r"^  (bharateo (?:.*\\\n)*.*)$", text, flags=re.MULTILINE):
        yield command.replace("\\\n", " ")


def _page_of(name: str) -> str:
    said = told(name)
    parts = [f"## bharateo {name}", _prose(f"{said.short_description}\n\n{said.long_description}")]
    arguments = arguments_of(name)
    for group in sorted(arguments.groups, key=lambda group: group.sort_key):
        panel = create_parameter_help_panel(group, arguments.filter_by(group=group), "plaintext")
        if group.help:
            parts += [f"**{group.name}**", _prose(group.help)]
        parts += [_option(entry) for entry in panel.entries]
    return "\n\n".join(parts) + "\n"


def _option(entry: HelpEntry) -> str:
    """An option as an item of a definition list."""
    needed = " *(required)*" if entry.required and not entry.positional_label else ""
    text = " ".join(panel_text(entry.description).split())
    words = _escaped(text)
    if entry.choices:
        words += f"; one of {', '.join(f'`{choice}`' for choice in entry.choices)}"
    if entry.default:
        words += f" (default: `{entry.default}`)"
    return f"`{', '.join(entry.display_labels_with_metavar)}`{needed}\n: {words}"


def verbs_in_python() -> str:
    """Every verb's function: its signature, what it takes, gives and raises."""
    return "\n".join(_function(name) for name in VERBS if name != "completion")


def _function(name: str) -> str:
    function, said = VERBS[name][0], told(name)
    parameters = inspect.signature(function).parameters.values()
    signature = inspect.Signature([each.replace(annotation=each.empty) for each in parameters])
    called = f"bharateo.{function.__name__}"
    summary = _markdown(said.short_description or "")
    parts = [f"### `{called}`", f"```text\n{called}{signature}\n```",
             f"{summary} On the command line `bharateo {name}`."]  # fmt: skip
    parts += [
        f"`{each.arg_name}`\n: {_markdown(' '.join((each.description or '').split()))}"
        for each in said.params
    ]
    if said.returns:
        parts.append(f"Returns: {_markdown(said.returns.description or '')}")
    parts += [f"Raises `{each.type_name}`: {_markdown(' '.join((each.description or '').split()))}"
              for each in said.raises]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _prose(text: str) -> str:
    """A help text in Markdown: what is indented by two spaces is code."""
    parts = []
    for part in re.split(r"\n\n", text):
        lines = part.split("\n")
        if all(line.startswith("  ") for line in lines):
            language = "bash" if lines[0].startswith("  bharateo") else "text"
            parts.append(f"```{language}\n{textwrap.dedent(part)}\n```")
        elif any(line.startswith("  ") for line in lines):  # a list of words and what they mean
            parts.append(f"```text\n{part}\n```")
        else:
            parts.append(_escaped(part))
    return "\n\n".join(parts)


_CODE = re.compile(r"--[a-z][a-z-]*|\$?[\w./*]*[=_][\w./=,|\[\]-]*[\w\]]")
"""Options, and words such as KEY=VALUE and some_file.json."""


def _escaped(text: str) -> str:
    """Text in which options are code, and Markdown's own signs stand for themselves."""
    pieces = re.split(r"(`[^`]+`)", text)
    plain = (re.split(f"({_CODE.pattern})", piece) for piece in pieces[::2])
    marked = ("".join(map(_mark, each, range(len(each)))) for each in plain)
    quoted = [*pieces[1::2], ""]
    return "".join(f"{words}{code}" for words, code in zip(marked, quoted, strict=True))


def _mark(piece: str, place: int) -> str:
    """Every second piece of a split is code."""
    return f"`{piece}`" if place % 2 else re.sub(r"([*_<>\[\]|$])", r"\\\1", piece)


# The configuration


def configuration() -> str:
    """Every key with its default and meaning, section by section."""
    parts = []
    for section, cls in sections():
        parts += [f"## `{section}`", _summary(cls)]
        parts += [_key(section, name, cls) for name in get_type_hints(cls)]
        if section == "model":
            parts.append(_sizes())
        if section == "heads.NAME":
            parts += list(_heads())
    return "\n\n".join(parts) + "\n"


def sections() -> list[tuple[str, type]]:
    """Every section of a configuration with the class that declares it, outermost first."""
    return list(_sections("", config.Config))


def _sections(path: str, cls: type) -> Iterator[tuple[str, type]]:
    if path:
        yield path, cls
    for name, hint in get_type_hints(cls).items():
        for inner, suffix in inner_classes(hint):
            yield from _sections(f"{path}.{name}{suffix}".lstrip("."), inner)


def inner_classes(hint: Any) -> Iterator[tuple[type, str]]:
    """The dataclasses in a type, each with ``.NAME`` where the keys above it are free names."""
    if is_dataclass(hint):
        yield hint, ""
    for argument in get_args(hint):
        if is_dataclass(argument):
            yield argument, ".NAME" if get_origin(hint) not in (Union, UnionType) else ""


def _summary(cls: type) -> str:
    return _markdown(docstring_parser.parse_from_object(cls).short_description or "")


def meanings(cls: type) -> dict[str, str]:
    """What each key of a class of the configuration means, as its docstring there says."""
    found = docstring_parser.parse_from_object(cls).params
    return {each.arg_name: " ".join((each.description or "").split()) for each in found}


def _key(section: str, name: str, cls: type) -> str:
    hint = get_type_hints(cls, include_extras=True)[name]
    inner = list(inner_classes(hint))
    default = asdict(cls()).get(name)
    says = "a section of its own, below" if inner else f"default `{_shown(default)}`; {kind(hint)}"
    if inner and default is None:
        says += ", or `null`"
    meaning = _markdown(meanings(cls).get(name, ""))
    return f"`{section}.{name}`\n: {says}. {meaning}".rstrip()


def kind(hint: Any) -> str:
    """A type in the words of somebody who writes YAML."""
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return " ".join([kind(arguments[0]), *_bounds(arguments[1])])
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f"`{each}`" for each in arguments)
    if get_origin(hint) in (Union, UnionType):
        first = next(each for each in arguments if each is not NoneType)
        return f"{kind(first)}, or `null`"
    if get_origin(hint) is tuple:
        if arguments[1:] == (Ellipsis,):
            return "list"
        return f"list of {len(arguments)}"
    if get_origin(hint) is not None:
        return "mapping"
    return plain.get(hint, "any")


def _bounds(field: FieldInfo) -> Iterator[str]:
    """What pydantic holds a number to, in words."""
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    for bound in field.metadata:
        name = type(bound).__name__.lower()
        if name in words and (value := getattr(bound, name)) < 2**31 - 1:  # more is as good as any
            yield f"{words[name]} {value:g}"


def _shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_shown, value))}]"
    return ("{}" if not value else "{...}") if isinstance(value, Mapping) else str(value) or '""'


def _sizes() -> str:
    names = list(config.SIZES["nano"])
    head = f"| `model.size` | {' | '.join(f'`{name}`' for name in names)} |\n{'|---' * 7}|"
    rows = [
        f"| `{size}` | {' | '.join(str(values[name]) for name in names)} |"
        for size, values in config.SIZES.items()
    ]
    return "\n".join(["`model.size: NAME` stands for all of these at once.\n", head, *rows])


def _heads() -> Iterator[str]:
    """The options of every head, as its class takes them."""
    from bharateo.models.heads import HEADS

    for name, head in HEADS.items():
        yield f"### `heads.{name}`"
        yield _markdown(inspect.getdoc(head) or "")
        hints = get_type_hints(head.__init__, include_extras=True)
        for option in list(inspect.signature(head).parameters.values())[1:]:
            yield (
                f"`heads.{name}.options.{option.name}`\n: default `{_shown(option.default)}`; "
                f"{kind(hints.get(option.name))}"
            )


def _markdown(text: str) -> str:
    """A docstring's text in Markdown: ``code`` in double backticks becomes code."""
    return _escaped(re.sub(r"``([^`]+)``", r"`\1`", text))


_VERBS = {function.__name__ for function, _ in VERBS.values()}

WRITTEN: Mapping[str, Callable[[], str]] = {
    "<!-- written from the code: command line -->": command_line,
    "<!-- written from the code: public names -->": public_names,
    "<!-- written from the code: configuration -->": configuration,
}
