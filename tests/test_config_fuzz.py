"""Configurations changed at random: each is read, or refused by name in one short line."""

import random
import re
import time
from pathlib import Path

import pytest
import yaml

from bharateo.config import load_config, preset_path
from bharateo.errors import BharatEOError

SHIPPED = sorted(preset_path("v0").parent.glob("*.yaml"))
EACH = 40
"""Mutants of every configuration that comes with the package."""
MOST_SECONDS = 3.0
"""Of this process's time, for one mutant."""

TOKENS = (
    "2021-13-45", "2021-02-30", "2021-01-01 25:61:61", "0001-01-01", "9" * 5000, "-" + "9" * 5000,
    "0." + "1" * 5000, "1e" + "9" * 50, "1e999", "-1e999", "0b2", "0b", "0x", "0xg", "0o8", "08",
    "0_", "_", "1:99:99", "9" * 400 + ":59", "[" * 3000, "[" * 15 + "]" * 15, "{a: " * 3000,
    "- " * 3000, "? " * 3000, "[[[[", "]]]]", "{", "}", "*a", "&a", "&a [*a]", "&a {b: *a}",
    "{<<: {a: 1}}", "{<<: [*a, *b]}", "!!int x", "!!float x", "!!timestamp x", "!!binary '*'",
    "!!set {a}", "!!omap [a]", "!!python/object/apply:os.getcwd []", "!!python/name:os.getcwd ''",
    "! x", "!<tag:x> x", "!!", "%YAML 9.9", "%TAG ! x", "--- ", "...", "? [a, b]\n: c", "{[a]: 1}",
    "<<: 1", "{1: 2}", "{1.5: 2}", "{null: 2}", "{true: 2}", "{2021-01-01: 2}", "{a: 1, a: 2}",
    ".nan", ".inf", "-.inf", "nan", "null", "~", "true", "yes", "off", "''", '""', '"', "'", "\\",
    '"\\x00"', '"\\U99999999"', '"\\ud800"', '"\\q"', "|", ">", "|99", "@", "`",
    "x" * 100_000, "é" * 50_000,
    "\t", "\x85", "\u2028", "\ufeff", "#", "-", "-1", "0", "0.5", "1", "1.5", "1e9", "-0.0", "[]",
    "{}", "[1, 2]", "[a, b, c, d]", '{"class_path": "os.getcwd", "init_args": {}}',
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 1, 10**30, 10**4000, -0.5, 1.5, 1e300, float("nan"), float("inf"), "", "x",
    "x" * 50_000, "a\0b", "a\nb", "5", [], {}, [1], [[[[]]]], {"a": 1}, {1: 2}, {"x" * 5000: 1},
    {"class_path": "os.getcwd", "init_args": {}}, [{}] * 100, list(range(2000)), b"bytes", {1, 2},
)  # fmt: skip
BYTES = (b"\0", b"\xff", b"\xed\xa0\x80", b"\x80", b"\x1b", b"\n", b"\r", b" ", b":", b"\t", b"-")


def mutations(rng):
    """Cases (what was done, the file's bytes, overrides) from every configuration shipped."""
    for path in SHIPPED:
        for number in range(EACH):
            how = (bytes_changed, token_put, value_put, key_put, overridden)[number % 5]
            yield f"{path.stem}, {number}: {how.__name__}", *how(rng, path.read_bytes())


def bytes_changed(rng, content):
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content))
        stop = min(len(content), start + rng.choice((0, 1, 1, 5, 200)))
        new = rng.choice(
            (b"", content[start:stop] * 2, rng.choice(BYTES), rng.choice(BYTES) * 3000)
        )
        content = content[:start] + new + content[stop:]
    return content, ()


def token_put(rng, content):
    """One value of the text replaced by something that a parser may stumble over."""
    values = list(re.finditer(rb"(?<=: )[^\s,{}\[\]]+", content))
    value = rng.choice(values)
    token = rng.choice(TOKENS).encode("utf-8", "surrogatepass")
    return content[: value.start()] + token + content[value.end() :], ()


def value_put(rng, content):
    """One value of the record replaced by another of any type."""
    record = yaml.safe_load(content)
    inner, key = rng.choice(list(places(record)))
    inner[key] = rng.choice(VALUES)
    return yaml.dump(record).encode("utf-8", "surrogatepass"), ()


def key_put(rng, content):
    """One key of the record replaced, or one more put beside it."""
    record = yaml.safe_load(content)
    inner, key = rng.choice([(inner, key) for inner, key in places(record) if type(inner) is dict])
    value = inner.pop(key) if rng.random() < 0.5 else inner[key]
    inner[
        rng.choice((1, 1.5, None, True, "", "x" * 5000, f"{key}s", "a.b", "\0", "class_path"))
    ] = value
    return yaml.dump(record).encode("utf-8", "surrogatepass"), ()


def overridden(rng, content):
    record = yaml.safe_load(content)
    dotted = rng.choice([path for path in dotted_keys(record) if path])
    key = rng.choice(
        (dotted, f"{dotted}.x", f"{dotted}s", f".{dotted}", "", "a." * 3000, "x" * 5000)
    )
    return content, (
        f"{key}={rng.choice(TOKENS)}",
        rng.choice(("model.size=base", "training.epochs=2")),
    )


def places(value):
    """Every (container, key) in a record."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from places(item)


def dotted_keys(record, above=""):
    for key, value in record.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{above}{key}.")


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_configuration_is_read_or_refused_in_one_short_line(seed, tmp_path):
    wrong, read = [], 0
    for number, (what, content, overrides) in enumerate(mutations(random.Random(seed))):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(content)
        began = time.process_time()
        try:
            load_config(path, overrides)
            read += 1
        except BharatEOError as error:
            said = str(error).replace(str(path), "FILE")
            if "\n" in said or len(said) > 400:
                wrong.append(f"{what}: says {len(said)} characters: {said[:200]!r}")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__} {str(error)[:100]!r}")
        if time.process_time() - began > MOST_SECONDS:
            wrong.append(f"{what}: took {time.process_time() - began:.1f} s")
    assert not wrong, f"{len(wrong)} of {number + 1}:\n" + "\n".join(wrong[:20])
    assert 0.02 < read / (number + 1) < 0.7


def test_every_configuration_shipped_is_among_the_examples():
    assert len(SHIPPED) == len(list((Path(__file__).parents[1] / "configs").glob("*.yaml"))) >= 8
