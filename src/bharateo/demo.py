"""The whole way in one verb: pixels, dataset, run, evaluation, report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bharateo import stages
from bharateo.config import Config, load_config, preset_path
from bharateo.display import Display
from bharateo.errors import UnreachableError
from bharateo.files import write_json

PATIENCE_S = 2.0


def demo(
    output: Path,
    display: Display,
    preset: str = "v0",
    root: str | None = None,
    rois: Sequence[str] = (),
    epochs: int | None = None,
    seed: int | None = None,
) -> Path:
    """Build, pretrain, evaluate and report; returns the report's path.

    WorldCover is used where it answers within seconds, the packaged sample otherwise; the first
    line says which and why. A root or ROI that was asked for is never replaced.

    Raises:
        UnreachableError: the root or ROIs asked for cannot be read.
    """
    config, why = choose(preset, root, rois)
    display.say(why)
    config = replace(
        config,
        data=replace(config.data, seed=config.data.seed if seed is None else seed),
        training=replace(
            config.training,
            epochs=epochs or config.training.epochs,
            seed=config.training.seed if seed is None else seed,
        ),
    )
    run_folder = output / "run"
    dataset = stages.build(config, output / "dataset", display)
    run = stages.pretrain(config, dataset, run_folder, display)
    write_json(
        run_folder / "provenance.json",
        {"source": config.data.source, "why": why.removeprefix("Pixels: ")},
    )
    stages.evaluate(run, dataset, run_folder / "evaluation.json", display)
    return stages.report(run_folder, display)


def choose(preset: str, root: str | None, rois: Sequence[str]) -> tuple[Config, str]:
    """The configuration to run and one sentence on where its pixels come from and why."""
    from bharateo.regions import parse_roi
    from bharateo.sources.worldcover import reachable

    config = load_config(preset_path(preset))
    names = tuple(rois) or config.data.rois
    places = [parse_roi(text) for text in names]
    asked_for = root or os.environ.get("BHARATEO_WORLDCOVER_ROOT")
    reason = reachable(asked_for, places, timeout_s=PATIENCE_S)
    if reason is None:
        data = replace(config.data, rois=names, worldcover_root=root)
        return replace(config, data=data), (
            f"Pixels: ESA WorldCover from {asked_for or 'the public bucket'}, "
            f"regions {', '.join(place.name for place in places)}."
        )
    if asked_for or rois:
        raise UnreachableError(
            f"{reason} Mend the root (--worldcover-root, BHARATEO_WORLDCOVER_ROOT) or leave it "
            "and --roi out to run on the packaged sample"
        )
    sample = load_config(preset_path("sample"))
    config = replace(config, data=sample.data) if preset == "seed" else sample
    return config, (
        "Pixels: the packaged sample (one Sentinel-2 L1C crop, lossy JPEG 2000, with OpenStreetMap "
        f"land use), not ESA WorldCover, because {reason}"
    )
