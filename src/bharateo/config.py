"""The configuration of a build and a run: one YAML file, every key declared here with its default.

``bharateo build`` reads the ``data`` section, ``bharateo pretrain`` the others. ``training`` and
``model`` say what is computed, ``machine`` how.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from bharateo.errors import ConfigError


@dataclass(frozen=True)
class SplitConfig:
    """Geographic block splits. ``test`` and ``val`` are fractions of each region's blocks."""

    block_px: int = 512
    """Side of a block; every block belongs to one split whole."""
    buffer_px: int = 32
    """Least distance between pixels of different splits; cut from the blocks' edges."""
    val: float = 0.1
    """Fraction of every region's blocks for validation."""
    test: float = 0.2
    """Fraction of every region's blocks for testing."""
    val_zones: tuple[str, ...] = ()
    """Zones held out whole for validation; with ``test_zones`` alone, ``val`` is a fraction of
    the other zones' blocks."""
    test_zones: tuple[str, ...] = ()
    """Zones held out whole for testing, in place of the fraction ``test``."""


@dataclass(frozen=True)
class PlanConfig:
    """Where chips are taken."""

    strategy: Literal["grid", "random", "blocks", "files"] = "grid"
    """``grid``: stored squares side by side in every block; ``random``: uniform random windows;
    ``blocks``: some squares of every block, fetched together (Sentinel-2, large rasters);
    ``files``: every file is one square (a folder of GeoTIFF chips)."""
    size_px: int = 480
    """Side of a stored square; may be larger than the model's chip, which is then cut from it."""
    chips_per_roi: int | None = None
    """``random`` only: how many to keep from each region, drawn round-robin."""
    min_classes: int = 1
    """Least number of different classes among a chip's labelled pixels."""
    min_valid_fraction: float = 0.5
    """Least share of a chip's pixels that must be valid."""
    num_chips: int | None = None
    """``blocks`` only: how many squares in all, shared evenly by the zones; ``null``: as many as
    there are."""
    chips_per_block: int | None = 8
    """``blocks`` only: squares of every block of ``split.block_px``; ``null``: all that fit."""
    unit_blocks: tuple[int, int] = (2, 4)
    """``blocks`` only: rows and columns of blocks chosen and fetched together. Neighbours come in
    one request, and two rows share the blocks of a 20 m band."""
    class_balance: float = 0.5
    """``blocks`` only: 0 takes ground as it comes, 1 favours rare classes by their full rarity
    (odds by inverse frequency to this power, over what WorldCover's overviews show)."""
    max_failed: float = 0.05
    """``blocks`` only: share of the units that may fail for good before the build stops."""
    split: SplitConfig | None = field(default_factory=SplitConfig)
    """``null`` puts every chip in ``train``: no held-out ground, and the report says so."""


@dataclass(frozen=True)
class Sentinel2Config:
    """Which Sentinel-2 L2A scenes, from which catalogue."""

    catalogue: str = "earth-search"
    """``earth-search``, ``planetary-computer``, or the URL of any STAC API (see ``assets``);
    ``earth-search=URL`` reads a copy of that catalogue by the same rules."""
    collection: str = "sentinel-2-l2a"
    """The catalogue's name of the product."""
    assets: Mapping[str, str] | None = None
    """Band -> asset key (``B04: red``, and ``SCL``), where the catalogue's are not the usual."""
    dates: str = "2021-01-01/2021-12-31"
    """First and last day."""
    seasons: tuple[str, ...] = ()
    """Every place is taken once in each: ``rabi`` (November to March), ``summer`` (April to June),
    ``kharif`` (July to October) or ``NAME=FIRST-LAST`` in months; none: once within ``dates``."""
    max_cloud: float = 20.0
    """Percent of cloud a scene may have; of those left the one with the least is taken."""
    offset: Literal["auto", "applied", "subtract"] = "auto"
    """``auto``: by the catalogue's rule; else what is known better of these files: the -1000 has
    been ``applied`` already, or is still to ``subtract``."""
    items: str | None = None
    """The ``items.json`` of another dataset: its scenes are used and nothing is searched."""
    timeout_s: float = 30.0
    """Patience with one request."""
    retries: int = 6
    """How often a request that failed is made again."""


@dataclass(frozen=True)
class GeotiffBand:
    """Where a band lies: in which file, as which band of it."""

    file: str | None = None
    """Name or pattern below ``path``; ``null``: every file holds all bands."""
    band: int = 1
    """Its number in the file, counted from 1."""
    resolution_m: float = 10.0
    """Side of a native pixel."""
    wavelength_nm: float | None = None
    """Centre wavelength, where known; kept with the sensor for people to read."""


@dataclass(frozen=True)
class GeotiffConfig:
    """A user's own pixels: what the files are and what their numbers mean."""

    path: str = ""
    """A folder of GeoTIFFs, one file, or a pattern such as ``chips/*.tif``."""
    bands: Mapping[str, GeotiffBand] = field(default_factory=dict)
    """Band name -> where it lies, in the order the model gets them."""
    title: str = "GeoTIFF"
    """What reports call the pixels."""
    scale: float = 1.0
    """Physical value = stored value x ``scale`` + ``offset``."""
    offset: float = 0.0
    """See ``scale``."""
    unit: str = "stored value"
    """What the physical values are; a run refuses any other unit."""
    nodata: float | None = 0
    """Stored value of pixels without data; ``null``: as the files say, or none."""
    standardised: bool = True
    """Whether a model subtracts each band's mean over the train split and divides by its deviation;
    ``false`` for colours in [0, 1]."""
    composites: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """Name -> the bands shown as red, green and blue; default: the first three."""
    display_range: tuple[float, float] | None = None
    """Physical values shown black and white; default: 2 % to 98 % of a look at the pixels."""
    labels: str = "worldcover"
    """``worldcover``, or a label raster."""
    label_classes: Mapping[int, int] = field(default_factory=dict)
    """Label raster: its code -> class id 0..7; WorldCover's codes if empty."""
    attribution: tuple[str, ...] = ()
    """Lines to print with everything made from the pixels."""


@dataclass(frozen=True)
class DataConfig:
    """What ``bharateo build`` reads."""

    source: Literal["worldcover", "sample", "sentinel2", "geotiff"] = "worldcover"
    """The pixels: WorldCover's palette colours, the packaged Sentinel-2 scene, Sentinel-2 L2A from
    a catalogue, or your own rasters."""
    rois: tuple[str, ...] = ("delhi_ncr", "shekhawati", "mathura_belt")
    """Known names or ``NAME=LON,LAT[,SIZE]`` or ``NAME=WEST,SOUTH,EAST,NORTH``."""
    aoi: str | None = None
    """Sentinel-2: a file of polygons (GeoJSON, GeoPackage, ...), each a zone; instead of ROIs."""
    zone_field: str | None = None
    """The column of ``aoi`` that names the zones; polygons of one name are one zone."""
    mgrs_tiles: tuple[str, ...] = ()
    """Sentinel-2: MGRS squares such as ``43RGM``, each a zone; instead of ROIs."""
    worldcover_tiles: tuple[str, ...] = ()
    """Sentinel-2: WorldCover tiles such as ``N27E075``, each a zone; instead of ROIs."""
    bands: tuple[str, ...] = ("10band",)
    """Sentinel-2 and the sample: ``10band``, ``rgbn``, ``rgb``, or band names in order."""
    sentinel2: Sentinel2Config = field(default_factory=Sentinel2Config)
    geotiff: GeotiffConfig = field(default_factory=GeotiffConfig)
    worldcover_root: str | None = None
    """Folder, http(s) or s3 URL; default ``$BHARATEO_WORLDCOVER_ROOT``, else the public bucket."""
    worldcover_year: Literal[2020, 2021] = 2021
    """Edition of WorldCover."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    seed: int = 42
    """Of every random draw of the build."""


@dataclass(frozen=True)
class ModelConfig:
    """The masked autoencoder's shape. ``seed`` has no decoder and ignores its sizes."""

    name: Literal["v0", "seed"] = "v0"
    """``v0``: the masked autoencoder; ``seed``: the model of the first experiment."""
    chip_px: int = 128
    """Side of a chip; a multiple of ``patch_px``."""
    patch_px: int = 16
    """Side of a patch, which becomes one token."""
    mask_ratio: float = 0.75
    """Share of a chip's patches that are hidden."""
    width: int = 128
    """Numbers in an encoder token, and so in a feature."""
    depth: int = 4
    """Transformer blocks of the encoder."""
    num_heads: int = 4
    """Attention heads of each; a divisor of ``width``."""
    decoder_width: int = 128
    """Numbers in a decoder token."""
    decoder_depth: int = 2
    """Transformer blocks of the decoder."""
    decoder_num_heads: int = 4
    """Attention heads of each; a divisor of ``decoder_width``."""
    mlp_ratio: int = 4
    """Width of a block's hidden layer, in widths of its tokens."""


@dataclass(frozen=True)
class HeadConfig:
    """One pretext task: its weight in the loss and its own options."""

    weight: float = 1.0
    """Factor of its mean loss in the sum that is minimised."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The head's own, by name."""


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation."""

    epochs: int = 20
    """How often ``chips_per_epoch`` are presented."""
    chips_per_epoch: int | None = None
    """Chips presented in an epoch; ``null``: as many as the stored squares hold side by side."""
    batch_size: int = 64
    """Chips of a step, on all ranks together."""
    optimiser: Literal["muon", "adamw"] = "muon"
    """``muon``: Muon for the matrices of the transformer blocks, AdamW for all else."""
    lr: float = 2e-3
    """Highest learning rate."""
    weight_decay: float = 0.05
    """See ``decay``; decoupled, times the learning rate."""
    beta2: float = 0.95
    """AdamW's memory of squared gradients; its beta1 is 0.9."""
    decay: Literal["matrices", "all"] = "matrices"
    """What weight decay applies to; ``matrices`` spares biases, norms and single vectors."""
    warmup_epochs: float = 1.0
    """``cosine`` only: epochs in which the learning rate rises."""
    schedule: Literal["cosine", "cosine_epoch"] = "cosine"
    """``cosine``: per step, after a linear warm-up; ``cosine_epoch``: per epoch, no warm-up."""
    grad_clip: float | None = 1.0
    """Largest norm of the gradient of all weights; ``null``: any."""
    augment: Literal["none", "d4"] = "d4"
    """``d4``: one of the eight flips and quarter turns of a square, drawn per chip."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bf16 where the processor multiplies it natively, else fp32."""
    masks_per_chip: int = 1
    """Presentations made of every chip read, each with its own mask and symmetry. They count as
    chips of the epoch and of the batch; more than 1 reads fewer bytes, and varies less ground."""
    shuffle_window: int | None = None
    """Chips shuffled among each other after runs of neighbours on the disk have been shuffled;
    ``null``: all. A few thousand keeps slow disks reading in long runs."""
    lanes: int = 1
    """Hands into which the training chips are dealt; every batch takes equally from each. Ranks
    (a divisor of it) then read their own hands alone, so ``machine.resident`` divides by them."""
    bands: tuple[str, ...] = ()
    """Bands of the dataset to train on (band names, ``rgb``, ``rgbn``, ``10band``); none: all."""
    checkpoint_seconds: float = 20.0
    """Least time between checkpoints, and longer where writing one would take more than 2 % of
    it; 0: after every step."""
    seed: int = 42
    """Of the first weights and of every order, window, symmetry and mask."""


@dataclass(frozen=True)
class MachineConfig:
    """How the machine is used: changes speed and memory, and results by rounding at most. A run
    may be resumed with another ``machine`` section, and on another number of ranks."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: the GPU where there is one."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under ``torchrun``: a whole copy of the model on every rank, or its shards (FSDP2)."""
    compile: bool | None = None
    """``torch.compile``; ``null``: on a GPU. On a CPU it does not pay."""
    micro_batch: int | None = None
    """Chips a rank takes through the model at once; gradients are added up over its share of the
    batch. ``null``: the whole share."""
    threads: int | None = None
    """Threads of arithmetic; ``null``: the cores this process may use, shared by the ranks."""
    keep_freed_memory: bool = True
    """Let the allocator keep freed arrays (glibc), instead of faulting them in every step."""
    prefetch: int = 2
    """Batches read ahead by a thread of this process; 0 reads when asked."""
    resident: Literal["auto", "off", "ram", "device"] = "auto"
    """Where the chips of this rank are kept: on disk alone (``off``), in memory, on the GPU.
    ``auto``: on a GPU if they take less than half of its free memory, else ``off``."""
    tensorboard: bool = False
    """Write ``RUN/tensorboard`` as well; needs ``pip install bharateo[tensorboard]``."""


@dataclass(frozen=True)
class Config:
    """A whole experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    heads: Mapping[str, HeadConfig] = field(
        default_factory=lambda: {
            "pixels": HeadConfig(1.0, {"beta": 0.1}),
            "landcover": HeadConfig(0.2, {"target": "fraction"}),
        }
    )
    training: TrainingConfig = field(default_factory=TrainingConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)


SIZES: Mapping[str, Mapping[str, int]] = {
    "nano": {"width": 128, "depth": 4, "num_heads": 4,
             "decoder_width": 128, "decoder_depth": 2, "decoder_num_heads": 4},
    "tiny": {"width": 192, "depth": 12, "num_heads": 3,
             "decoder_width": 192, "decoder_depth": 2, "decoder_num_heads": 3},
    "small": {"width": 384, "depth": 12, "num_heads": 6,
              "decoder_width": 256, "decoder_depth": 4, "decoder_num_heads": 4},
    "base": {"width": 768, "depth": 12, "num_heads": 12,
             "decoder_width": 512, "decoder_depth": 4, "decoder_num_heads": 8},
}  # fmt: skip
"""What ``model.size: NAME`` stands for; keys given beside it win. Encoders are those of ViT (Ti, S,
B); decoders are narrow, since they are thrown away, and cost about as much as the encoder."""


def load_config(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """The configuration in a YAML file, with overrides of single keys on top.

    ``path`` may also be the name of a configuration that comes with the package, such as ``v0`` or
    ``sample``. Overrides are texts ``section.key=value``, or a mapping from dotted keys to values.

    Raises:
        ConfigError: the file is missing or no YAML, or a key or value is wrong.
    """
    file = find_config(path)
    record = read_yaml(file)
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _put(record, key.split("."), _plain(value))
        return parse_config(record, str(file))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override!r} is not KEY=VALUE, e.g. training.epochs=5")
        try:
            _put(record, key.strip().split("."), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is no YAML: {error}") from error
    return parse_config(record, str(file))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: the file is missing, no YAML, or holds something else.
    """
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(record or {}, dict):
        raise ConfigError(
            f"{path} must hold sections (data, model, heads, training, machine), not a list"
        )
    return record or {}


def parse_config(record: Mapping[str, Any], where: str = "the configuration") -> Config:
    """The configuration a mapping describes; what it leaves out has its default.

    Raises:
        ConfigError: a key is unknown (with the nearest known one) or a value does not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config, "config")
    record = _with_size(record, where)
    unknown = next(_unknown_keys(asdict(Config()), record), None)
    unknown = unknown or next(_class_specs(record), None)
    if unknown:
        raise ConfigError(f"{where}: {unknown}")
    try:
        parsed = parser.parse_object({"config": deepcopy(dict(record))})  # it is changed in place
        config: Config = parser.instantiate(parsed).config
    except (ArgumentError, TypeError, ValueError) as error:
        reason = re.sub(r"\bconfig\.", "", " ".join(str(error).split()))
        raise ConfigError(f"{where}: {reason}") from error
    return config


def _with_size(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The mapping with ``model.size`` replaced by the numbers it stands for."""
    model = record.get("model")
    if not isinstance(model, Mapping) or "size" not in model:
        return record
    given = {key: value for key, value in model.items() if key != "size"}
    if model["size"] not in SIZES:
        raise ConfigError(
            f"{where}: model.size {model['size']!r} is not a size; known are {', '.join(SIZES)}"
        )
    return {**record, "model": {**SIZES[model["size"]], **given}}


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with some dotted keys set, e.g. ``heads.landcover.weight``.

    Raises:
        ConfigError: a key is unknown or a value does not fit.
    """
    record = _plain(asdict(config))
    for key, value in settings.items():
        _put(record, key.split("."), value)
    return parse_config(record)


def setting(config: Config, key: str) -> Any:
    """The value of a dotted key, None where the configuration does not hold it."""
    return dict(_leaves(_plain(asdict(config)))).get(key)


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, defaults included."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def differences(record: Mapping[str, Any], config: Config) -> list[str]:
    """``key: there against wanted`` for every key in which a stored configuration differs.

    The ``machine`` section may differ: it does not change what is computed.
    """
    there, wanted = dict(_leaves(record)), dict(_leaves(_plain(asdict(config))))
    return [
        f"{key}: {there.get(key)!r} there, {wanted.get(key)!r} wanted"
        for key in sorted({*there, *wanted})
        if there.get(key) != wanted.get(key) and not key.startswith("machine.")
    ]


_FREE_NAMES: Mapping[str, Any] = {
    "heads": {"weight": 1.0, "options": None},
    "data.geotiff.bands": asdict(GeotiffBand()),
    "data.geotiff.composites": None,
    "data.geotiff.label_classes": None,
    "data.sentinel2.assets": None,
}
"""Sections whose keys are names that the user gives, and what each name holds."""


def _unknown_keys(known: Any, given: Any, path: str = "") -> Iterator[str]:
    """Say which keys of ``given`` are not in ``known``; the names in some sections are free."""
    if path in _FREE_NAMES and isinstance(given, Mapping):
        known = dict.fromkeys(given, _FREE_NAMES[path])
    if not isinstance(given, Mapping):
        if isinstance(known, Mapping) and (given, path) != (None, "data.plan.split"):
            yield f"{path} is a section with keys ({', '.join(known)}), not the value {given!r}"
        return
    for key, value in given.items():
        if isinstance(known, Mapping) and key in known:
            yield from _unknown_keys(known[key], value, f"{path}.{key}".lstrip("."))
        elif isinstance(known, Mapping):
            near = _nearest_key(str(key), [str(name) for name in known])
            hint = f"did you mean {near!r}? " if near else ""
            section = f"section {path!r}" if path else "the top level"
            yield f"unknown key {key!r} in {section}: {hint}known are {', '.join(known)}"


_OTHER_NAMES = {
    "learning_rate": "training.lr",
    "num_epochs": "training.epochs",
    "embed_dim": "model.width",
    "hidden_size": "model.width",
    "num_layers": "model.depth",
    "image_size": "model.chip_px",
    "patch_size": "model.patch_px",
}
"""What keys are called elsewhere."""


def _nearest_key(key: str, here: Sequence[str]) -> str | None:
    """The key of this section that is nearest to a wrong one, else the dotted key of another."""
    everywhere = {path.rpartition(".")[2]: path for path, _ in _leaves(_plain(asdict(Config())))}
    everywhere |= _OTHER_NAMES
    if key in everywhere:
        return everywhere[key]
    if near := difflib.get_close_matches(key, here, n=1):
        return near[0]
    near = difflib.get_close_matches(key, list(everywhere), n=1, cutoff=0.75)
    return everywhere[near[0]] if near else None


def _class_specs(value: Any, path: str = "") -> Iterator[str]:
    """Say where a class is named: jsonargparse would import and call it, wherever any value may
    stand, and a configuration may come from anybody."""
    named = isinstance(value, Mapping) and "class_path" in value
    if named:
        yield f"{path.lstrip('.')} names a class to be made (class_path), which is never done"
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    for key, item in value.items() if isinstance(value, Mapping) else ():
        yield from _class_specs(item, f"{path}.{key}")


def _put(record: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        record = record.setdefault(key, {})
        if not isinstance(record, dict):
            raise ConfigError(f"--set {'.'.join(keys)}: {key} is a value, not a section")
    record[keys[-1]] = value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _leaves(record: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def find_config(path: str | Path) -> Path:
    """The YAML file at a path or, failing that, of the packaged configuration of that name.

    Raises:
        ConfigError: there is neither; the nearest packaged one is named.
    """
    path = Path(path)
    if path.is_file():
        return path
    names = sorted(file.stem for file in _configs_folder().glob("*.yaml"))
    if str(path) in names:
        return preset_path(path.name)
    near = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"cannot read the configuration {path}: No such file; {hint}those that come with the "
        f"package are {', '.join(names)}"
    )


def preset_path(name: str) -> Path:
    """The YAML file of a configuration that comes with the package, such as v0 or sample."""
    return _configs_folder() / f"{name}.yaml"


def _configs_folder() -> Path:
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"
