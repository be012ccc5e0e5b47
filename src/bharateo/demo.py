"""The whole way in one verb: pixels, dataset, run, evaluation, report."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bharateo import stages
from bharateo.config import Config, load_config, preset_path
from bharateo.display import Display
from bharateo.errors import ConfigError, UnreachableError
from bharateo.files import write_json

PATIENCE_S = 2.0

_SAMPLE = (
    "the packaged sample (one Sentinel-2 L1C crop, lossy JPEG 2000, with OpenStreetMap land use)"
)


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
    epochs = epochs or config.training.epochs
    config = replace(
        config,
        data=replace(config.data, seed=config.data.seed if seed is None else seed),
        training=replace(
            config.training,
            epochs=epochs,
            warmup_epochs=min(config.training.warmup_epochs, epochs / 4),  # a short demo's, too
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
    report = stages.write_report(run_folder, display)
    for line in next_steps(output, config.data.source):
        display.say(line)
    return report


def next_steps(output: Path, source: str) -> list[str]:
    """What to type after a demo in ``output``, as this program was called."""
    on_path = shutil.which("bharateo") is not None
    program = "bharateo" if on_path else sys.argv[0]
    run = output / "run"
    steps = [
        f"next, a page to explore:   {program} explore {run} --output {output / 'explore'}",
    ]
    if source == "worldcover":  # palette colours: no raster of anybody's looks like that
        sentinel2 = output.with_name(f"{output.name}-sentinel2")
        steps.append(
            f"next, a Sentinel-2 model:  {program} demo --preset sample --output {sentinel2}"
        )
    else:
        steps.append(
            f"next, a map of your ten-band Sentinel-2 raster:  {program} map {run} RASTER.tif "
            f"--output {output / 'map.tif'}"
        )
    return steps


def choose(preset: str, root: str | None = None, rois: Sequence[str] = ()) -> tuple[Config, str]:
    """The configuration to run and one sentence on where its pixels come from and why.

    ``preset`` is ``v0`` or ``seed``, on ESA WorldCover if it answers within seconds and on the
    packaged sample otherwise; or ``sample``. A root or ROI that was asked for is never replaced.

    Raises:
        ConfigError: the sample is asked for together with places of one's own.
        UnreachableError: the root or ROIs asked for cannot be read.
    """
    if preset == "sample":
        if root or rois:
            raise ConfigError(
                "--preset sample is one scene that comes with the package: leave --roi and "
                "--worldcover-root out, or take another preset"
            )
        return load_config(preset_path("sample")), f"Pixels: {_SAMPLE}, as asked for."
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
    return config, (f"Pixels: {_SAMPLE}, not ESA WorldCover, because {reason}")
