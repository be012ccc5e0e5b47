"""What stands in a JSON file of ours, checked: any file may come from anybody, or be damaged.

A file is read as plain values and put into a declared type; what does not fit is refused in one
line that names the file, the key, the value and the remedy. Nothing in a file is ever called,
imported or followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from bharateo.errors import BharatEOError
from bharateo.files import read_bytes

Artefact = TypeVar("Artefact")

_SHOWN = 80
"""Characters of a wrong value that an error repeats."""


class Record(BaseModel):
    """A part of an artefact: no conversions between types, no keys but those declared."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class OpenRecord(Record):
    """A part that a later version may add to; what it added is kept."""

    model_config = ConfigDict(extra="allow")


def _as_written(value: Any, number: ValidatorFunctionWrapHandler) -> Any:
    found = number(value)
    return value if type(value) is int else found


Number = Annotated[FiniteFloat, WrapValidator(_as_written)]
"""A number that stays whole where it was written so: a file read and written is the same bytes."""


def read_json(path: Path, error: type[BharatEOError], remedy: str) -> Any:
    """The plain values in a JSON file.

    Raises:
        BharatEOError: it cannot be read or is no JSON; of class ``error``, ending in ``remedy``.
    """
    try:
        content = read_bytes(path)
    except OSError as trouble:
        raise error(f"{path} cannot be read ({trouble.strerror}); {remedy}") from trouble
    return parse_json(content, str(path), error, remedy)


def parse_json(content: bytes | str, where: str, error: type[BharatEOError], remedy: str) -> Any:
    """The plain values in a JSON text.

    Raises:
        BharatEOError: it is no JSON, nested too deep, or holds a number of thousands of digits;
            of class ``error``.
    """
    try:
        return json.loads(content)
    except RecursionError as trouble:
        raise error(f"{where} is damaged: it is nested too deep; {remedy}") from trouble
    except ValueError as trouble:  # also UnicodeDecodeError and JSONDecodeError
        raise error(f"{where} is damaged: {shortened(str(trouble))}; {remedy}") from trouble


def checked(
    kind: type[Artefact], value: Any, where: str, error: type[BharatEOError], remedy: str
) -> Artefact:
    """Plain values (of JSON or YAML) as what they should be: a ``Record`` or any declared type.

    Types are strict, except that a list does for a tuple and a whole number for a float.

    Raises:
        BharatEOError: of class ``error``; the first thing that does not fit, by key and value.
    """
    try:
        text = json.dumps(value)
        plain: Any = kind  # a type is hashable, which mypy does not know
        found: Artefact = _adapter(plain).validate_json(text, strict=True)
    except ValidationError as trouble:
        raise error(f"{where}: {first_misfit(trouble)}; {remedy}") from trouble
    except (TypeError, ValueError, RecursionError) as trouble:
        raise error(
            f"{where} holds what cannot be: {shortened(str(trouble))}; {remedy}"
        ) from trouble
    return found


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks a type; making one takes milliseconds, and catalogues have items by thousands."""
    return TypeAdapter(kind)


def first_misfit(trouble: ValidationError) -> str:
    """The first misfit in a few words: dotted key, what is wanted, and the value."""
    return misfit_in_words(trouble.errors(include_url=False, include_context=False)[0])


def misfit_in_words(misfit: Mapping[str, Any]) -> str:
    """One of pydantic's misfits: dotted key, what is wanted, and the value."""
    key = shortened(".".join(map(str, misfit["loc"]))) or "the whole"
    message = misfit["msg"][:1].lower() + misfit["msg"][1:]
    if misfit["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {message}, not {shortened(repr(misfit['input']))}"


def shortened(text: str) -> str:
    """A text in one line of bounded length that a terminal can show, for an error."""
    text = " ".join(text[: 100 * _SHOWN].split())
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
