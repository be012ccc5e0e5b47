"""What a verb may write over: nothing that it reads, and nothing that it has not made itself.

Every product carries a mark of the verb that made it: a key of its JSON, a tag of its GeoTIFF, or
a phrase at its beginning. A file without that mark is somebody's, whatever it is called.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bharateo.errors import ConfigError
from bharateo.files import open_file, read_bytes

Own = Callable[[Path], bool]
"""Whether an ordinary file that is there carries the mark of the verb that wants to write it."""

_HEAD_BYTES = 4096


def check_outputs(verb: str, products: Mapping[Path, Own], inputs: Iterable[str | Path]) -> None:
    """Make sure that a verb may write its products; to be called before any work begins.

    ``inputs`` are all files that the verb reads; addresses among them are passed over.

    Raises:
        ConfigError: a product is an input, by whatever name or link, or would lie among the tiles
            of one, or two products are one file, or one would replace what this verb has not made.
    """
    read = [Path(name) for name in inputs if os.path.lexists(name)]
    taken: list[Path] = []
    for product, own in products.items():
        for name in read:
            if _same(product, name):
                raise ConfigError(
                    f"{product} would replace {name}, which `bharateo {verb}` reads: choose "
                    "another --output"
                )
            if product.suffix == ".tif" and name.is_dir() and _same(product.parent, name):
                raise ConfigError(
                    f"{product} would lie among the tiles in {name} that `bharateo {verb}` reads, "
                    "and be one of them: choose another --output"
                )
        if any(_same(product, name) for name in taken):
            raise ConfigError(f"{product} is to be written twice: give each --output its own name")
        taken.append(product)
        if os.path.lexists(product) and not (product.is_file() and own(product)):
            raise ConfigError(
                f"{product} is there, and is not what `bharateo {verb}` makes (or was changed "
                "since): choose another --output, or move it away"
            )


def check_ending(output: Path, what: str, *endings: str) -> None:
    """Make sure that a file is called by what it will be; to be called before any work begins.

    Raises:
        ConfigError: it is not; the message ends with a name that will do.
    """
    if output.suffix not in endings:
        raise ConfigError(
            f"--output {output}: {what}, whose name must end in {' or '.join(endings)}; give "
            f"--output {output.with_suffix(endings[0])}"
        )


def free_name(output: Path) -> Path:
    """The first name like it, such as ``v0-2`` for ``v0``, that nothing has."""
    names = (output.with_name(f"{output.stem}-{n}{output.suffix}") for n in itertools.count(2))
    return next(name for name in names if not os.path.lexists(name))


def _same(one: Path, other: Path) -> bool:
    """Whether two names mean one file; links of either kind are followed."""
    try:
        return one.samefile(other)
    except OSError:
        return one.absolute() == other.absolute()


def record_in(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text, as files carry their provenance; empty where there is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def json_of(product: str) -> Own:
    """The mark of a JSON file: its key ``product``."""
    return lambda path: bool(_record_of(path).get("product") == product)


def json_with(key: str) -> Own:
    """The mark of a JSON file whose kind alone has this key."""
    return lambda path: key in _record_of(path)


def _record_of(path: Path) -> dict[str, Any]:
    try:
        return record_in(read_bytes(path))
    except OSError:
        return {}


def beginning_with(phrase: str) -> Own:
    """The mark of any other file: a phrase within its first 4096 bytes."""

    def own(path: Path) -> bool:
        try:
            with open_file(path) as file:
                return phrase.encode() in file.read(_HEAD_BYTES)
        except OSError:
            return False

    return own
