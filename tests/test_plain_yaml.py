import itertools
import os
import time

import pytest
import yaml

from bharateo.config import Config, load_config, parse_config, to_yaml, with_settings
from bharateo.errors import ConfigError
from bharateo.plain_yaml import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x", r"line 2, column 4: an alias \(\*\) is not read"),
        ("a: &x [*x]", "an alias"),
        ("&x a: *x", "an alias"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is given twice"),
        ("training: {epochs: 1, epochs: 2}", "the key 'epochs' is given twice"),
        ("[" * 5000, "is nested deeper than 20 levels"),
        ("{a: " * 5000, "is nested deeper than 20 levels"),
        ("- " * 5000, "is nested deeper than 20 levels"),
        ("? " * 5000, "is nested deeper than 20 levels"),
        ("1.5: a", "a key is a text or a whole number"),
        ("true: a", "a key is"),
        ("null: a", "a key is"),
        ("[1, 2]: a", "a key is"),
        ("a: \0", "unacceptable character|special characters"),
        ('a: "\\U99999999"', ""),
        ("a: 1\n--- \nb: 2", "another document"),
        ("x" * 300_000, "longer than 262144 characters"),
    ],
    ids=itertools.count(),
)
def test_yaml_that_is_not_read_is_refused_in_one_line(text, said):
    with pytest.raises(ConfigError, match=f"^here: .*{said}") as refused:
        parse_yaml(text, "here")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("-3", -3), ("1_000_000", 1_000_000), ("0.5", 0.5), ("1e-3", 1e-3), ("2E5", 2e5),
        (".5", 0.5), ("5.", 5.0), ("-1.5e+3", -1500.0), ("true", True), ("False", False),
        ("null", None), ("~", None), ("", None), ("'5'", "5"), ('"1e-3"', "1e-3"),
        # what YAML 1.1 takes for dates, octal, sexagesimal and true or false
        ("2021-13-45", "2021-13-45"), ("2021-01-01", "2021-01-01"), ("010", "010"), ("0b2", "0b2"),
        ("0x", "0x"), ("0x_", "0x_"), ("12:30:00", "12:30:00"), ("off", "off"), ("no", "no"),
        ("9" * 5000, "9" * 5000), (".inf", ".inf"), (".nan", ".nan"), ("<<", "<<"), ("=", "="),
        ("1e" + "9" * 400, "1e" + "9" * 400),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_only_decimal_numbers_true_false_and_null_are_more_than_texts(text, value):
    found = parse_yaml(text, "here")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text", ["1e-3", "off", "010", "2021-01-01", "5", "null", "é", "a\nb", "x"]
)
def test_a_text_that_looks_like_something_else_comes_back_as_that_text(text):
    config = with_settings(Config(), {"data.geotiff.title": text})
    assert parse_config(parse_yaml(to_yaml(config), "here")).data.geotiff.title == text
    assert yaml.safe_load(to_yaml(config))["data"]["geotiff"]["title"] == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"training: [", "is no YAML"),
        (b"- a\n- b\n", "must hold sections"),
        (b"just words", "must hold sections"),
        (b"\x89PNG\r\n\xff\xfe", r"is no YAML|cannot read"),
    ],
)
def test_a_file_that_holds_no_configuration_is_refused(tmp_path, content, said):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_yaml(tmp_path / "c.yaml")


def test_a_pipe_a_folder_and_a_giant_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with (tmp_path / "giant.yaml").open("wb") as file:
        file.truncate(2**40)
    began = time.monotonic()
    for name in ("pipe", "folder", "giant"):
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            read_yaml(tmp_path / f"{name}.yaml")
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            load_config(tmp_path / f"{name}.yaml")
    assert time.monotonic() - began < 2
