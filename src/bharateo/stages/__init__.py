"""The stages with their progress shown: what the verbs, the demo and people's own programs call.

Runs and datasets are taken open or as their folders, paths as text or ``Path``. Every stage can be
killed and called again, and goes on where it stopped. ``display`` says where progress is shown: on
the terminal or notebook if not given, nowhere with ``Display(quiet=True)``.
"""

from bharateo.stages.ground import (
    embed,
    embed_for_search,
    explore,
    export,
    map_raster,
    probe_points,
    score_search,
    search,
)
from bharateo.stages.learning import (
    build,
    dry_run,
    evaluate,
    open_recipe,
    pretrain,
    tokens,
    write_report,
)
from bharateo.stages.probing import ablate, evaluate_task, probe

__all__ = [
    "ablate",
    "build",
    "dry_run",
    "embed",
    "embed_for_search",
    "evaluate",
    "evaluate_task",
    "explore",
    "export",
    "map_raster",
    "open_recipe",
    "pretrain",
    "probe",
    "probe_points",
    "score_search",
    "search",
    "tokens",
    "write_report",
]
