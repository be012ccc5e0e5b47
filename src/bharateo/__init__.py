"""BharatEO: masked-autoencoder pretraining for Earth observation with weak land-cover labels.

The names in ``__all__`` are the public API: they stay where they are, and what they do changes only
with a line in CHANGELOG.md. Everything else may move. They are listed once, in ``__init__.pyi``,
and each is imported when it is first used, so that ``import bharateo`` costs nothing.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_HOMES = {
    name.asname: (node.module, name.name)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body
    if isinstance(node, ast.ImportFrom)
    for name in node.names
}
__all__ = sorted(_HOMES.keys() - {"__version__"})

_MOVED = {
    "Embedding": "the options of bharateo.embed",
    "PlanRequest": "the options of bharateo.tokens",
    "evaluate_task": "bharateo.probe_task",
    "probe_points": "bharateo.teach",
}
"""What 0.1 had, and what has taken its place; for one release."""


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used."""
    if name not in _HOMES:
        hint = f"; use {_MOVED[name]}" if name in _MOVED else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    module, there = _HOMES[name]
    value = globals()[name] = getattr(import_module(module), there)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
