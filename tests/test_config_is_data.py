"""A configuration may come from anybody: whatever it holds, nothing in it is made or called."""

import contextlib
import itertools
import os
from pathlib import Path

import pytest
import yaml

from bharateo.config import (
    Config,
    HeadConfig,
    differences,
    load_config,
    to_yaml,
    with_settings,
)
from bharateo.errors import ConfigError
from bharateo.evaluation.ablation import Factor
from bharateo.models.heads import build_heads
from bharateo.models.mae import build_model
from small_datasets import small_config

BETA = "heads.pixels.options.beta"
PLACES = (
    BETA,
    "heads.pixels.weight",
    "data.geotiff.nodata",
    "data.geotiff.bands.red",
    "data.geotiff.attribution",
    "data.sentinel2.assets",
    "data.plan.split",
    "training.grad_clip",
    "machine.compile",
    "model",
)


def attacks(folder):
    """Values that would leave ``folder/made`` behind if anything in them were called."""
    made = folder / "made"
    system = f'{{"class_path": "os.system", "init_args": {{"command": "touch {made}"}}}}'
    shelf = f'{{"class_path": "shelve.DbfilenameShelf", "init_args": {{"filename": "{made}"}}}}'
    return {
        "class_path as a text": system,
        "class_path as a mapping": yaml.safe_load(system),
        "a shelf as a text": shelf,
        "a shelf as a mapping": yaml.safe_load(shelf),
        "class_path in a list": [yaml.safe_load(system)],
        "a name alone": "os.getcwd",
    }


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("made"))


def tiny_model():
    return build_model(small_config().model, [0.0, 0.0], [1.0, 1.0])


def use(config):
    """What a training does first with the heads."""
    return build_heads(config.heads, tiny_model())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", ["os.system", "shelve.DbfilenameShelf"])
@pytest.mark.parametrize("way", ["file", "--set", "mapping"])
def test_reading_a_configuration_runs_nothing_that_a_text_names(tmp_path, program, way):
    """As seen: a text that spells a class with its arguments was made into the class."""
    given = {"os.system": "command", "shelve.DbfilenameShelf": "filename"}[program]
    made = tmp_path / "made"
    argument = f"touch {made}" if given == "command" else str(made)
    value = f'{{"class_path": "{program}", "init_args": {{"{given}": "{argument}"}}}}'
    record, overrides = {}, []
    if way == "file":
        record = {"heads": {"pixels": {"options": {"beta": value}}}}
    elif way == "--set":
        overrides = [f"{BETA}='{value}'"]
    else:
        overrides = {BETA: value}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(record))
    with contextlib.suppress(ConfigError):
        config = load_config(tmp_path / "c.yaml", overrides)
        assert config.heads["pixels"].options == {"beta": value}
    assert left_behind(tmp_path) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", attacks(Path()))
@pytest.mark.parametrize("way", ["file", "--set", "mapping", "with_settings", "dotted --set"])
@pytest.mark.parametrize("place", PLACES)
def test_a_value_that_names_a_class_is_data_or_refused(tmp_path, name, way, place):
    value, overrides = attacks(tmp_path)[name], []
    record = {}
    if way == "file":
        inner = record
        *sections, last = place.split(".")
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    elif way == "--set":
        overrides = [f"{place}={yaml.safe_dump(value, default_flow_style=True)}"]
    elif way == "mapping":
        overrides = {place: value}
    elif way == "dotted --set":
        overrides = [f"{place}.class_path=os.system", f"{place}.init_args.command=touch made"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(ConfigError) as refused:
        if way == "with_settings":
            config = with_settings(Config(), {place: value})
        else:
            config = load_config(tmp_path / "c.yaml", overrides)
        use(config)
    assert left_behind(tmp_path) == []
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {made}']",
        "!!python/object/new:os.system ['touch {made}']",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!!set {{a, b}}",
        "!!int '5'",
        "!own 5",
        "! 5",
    ],
)
def test_a_tag_is_refused_wherever_it_stands(tmp_path, text):
    text = text.format(made=tmp_path / "made")
    (tmp_path / "c.yaml").write_text(f"heads: {{pixels: {{options: {{beta: {text}}}}}}}\n")
    (tmp_path / "key.yaml").write_text(f"? {text}\n: 1\n")
    (tmp_path / "plain.yaml").write_text("{}")
    for refused in (
        lambda: load_config(tmp_path / "c.yaml"),
        lambda: load_config(tmp_path / "key.yaml"),
        lambda: load_config(tmp_path / "plain.yaml", [f"{BETA}={text}"]),
        lambda: Factor.parse(f"{BETA}=1,{text.replace(',', ';')}"),
    ):
        with pytest.raises(ConfigError, match=r"a tag \(!\) is not read: give a plain value"):
            refused()
    assert left_behind(tmp_path) == []


def test_nothing_in_a_stored_run_is_more_than_compared(tmp_path):
    """``pretrain`` compares RUN/config.yaml with what is wanted, key by key."""
    stored = yaml.safe_load(to_yaml(Config()))
    for value in attacks(tmp_path).values():
        stored["heads"]["pixels"]["options"]["beta"] = value
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
        assert any(BETA in each for each in differences(stored, Config()))
        with pytest.raises(ConfigError):
            use(load_config(tmp_path / "config.yaml"))
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("path", ["a\0b", "x" * 10_000, "x/" * 3000, ""], ids=range(4))
def test_a_path_that_can_be_no_file_is_refused(path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (10**5000, "a whole number of 16610 bits is too large"),
        ("x" * 20_000, "more than 10000 in all"),
        ("a\0b", r"the text 'a\\x00b' has control characters"),
        ("a\ud800", "control characters"),
        ({1: "a", "1": "b"}, "two are the same"),
        ({None: 1}, "is no text"),
        ({True: 1}, "is no text"),
        (os, "a module is no plain value"),
        ({"a": {1, 2}}, "a set is no plain value"),
    ],
    ids=itertools.count(),
)
def test_only_plain_values_of_bounded_length_are_settings(value, said):
    with pytest.raises(ConfigError, match=said) as refused:
        load_config("v0", {"data.geotiff.title": value})
    assert len(str(refused.value)) < 500


def test_a_value_that_holds_itself_is_refused():
    value = {}
    value["again"] = value
    with pytest.raises(ConfigError, match="nested deeper than 20 levels"):
        with_settings(Config(), {"heads": value})


# Heads' options are plain data that the head holds to its own types and bounds.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": "0.1"}, r"beta: input should be a valid number, not '0\.1'"),
        ({"beta": {"class_path": "os.system"}}, "beta: input should be a valid number"),
        ({"beta": float("nan")}, "beta: .*nan"),
        ({"beta": float("inf")}, "beta: .*inf"),
        ({"beta": -1}, "beta: input should be greater than 0, not -1"),
        ({"beta": 0}, "beta: input should be greater than 0"),
        ({"beta": True}, "beta: input should be a valid number"),
        ({"beta": None}, "beta: input should be a valid number"),
        ({"model": 1}, "'model' is no option; known are beta"),
        ({"x" * 5000: 1}, "is no option; known are beta"),
    ],
    ids=itertools.count(),
)
def test_an_option_that_does_not_fit_is_refused_by_its_head(options, said):
    with pytest.raises(ConfigError, match=rf"^heads\.pixels\.options.*{said}") as refused:
        build_heads({"pixels": HeadConfig(1.0, options)}, tiny_model())
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
