"""YAML read as plain values: mappings, lists, texts, numbers, true, false and null.

A configuration may come from anybody, so only the part of YAML that describes data is read, by its
version 1.2: no tags, anchors or merge keys, no dates, and numbers in decimal alone. What looks like
anything else is a text. There is no constructor here that a file could name: the parser's nodes
are turned into values by one function, and into nothing but these.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from bharateo.artefacts import shortened
from bharateo.errors import ConfigError
from bharateo.files import read_bytes

_MOST_BYTES = 2**18
"""Size of a file; one that lists all MGRS squares of the land has half of this."""
_MOST_LEVELS = 20
"""Depth of sections in sections."""

_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Bounded, so that a number of thousands of digits is a text, which no key takes for a number.
_WHOLE = re.compile(r"[-+]?(0|[1-9](_?[0-9]){0,19})")
_NUMBER = re.compile(
    r"[-+]?((0|[1-9][0-9]{0,39})(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][-+]?[0-9]{1,3})?"
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: the file is missing or none, no YAML, or holds something else.
    """
    try:
        content = read_bytes(path, _MOST_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is no YAML: byte {error.start} is no UTF-8; save it as UTF-8"
        ) from error
    record = parse_yaml(text, f"{path} is no YAML")
    if not isinstance(record or {}, dict):
        raise ConfigError(
            f"{path} must hold sections (data, model, heads, training, machine), not "
            f"{shortened(repr(record))}"
        )
    return record or {}


def parse_yaml(text: str, trouble: str) -> Any:
    """The plain values in a YAML text.

    Raises:
        ConfigError: it is no YAML of the part that is read; begins with ``trouble``.
    """
    if len(text) > _MOST_BYTES:
        raise ConfigError(f"{trouble}: it is longer than {_MOST_BYTES} characters")
    try:
        node = _PlainComposer(text).get_single_node()
        return None if node is None else _value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = shortened(str(error.problem or error.context))
        raise ConfigError(f"{trouble}: {place}{reason}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Values that the parser itself cannot make, such as the character \U99999999.
        raise ConfigError(f"{trouble}: {shortened(str(error))}") from error


class _PlainComposer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's way from a text to nodes, which ends where values would be constructed."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused("an alias (*) is not read: write the value out", event)
        if event.tag is not None:
            raise _refused("a tag (!) is not read: give a plain value", event)
        self._level += 1
        if self._level > _MOST_LEVELS:
            raise _refused(f"it is nested deeper than {_MOST_LEVELS} levels", event)
        node = super().compose_node(parent, index)
        self._level -= 1
        return node


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.value) if node.style is None else node.value
    record: dict[str | int, Any] = {}
    for key_node, value_node in node.value:
        key = _value(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            raise _refused("a key is a text or a whole number, in quotes if need be", key_node)
        if key in record:
            raise _refused(f"the key {key!r} is given twice: leave one out", key_node)
        record[key] = _value(value_node)
    return record


def _scalar(text: str) -> Any:
    """What a text without quotes stands for."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _refused(reason: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=at.start_mark)


class _PlainDumper(yaml.SafeDumper):
    """Writes texts so that both this reader and readers of YAML 1.1 take them for texts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_PlainDumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^(?:{_NUMBER.pattern})$"), list("-+.0123456789")
)


def write_yaml(record: Any) -> str:
    """Plain values as a YAML text, keys in their given order."""
    return yaml.dump(record, Dumper=_PlainDumper, sort_keys=False)
