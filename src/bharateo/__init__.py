"""BharatEO: masked-autoencoder pretraining for Earth observation with weak land-cover labels.

The names in ``__all__`` are the public API: they stay where they are, and what they do changes only
with a line in CHANGELOG.md. Everything else may move. Each is imported when it is first used, so
that ``import bharateo`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bharateo.version import __version__ as __version__

__all__ = [  # noqa: RUF022 (in groups, as the documentation lists them)
    # Configuration
    "Config",
    "choose_pixels",
    "load_config",
    "with_settings",
    # What the verbs make, and where they say what they do
    "Dataset",
    "Display",
    "Run",
    # One function a verb
    "ablate",
    "build",
    "embed",
    "evaluate",
    "evaluate_task",
    "explore",
    "export",
    "map_raster",
    "pretrain",
    "probe",
    "probe_points",
    "search",
    "tokens",
    "write_report",
    # What some verbs take: how to read a raster, how to make vectors, what to count and plan
    "Accounting",
    "Embedding",
    "PlanRequest",
    "Reading",
    # Places, pixels and classes
    "BHARATEO_CLASSES",
    "ClassScheme",
    "Roi",
    "Sensor",
    "WORLDCOVER",
    "parse_roi",
    "write_sample",
    # Patches, masks and models
    "Batch",
    "BharatEOEncoder",
    "FrozenEncoder",
    "Mask",
    "fixed_batches",
    "mask_from_noise",
    "num_masked",
    "patchify",
    "unpatchify",
    # Looking at chips and at what a run makes of them
    "Example",
    "Panel",
    "class_panels",
    "class_rgb",
    "composite_rgb",
    "error_panels",
    "error_top",
    "label_panels",
    "reconstruct",
    "reconstruction_panels",
    "token_panels",
    # Figures of a notebook: the last line of a cell
    "Figure",
    "show_account",
    "show_chips",
    "show_confusion",
    "show_curves",
    "show_map",
    "show_patch_classes",
    "show_picture",
    "show_probes",
    "show_reconstructions",
    "show_regions",
    "show_scores",
    "show_tokens",
    # The base of all errors raised on purpose; the others are in bharateo.errors
    "BharatEOError",
]

_HOMES = {
    "accounting": ("Accounting",),
    "chips.store": ("Dataset",),
    "config": ("Config", "load_config", "with_settings"),
    "demo": ("choose_pixels=choose",),
    "display": ("Display",),
    "inference.embed": ("Embedding",),
    "inference.encoder": ("FrozenEncoder",),
    "inference.inputs": ("Reading",),
    "errors": ("BharatEOError",),
    "evaluation.reconstruction": ("Example", "reconstruct=examples"),
    "handover.hub": ("BharatEOEncoder",),
    "landcover": ("BHARATEO_CLASSES", "ClassScheme", "WORLDCOVER"),
    "models.heads": ("Batch",),
    "models.patches": ("Mask", "mask_from_noise", "num_masked", "patchify", "unpatchify"),
    "regions": ("Roi", "parse_roi"),
    "report.notebook": ("Figure", "show_account", "show_chips", "show_confusion", "show_curves",
                        "show_map", "show_patch_classes", "show_picture", "show_probes",
                        "show_reconstructions", "show_regions", "show_scores", "show_tokens"),
    "report.panels": ("Panel", "class_panels", "error_panels", "error_top", "label_panels",
                      "reconstruction_panels", "token_panels"),
    "report.render": ("class_rgb", "composite_rgb"),
    "sensor": ("Sensor",),
    "sources.sample": ("write_sample",),
    "stages": ("ablate", "build", "embed", "evaluate", "evaluate_task", "explore", "export",
               "map_raster", "pretrain", "probe", "probe_points", "search", "tokens",
               "write_report"),
    "training.data": ("fixed_batches",),
    "training.planning": ("PlanRequest=Request",),
    "training.run": ("Run",),
}  # fmt: skip
"""Module -> its public names, ``PUBLIC=THERE`` where the two differ."""

_FOUND = {
    public: (f"bharateo.{module}", there or public)
    for module, names in _HOMES.items()
    for public, _, there in (name.partition("=") for name in names)
}

if TYPE_CHECKING:
    from bharateo.accounting import Accounting
    from bharateo.chips.store import Dataset
    from bharateo.config import Config, load_config, with_settings
    from bharateo.demo import choose as choose_pixels
    from bharateo.display import Display
    from bharateo.errors import BharatEOError
    from bharateo.evaluation.reconstruction import Example
    from bharateo.evaluation.reconstruction import examples as reconstruct
    from bharateo.handover.hub import BharatEOEncoder
    from bharateo.inference.embed import Embedding
    from bharateo.inference.encoder import FrozenEncoder
    from bharateo.inference.inputs import Reading
    from bharateo.landcover import BHARATEO_CLASSES, WORLDCOVER, ClassScheme
    from bharateo.models.heads import Batch
    from bharateo.models.patches import Mask, mask_from_noise, num_masked, patchify, unpatchify
    from bharateo.regions import Roi, parse_roi
    from bharateo.report.notebook import (
        Figure,
        show_account,
        show_chips,
        show_confusion,
        show_curves,
        show_map,
        show_patch_classes,
        show_picture,
        show_probes,
        show_reconstructions,
        show_regions,
        show_scores,
        show_tokens,
    )
    from bharateo.report.panels import (
        Panel,
        class_panels,
        error_panels,
        error_top,
        label_panels,
        reconstruction_panels,
        token_panels,
    )
    from bharateo.report.render import class_rgb, composite_rgb
    from bharateo.sensor import Sensor
    from bharateo.sources.sample import write_sample
    from bharateo.stages import (
        ablate,
        build,
        embed,
        evaluate,
        evaluate_task,
        explore,
        export,
        map_raster,
        pretrain,
        probe,
        probe_points,
        search,
        tokens,
        write_report,
    )
    from bharateo.training.data import fixed_batches
    from bharateo.training.planning import Request as PlanRequest
    from bharateo.training.run import Run
else:

    def __getattr__(name: str) -> Any:
        """A public name, imported when it is first used."""
        if name not in _FOUND:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, there = _FOUND[name]
        value = getattr(import_module(module), there)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
