"""The whole way in one verb: pixels, dataset, run, evaluation, report."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bharateo.errors import ConfigError, UnreachableError
from bharateo.verbs import pipeline
from bharateo.verbs.arguments import MaybeDisplay, Output, Places, Readout

if TYPE_CHECKING:
    from bharateo.config import Config
    from bharateo.display import Display

PATIENCE_S = 2.0

_SAMPLE = (
    "the packaged sample (one Sentinel-2 L1C crop, lossy JPEG 2000, with OpenStreetMap land use)"
)


def demo(
    output: Output = "runs/demo",
    display: MaybeDisplay = None,
    *,
    preset: Literal["v0", "seed", "sample"] = "v0",
    worldcover_root: str | None = None,
    roi: Places = (),
    epochs: int | None = None,
    seed: int | None = None,
) -> Path:
    """The whole way: pixels, dataset, training, evaluation, report.

    Builds a dataset, trains a masked autoencoder on it, evaluates it and writes a report. Reads
    ESA WorldCover where it answers within seconds, else the packaged sample; the first line says
    which and why. A root or ROI that was asked for is never replaced. On the sample it ends with
    twenty places like a village, and a land-use map of every pixel.

      bharateo demo
      bharateo demo --roi pune=73.86,18.52 --output runs/pune
      bharateo demo --preset sample --output runs/sentinel2
      bharateo demo --preset seed --output runs/seed

    Args:
        output: gets dataset/ and run/ with run/report.html
        preset: v0: our model on held-out ground; seed: the first experiment as published; sample:
            v0 on the packaged ten-band Sentinel-2 scene, which can map rasters
        worldcover_root: where WorldCover tiles lie: a folder, an http(s) URL or an s3 URL that
            holds v200/2021/map/... (default: $BHARATEO_WORLDCOVER_ROOT, else the public bucket)
        roi: a place to sample from, as NAME=LON,LAT[,SIZE_PX] or NAME=WEST,SOUTH,EAST,NORTH or a
            known name (delhi_ncr, shekhawati, mathura_belt); repeat for several
        epochs: epochs to train (default: the preset's)
        seed: seed of every random draw (default: 42)

    Returns:
        The report's path.

    Raises:
        UnreachableError: the root or ROIs asked for cannot be read.
    """
    from bharateo.display import Display
    from bharateo.files import write_json

    output, display = Path(output), display or Display()
    config, why = choose_pixels(preset, worldcover_root, roi)
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
    folder = output / "run"
    dataset = pipeline.build(config, output / "dataset", display)
    run = pipeline.pretrain(config, dataset, folder, display)
    source = config.data.source
    write_json(folder / "provenance.json", {"source": source, "why": why.removeprefix("Pixels: ")})
    pipeline.evaluate(run, dataset, folder / "evaluation.json", display)
    report = pipeline.write_report(folder, display)
    program = "bharateo" if shutil.which("bharateo") else sys.argv[0]
    page = output / "explore"
    if source == "sample":
        _look(folder, config, output, display)
    display.say(f"next, a page to explore:   {program} explore {folder} --output {page}")
    if source != "sample":  # palette colours: no raster of anybody's looks like that
        sentinel2 = output.with_name(f"{output.name}-sentinel2")
        display.say(
            f"next, a Sentinel-2 model:  {program} demo --preset sample --output {sentinel2}"
        )
    display.say(
        f"next, a map of your raster from your points:  {program} teach RASTER.tif "
        f"--points POINTS.gpkg --output {output / 'my-map'}"
    )
    return report


def _look(run: Path, config: Config, output: Path, display: Display) -> None:
    """What people like to look at: places like a village, and the scene's land use as a map."""
    from bharateo.sources.sample import LAND_USE, VILLAGE, fetch_sample, find_sample, write_sample
    from bharateo.verbs.ground import embed, search, teach

    scene, _ = write_sample(output / "scene")
    vectors = output / "alike" / "vectors.tif"
    has_energies = config.model.embedding == "energies"
    readout: Readout = "views+energies" if has_energies else "token"
    embed(run, scene, vectors, readout=readout, display=display)
    search(vectors, [VILLAGE], output / "alike", display=display)
    land_use = (find_sample() or fetch_sample()) / LAND_USE
    teach(scene, land_use, output / "map", class_field="fclass", display=display)
    display.say(f"look: {output / 'alike' / 'sheet.png'}, {output / 'map' / 'map.png'}")


def choose_pixels(
    preset: str, root: str | None = None, rois: Sequence[str] = ()
) -> tuple[Config, str]:
    """The configuration to run and one sentence on where its pixels come from and why.

    ``preset`` is ``v0`` or ``seed``, on ESA WorldCover if it answers within seconds and on the
    packaged sample otherwise; or ``sample``. A root or ROI that was asked for is never replaced.

    Raises:
        ConfigError: the sample is asked for together with places of one's own.
        UnreachableError: the root or ROIs asked for cannot be read.
    """
    from bharateo.config import load_config, preset_path
    from bharateo.regions import parse_roi
    from bharateo.sources.worldcover import reachable

    config = load_config(preset_path(preset))
    if preset == "sample":
        if root or rois:
            raise ConfigError(
                "--preset sample is one scene that comes with the package: leave --roi and "
                "--worldcover-root out, or take another preset"
            )
        return config, f"Pixels: {_SAMPLE}, as asked for."
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
    return config, f"Pixels: {_SAMPLE}, not ESA WorldCover, because {reason}"
