"""Files damaged in many ways, and whoever reads them: success, or one line that says why not.

``Kind`` is a kind of file: what a valid one is, how it is damaged, who reads it. ``survey`` damages
it again and again in a process of its own, which may neither end, nor hang, nor take memory,
nor raise anything but a ``BharatEOError`` of one short line. Generic damage to JSON and to bytes is
here; what only one format knows (a dtype, a tag) is with its kind.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import resource
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bharateo.errors import BharatEOError

EVERY = int(os.environ.get("BHARATEO_FUZZ_EVERY", "3"))
"""One case in three is looked at; with 1 all are, which takes minutes and is for new readers."""

MOST_CHARACTERS = 500
MOST_SECONDS = 20.0
MOST_BYTES = 2**31
"""Of address space that a kind may take beyond what its process began with."""

_DEEP, _LONG = "<nested deep>", "<a number of many digits>"
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 255, 256, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e-320,
    1e308, -1e308, float("nan"), float("inf"), "", "0", "O", "object", "<f8", ">u2", "train", "all",
    "..", "../..", "/etc/passwd", "a/../../b", "nul\0", "\x1b[31m\x07\n", "‮<b>&\"'|`", "é" * 3,
    "long" * 30_000, [], {}, [[]], [None], [0, 0, 0], [-1] * 9, {"": {}}, _DEEP, _LONG,
)  # fmt: skip
"""What stands in place of a value."""


# Damage


def damaged_tree(rng: random.Random, tree: Any) -> Any:
    """Plain values with one to three of them changed: taken out, of another type or size, odd."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = _place(rng, tree)
        if holder is None:
            tree = rng.choice(ODD_VALUES)
        else:
            _change(rng, holder, key)
    return tree


def _place(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    """A value somewhere in the tree, as what holds it and its key there; near the top as often."""
    holder, key, value = None, None, tree
    while isinstance(value, (dict, list)) and value and rng.random() > 0.12:
        holder, key = (
            value,
            rng.choice(list(value) if isinstance(value, dict) else range(len(value))),
        )
        value = holder[key]
    return holder, key


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    ways = ["delete", "odd", "odd", "odd", "wrap", "sibling"]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        ways += ["number"] * 3
    elif isinstance(value, str):
        ways += ["text"] * 2
    elif isinstance(value, list):
        ways += ["list"] * 2
    elif isinstance(value, dict) and value:
        ways += ["key"] * 2
    way = rng.choice(ways)
    if way == "delete":
        del holder[key]
    elif way == "odd":
        holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif way == "wrap":
        holder[key] = rng.choice(([value], {"x": value}, str(value)))
    elif way == "sibling":
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key] = copy.deepcopy(holder[other])
    elif way == "number":
        holder[key] = rng.choice((-value, value + 1, value - 1, value * 1000, value * -1e6,
                                  value / 3, float(value), str(value)))  # fmt: skip
    elif way == "text":
        holder[key] = rng.choice((value[:-1], value + "x", value.upper(), value * 3, f"../{value}",
                                  f"/{value}", value[::-1]))  # fmt: skip
    elif way == "list":
        holder[key] = rng.choice(
            (value[:-1], value[1:], value * 2, value[::-1], (value * 500)[:2000])
        )
    else:
        value[rng.choice(("", "x", "__class__", "model_config", *list(value)[:3]))] = value.pop(
            rng.choice(list(value)), None
        )


def change(file: Path, path: str, value: Any) -> None:
    """Change one value of a JSON file; the path is dotted, ... takes the key away."""
    whole = json.loads(file.read_text())
    *way, last = path.split(".")
    place = whole
    for key in way:
        place = place[int(key) if isinstance(place, list) else key]
    own = int(last) if isinstance(place, list) else last
    place[own] = value
    if value is ...:
        del place[own]
    file.write_text(json.dumps(whole))


def json_text(tree: Any) -> str:
    """The tree as JSON, NaN and infinities as Python writes them; markers become what they say."""
    text = json.dumps(tree)
    text = text.replace(json.dumps(_DEEP), "[" * 50_000 + "]" * 50_000)
    return text.replace(json.dumps(_LONG), "9" * 5000)


def damaged_json(rng: random.Random, content: bytes) -> bytes:
    """A JSON file with values changed, or now and then its bytes."""
    if rng.random() < 0.15:
        return damaged_bytes(rng, content)
    return json_text(damaged_tree(rng, json.loads(content))).encode()


def damaged_lines(rng: random.Random, content: bytes) -> bytes:
    """A file of JSON lines with one or more of them changed, or now and then its bytes."""
    if rng.random() < 0.15:
        return damaged_bytes(rng, content)
    trees = [json.loads(line) for line in content.decode().splitlines()]
    some = {rng.randrange(len(trees)) for _ in range(rng.choice((1, 1, 2)))}
    lines = [
        json_text(damaged_tree(rng, tree) if number in some else tree)
        for number, tree in enumerate(trees)
    ]
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines)), rng.choice(("", "null", "[]", "{", "{}", "\f")))
    return "\n".join(lines).encode()


def damaged_safetensors(rng: random.Random, content: bytes, own: tuple[str, ...] = ()) -> bytes:
    """A safetensors file with its header's values changed, or bytes; ``own`` are the keys of its
    metadata that hold JSON, which is changed most often.
    """
    if rng.random() < 0.2:
        return damaged_bytes(rng, content)
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    if own and rng.random() < 0.8:
        key, metadata = rng.choice(own), header["__metadata__"]
        metadata[key] = json_text(damaged_tree(rng, json.loads(metadata[key])))
    elif rng.random() < 0.3:
        rest = damaged_bytes(rng, rest)
    else:
        header = damaged_tree(rng, header)
    text = json_text(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut short, lengthened, moved, filled, or of something else altogether."""
    body, num = bytearray(content), len(content)
    first = rng.randrange(min(num, 512) if rng.random() < 0.5 else num) if num else 0
    last = min(num, first + rng.choice((1, 4, 16, 256, 4096)))
    way = rng.choice(("flip", "flip", "cut", "extend", "splice", "fill", "insert", "other"))
    if way == "flip":
        for _ in range(rng.choice((1, 2, 8, 64))):
            if num:
                place = rng.randrange(first, last)
                body[place] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del body[first:]
    elif way == "extend":
        body += rng.randbytes(rng.choice((1, 7, 4096)))
    elif way == "splice":
        start = rng.randrange(num) if num else 0
        body[first:last] = body[start : start + last - first]
    elif way == "fill":
        body[first:last] = rng.choice((b"\0", b"\xff", b"[", b"9")) * (last - first)
    elif way == "insert":
        body[first:first] = rng.randbytes(rng.choice((1, 8, 100)))
    else:
        body[: len(body)] = rng.choice(
            (b"", b"PK\x03\x04", b"\x80\x04.", b"\x93NUMPY\x01\0", b"II*\0" + bytes(8), b"null",
             b"<VRTDataset/>", b"[" * 100_000, rng.randbytes(64))
        )  # fmt: skip
    return bytes(body)


# Survey


@dataclass(frozen=True)
class Kind:
    """A kind of file, with ``num_cases`` cases of which one in ``EVERY`` is looked at.

    ``damage`` makes other bytes of its bytes, ``use(file)`` reads it as the package does. One case
    in ``pipes`` has a pipe in the file's place; 0: none has.
    """

    damage: Callable[[random.Random, bytes], bytes]
    use: Callable[[Path], object]
    num_cases: int = 200
    pipes: int = 40


@dataclass
class Counts:
    """What came of a kind's cases: how many were taken, how many refused, and what went wrong."""

    taken: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self, name: str) -> str:
        """A row of a table in Markdown."""
        cases = self.taken + self.refused + len(self.wrong)
        figures = (name, cases, self.taken, self.refused, len(self.wrong), f"{self.seconds:.1f}")
        return f"| {' | '.join(map(str, figures))} |"


HEAD = "| file | cases | taken | refused | anything else | seconds |\n|---|--:|--:|--:|--:|--:|"


def survey(name: str, kind: Kind, file: Path) -> Counts:
    """Damage a valid file again and again, in a process of its own, and count what comes of it.

    The cases are the same every time. What is valid must be taken, or nothing is known.
    """
    kind.use(file)
    began, counts, number = time.monotonic(), Counts(), 0
    content = file.read_bytes()
    while number < kind.num_cases:
        number = _in_own_process(name, kind, file, content, number, counts)
    counts.seconds = time.monotonic() - began
    return counts


def _in_own_process(
    name: str, kind: Kind, file: Path, content: bytes, first: int, counts: Counts
) -> int:
    """Cases from ``first`` until one ends the process or takes too long; the next case's number."""
    context = multiprocessing.get_context("fork")  # the example and the libraries are there already
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_cases, args=(name, kind, file, content, first, theirs), daemon=True
    )
    process.start()
    theirs.close()
    number = first
    try:
        while number < kind.num_cases:
            if not ours.poll(MOST_SECONDS):
                counts.wrong.append(f"case {number}: not ended after {MOST_SECONDS:g} s")
                return number + EVERY
            outcome, text = ours.recv()
            if outcome == "wrong":
                counts.wrong.append(f"case {number}: {text}")
            else:
                setattr(counts, outcome, getattr(counts, outcome) + 1)
            number += EVERY
    except EOFError:
        process.join(5)
        counts.wrong.append(f"case {number}: ended the interpreter (exit code {process.exitcode})")
        return number + EVERY
    finally:
        process.kill()
        process.join()
        ours.close()
    return number


def _cases(name: str, kind: Kind, file: Path, content: bytes, first: int, pipe: Any) -> None:
    if Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in range(first, kind.num_cases, EVERY):
        rng = random.Random(f"{name} {number}")
        file.unlink(missing_ok=True)
        if kind.pipes and number % kind.pipes == kind.pipes - 1:
            os.mkfifo(file)
        else:
            file.write_bytes(kind.damage(rng, content))
        pipe.send(outcome_of(lambda: kind.use(file)))


def outcome_of(use: Callable[[], object]) -> tuple[str, str]:
    """``taken``, ``refused``, or ``wrong`` with what went wrong."""
    try:
        use()
    except BharatEOError as refusal:
        text = str(refusal)
        if len(text) < MOST_CHARACTERS and text.isprintable():
            return "refused", text
        return "wrong", f"refused in {len(text)} characters or several lines: {text[:400]!r}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        own = [at for at in traceback.extract_tb(error.__traceback__) if "bharateo" in at.filename]
        last = own[-1] if own else where
        return "wrong", (
            f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} ({last.name}): "
            f"{str(error)[:200]!r}"
        )
    return "taken", ""


def summary(wrong: list[str]) -> Mapping[str, int]:
    """How often each thing went wrong, whatever the case."""
    return Counter(text.partition(": ")[2][:160] for text in wrong)
