"""What files may hold, for editors and other programs: ``bharateo schema``."""

from __future__ import annotations

from importlib import import_module
from json import dumps
from typing import Any, Literal, get_args

from bharateo.verbs.arguments import AlwaysShown

What = Literal[
    "config", "dataset", "contract", "evaluation", "probes", "ablation", "task", "precision", "map",
    "probe", "composite", "sample", "areas", "change",
    "finetune",
]  # fmt: skip

_MODELS = {
    "dataset": "chips.description:Description",
    "contract": "training.contract:Contract",
    "evaluation": "results:Evaluation",
    "probes": "results:Probes",
    "ablation": "results:Ablation",
    "task": "results:TaskEvaluation",
    "precision": "results:Retrieval",
    "map": "inference.map:MapRecord",
    "composite": "composite.plan:CompositeRecord",
    "probe": "evaluation.own_classes:OwnClasses",
    "sample": "survey.sample:SampleRecord",
    "areas": "survey.areas:AreasRecord",
    "change": "survey.change:ChangeRecord",
    "finetune": "inference.dense:FineTuned",
}
"""The typed record that is a file's whole content; of a configuration it is ``Config``."""


def schema(what: What = "config", *, display: AlwaysShown = None) -> dict[str, Any]:
    """The JSON Schema of a configuration, or of a file that a verb writes.

    Prints a JSON Schema (draft 2020-12), with which an editor completes the keys of a YAML
    configuration, shows what each means and underlines what does not fit.

      bharateo schema > bharateo.schema.json
      bharateo schema evaluation

    In VS Code with the extension YAML, and in every editor with yaml-language-server, the first
    line of the configuration names the file:

      # yaml-language-server: $schema=bharateo.schema.json

    Args:
        what: a configuration; dataset.json; a run's contract.json, evaluation.json, probes.json;
            ablation.json; what probe-task writes; precision.json; a map's MAP.json; a
            composite's NAME.json; probe.json; POINTS.json of sample; AREAS.json; CHANGE.json;
            finetune.json

    Returns:
        The schema.

    Raises:
        ConfigError: there is no such schema.
    """
    from bharateo.config import json_schema
    from bharateo.display import Display
    from bharateo.errors import ConfigError

    if what not in get_args(What):
        raise ConfigError(f"{what!r} has no schema; known are {', '.join(get_args(What))}")
    if what == "config":
        said = json_schema()
    else:
        module, _, record = _MODELS[what].partition(":")
        said = getattr(import_module(f"bharateo.{module}"), record).model_json_schema()
    said = {"$schema": "https://json-schema.org/draft/2020-12/schema", **said}
    (display or Display()).say(dumps(said, indent=2))
    return said
