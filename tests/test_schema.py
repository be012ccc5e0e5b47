import json
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml

import bharateo
from bharateo.verbs.cli import main
from bharateo.verbs.schema import What

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def printed(capsys, *words):
    assert main(["schema", *words]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_fits_the_schema(path, capsys):
    printed(capsys).validate(yaml.safe_load(path.read_text()))


def test_what_a_configuration_may_not_hold_the_schema_refuses(capsys):
    schema, record = printed(capsys), yaml.safe_load(CONFIGS[0].read_text())
    for section, key, value in (
        ("training", "lr", "fast"), ("model", "widht", 3), ("data", "source", "tape"),
    ):  # fmt: skip
        wrong = {**record, section: {**record.get(section, {}), key: value}}
        assert not schema.is_valid(wrong), key
    assert not schema.is_valid({**record, "trainning": {}})


@pytest.mark.parametrize("what", get_args(What))
def test_every_file_has_a_schema_that_is_one(what, capsys):
    assert printed(capsys, what).schema["properties"]


def test_a_schema_that_does_not_exist_is_refused(capsys):
    assert main(["schema", "evalution"]) == 2
    assert '"evaluation"' in capsys.readouterr().err
    with pytest.raises(bharateo.BharatEOError, match="'evalution' has no schema; known are config"):
        bharateo.schema("evalution")
