"""The configuration of a build and a run: one YAML file, every key declared here with its default.

``bharateo build`` reads the ``data`` section, ``bharateo pretrain`` the others. ``training`` and
``model`` say what is computed, ``machine`` how.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticCustomError

from bharateo.artefacts import misfit_in_words, shortened
from bharateo.errors import ConfigError
from bharateo.plain_yaml import parse_yaml, read_yaml, write_yaml

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Side = Annotated[int, Field(ge=1, le=2**16)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
_SET_NAME = r"^[A-Za-z0-9_-]{1,40}$"
SetName = Annotated[str, Field(pattern=_SET_NAME)]
"""Of a set of bands; it becomes part of file names and of the names of weights."""
_DATES = r"^ *(19|20)\d\d-\d\d-\d\d */ *(19|20)\d\d-\d\d-\d\d *$"


SOURCES = {
    "worldcover": "bharateo.sources.worldcover:worldcover_recipe",
    "sample": "bharateo.sources.sample:sample_recipe",
    "sentinel2": "bharateo.sources.sentinel2:sentinel2_recipe",
    "geotiff": "bharateo.sources.geotiff:geotiff_recipe",
}
"""What ``data.source`` may be: its name, and the function (``module:function``) that makes its
recipe of the ``data`` section. It is imported when it is asked for."""


def _known_source(name: str) -> str:
    if name not in SOURCES:
        *others, last = map(repr, SOURCES)
        expected = f"{', '.join(others)} or {last}"
        raise PydanticCustomError("literal_error", f"Input should be {expected}")
    return name


SourceName = Annotated[
    str,
    AfterValidator(_known_source),
    Field(json_schema_extra=lambda schema: schema.update(enum=[*SOURCES])),
]


class _Section:
    """A section of a configuration as a file may give it: these keys, types and bounds, no others.

    Plain values are put into these classes and nothing else is made of them. Whoever makes one in
    Python is trusted; what reads a file or an override calls ``parse_config``.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class SplitConfig(_Section):
    """Geographic block splits. ``test`` and ``val`` are fractions of each region's blocks."""

    block_px: Side = 512
    """Side of a block; every block belongs to one split whole."""
    buffer_px: Annotated[int, Field(ge=0, le=2**16)] = 32
    """Least distance between pixels of different splits; cut from the blocks' edges."""
    val: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of every region's blocks for validation."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Fraction of every region's blocks for testing."""
    val_zones: tuple[str, ...] = ()
    """Zones held out whole for validation; with ``test_zones`` alone, ``val`` is a fraction of
    the other zones' blocks."""
    test_zones: tuple[str, ...] = ()
    """Zones held out whole for testing, in place of the fraction ``test``."""


@dataclass(frozen=True)
class PlanConfig(_Section):
    """Where chips are taken."""

    strategy: Literal["grid", "random", "blocks", "files"] = "grid"
    """``grid``: stored squares side by side in every block; ``random``: uniform random windows;
    ``blocks``: some squares of every block, fetched together (Sentinel-2, large rasters);
    ``files``: every file is one square (a folder of GeoTIFF chips)."""
    size_px: Side = 480
    """Side of a stored square; may be larger than the model's chip, which is then cut from it."""
    chips_per_roi: Count | None = None
    """``random`` only: how many to keep from each region, drawn round-robin."""
    min_classes: Annotated[int, Field(ge=0, le=8)] = 1
    """Least number of different classes among a chip's labelled pixels."""
    min_valid_fraction: Share = 0.5
    """Least share of a chip's pixels that must be valid."""
    num_chips: Count | None = None
    """``blocks`` only: how many squares in all, shared evenly by the zones; ``null``: as many as
    there are."""
    chips_per_block: Count | None = 8
    """``blocks`` only: squares of every block of ``split.block_px``; ``null``: all that fit."""
    unit_blocks: tuple[Side, Side] = (2, 4)
    """``blocks`` only: rows and columns of blocks chosen and fetched together. Neighbours come in
    one request, and two rows share the blocks of a 20 m band."""
    class_balance: Annotated[float, Field(ge=0, le=10)] = 0.5
    """``blocks`` only: 0 takes ground as it comes, 1 favours rare classes by their full rarity
    (odds by inverse frequency to this power, over what WorldCover's overviews show)."""
    max_failed: Share = 0.05
    """``blocks`` only: share of the units that may fail for good before the build stops."""
    split: SplitConfig | None = field(default_factory=SplitConfig)
    """``null`` puts every chip in ``train``: no held-out ground, and the report says so."""


@dataclass(frozen=True)
class Sentinel2Config(_Section):
    """Which Sentinel-2 L2A scenes, from which catalogue."""

    catalogue: str = "earth-search"
    """``earth-search``, ``planetary-computer``, ``copernicus``, ``digital-earth-africa``, or the
    URL of any STAC API (see ``assets``); ``earth-search=URL`` reads a copy of that catalogue by the
    same rules."""
    collection: str = "sentinel-2-l2a"
    """The catalogue's name of the product."""
    assets: Mapping[str, str] | None = None
    """Band -> asset key (``B04: red``, and ``SCL``), where the catalogue's are not the usual."""
    dates: Annotated[str, Field(pattern=_DATES)] = "2021-01-01/2021-12-31"
    """First and last day."""
    seasons: tuple[str, ...] = ()
    """Every place is taken once in each: ``rabi`` (November to March), ``summer`` (April to June),
    ``kharif`` (July to October) or ``NAME=FIRST-LAST`` in months; none: once within ``dates``."""
    max_cloud: Annotated[float, Field(ge=0, le=100)] = 20.0
    """Percent of cloud a scene may have; of those left the one with the least is taken."""
    offset: Literal["auto", "applied", "subtract"] = "auto"
    """``auto``: by the catalogue's rule; else what is known better of these files: the -1000 has
    been ``applied`` already, or is still to ``subtract``."""
    items: str | None = None
    """The ``items.json`` of another dataset: its scenes are used and nothing is searched."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    """Patience with one request."""
    retries: Annotated[int, Field(ge=0, le=1_000)] = 24
    """How often a request that failed is made again, after waits that grow to 20 s: the network may
    be away for five minutes."""


@dataclass(frozen=True)
class GeotiffBand(_Section):
    """Where a band lies: in which file, as which band of it."""

    file: str | None = None
    """Name or pattern below ``path``; ``null``: every file holds all bands."""
    band: Side = 1
    """Its number in the file, counted from 1."""
    resolution_m: Positive = 10.0
    """Side of a native pixel."""
    wavelength_nm: Positive | None = None
    """Centre wavelength, where known; kept with the sensor for people to read."""


@dataclass(frozen=True)
class GeotiffConfig(_Section):
    """A user's own pixels: what the files are and what their numbers mean."""

    path: str = ""
    """A folder of GeoTIFFs, one file, or a pattern such as ``chips/*.tif``."""
    bands: Mapping[str, GeotiffBand] = field(default_factory=dict)
    """Band name -> where it lies, in the order the model gets them."""
    title: str = "GeoTIFF"
    """What reports call the pixels."""
    scale: Positive | None = None
    """Physical value = stored value x ``scale`` + ``offset``; default: as the files say, or 1."""
    offset: float | None = None
    """See ``scale``; default: as the files say, or 0, and 0 beside a ``scale`` that is given."""
    unit: str = "stored value"
    """What the physical values are; a run refuses any other unit."""
    nodata: float | Literal["declared"] | None = "declared"
    """Stored value of pixels without data; ``declared``: as the files say, and 0 in those that say
    nothing; ``null``: as the files say, or none. Masks and alpha bands of the files hold anyhow."""
    standardised: bool = True
    """Whether a model subtracts each band's mean over the train split and divides by its deviation;
    ``false`` for colours in [0, 1]."""
    composites: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """Name -> the bands shown as red, green and blue; default: the first three."""
    display_range: tuple[float, float] | None = None
    """Physical values shown black and white; default: 2 % to 98 % of a look at the pixels."""
    labels: str = "worldcover"
    """``worldcover``, a label raster, or ``none``: chips to learn from without labels."""
    label_classes: Mapping[int, Annotated[int, Field(ge=0, le=7)]] = field(default_factory=dict)
    """Label raster: its code -> class id 0..7; WorldCover's codes if empty."""
    attribution: tuple[str, ...] = ()
    """Lines to print with everything made from the pixels."""


@dataclass(frozen=True)
class DataConfig(_Section):
    """What ``bharateo build`` reads."""

    source: SourceName = "worldcover"
    """The pixels: WorldCover's palette colours, the packaged Sentinel-2 scene, Sentinel-2 L2A from
    a catalogue, or your own rasters."""
    rois: tuple[str, ...] = ("delhi_ncr", "shekhawati", "mathura_belt")
    """Known names or ``NAME=LON,LAT[,SIZE]`` or ``NAME=WEST,SOUTH,EAST,NORTH``."""
    aoi: str | None = None
    """Sentinel-2: a file of polygons (``vectors.FORMATS``), each a zone; instead of ROIs."""
    zone_field: str | None = None
    """The column of ``aoi`` that names the zones; polygons of one name are one zone."""
    mgrs_tiles: tuple[str, ...] = ()
    """Sentinel-2: MGRS squares such as ``43RGM``, each a zone; instead of ROIs."""
    worldcover_tiles: tuple[str, ...] = ()
    """Sentinel-2: WorldCover tiles such as ``N27E075``, each a zone; instead of ROIs."""
    bands: tuple[str, ...] = ("10band",)
    """Sentinel-2 and the sample: ``10band``, ``rgbn``, ``rgb``, ``liss``, or band names in
    order."""
    sentinel2: Sentinel2Config = field(default_factory=Sentinel2Config)
    """Of source ``sentinel2``."""
    geotiff: GeotiffConfig = field(default_factory=GeotiffConfig)
    """Of source ``geotiff``."""
    worldcover_root: str | None = None
    """Folder, http(s) or s3 URL; default ``$BHARATEO_WORLDCOVER_ROOT``, else the public bucket."""
    worldcover_year: Literal[2020, 2021] = 2021
    """Edition of WorldCover."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of a source that has no section here: its own, by name."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """Where chips are taken, and which are for training."""
    seed: Seed = 42
    """Of every random draw of the build."""


@dataclass(frozen=True)
class ModelConfig(_Section):
    """The masked autoencoder's shape. ``seed`` has no decoder and ignores its sizes."""

    name: Literal["v0", "seed"] = "v0"
    """``v0``: the masked autoencoder; ``seed``: the model of the first experiment."""
    chip_px: Side = 128
    """Side of a chip; a multiple of ``patch_px``."""
    patch_px: Side = 16
    """Side of a patch, which becomes one token."""
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Share of a chip's patches that are hidden; 0, none, where every head learns of visible ones
    as well (``landcover`` does)."""
    width: Side = 128
    """Numbers in an encoder token, and so in a feature."""
    depth: Annotated[int, Field(ge=1, le=1_000)] = 4
    """Transformer blocks of the encoder."""
    num_heads: Annotated[int, Field(ge=1, le=1_000)] = 4
    """Attention heads of each; a divisor of ``width``."""
    decoder_width: Side = 128
    """Numbers in a decoder token."""
    decoder_depth: Annotated[int, Field(ge=0, le=1_000)] = 2
    """Transformer blocks of the decoder."""
    decoder_num_heads: Annotated[int, Field(ge=1, le=1_000)] = 4
    """Attention heads of each; a divisor of ``decoder_width``."""
    mlp_ratio: Annotated[int, Field(ge=1, le=100)] = 4
    """Width of a block's hidden layer, in widths of its tokens."""
    embedding: Literal["linear", "energies", "stem"] = "linear"
    """What makes a vector of a patch's pixels. ``linear``: a linear map; ``energies``: also how
    strongly the patch responds to small filters cut from training chips, which tells textures
    apart; ``stem``: two learned convolutions. None looks beyond the patch."""
    num_filters: Annotated[int, Field(ge=1, le=4_096)] = 64
    """Filters of ``energies``, as an embedding and as a target; each gives two numbers a patch."""
    band_sets: Mapping[SetName, Annotated[tuple[str, ...], Field(min_length=1)]] = field(
        default_factory=dict
    )
    """Sets of bands that rasters may hold instead of all: name -> band names, or ``rgb``, ``rgbn``,
    ``liss``. Every other step, on average, the encoder is shown one of them alone, and the weights
    then serve such rasters too."""


@dataclass(frozen=True)
class HeadConfig(_Section):
    """One pretext task: its weight in the loss and its own options."""

    weight: NotNegative = 1.0
    """Factor of its mean loss in the sum that is minimised."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The head's own, by name."""


@dataclass(frozen=True)
class TrainingConfig(_Section):
    """The optimisation."""

    epochs: Count = 20
    """How often ``chips_per_epoch`` are presented."""
    chips_per_epoch: Count | None = None
    """Chips presented in an epoch; ``null``: as many as the stored squares hold side by side."""
    batch_size: Count = 64
    """Chips of a step, on all ranks together."""
    optimiser: Literal["muon", "adamw"] = "muon"
    """``muon``: Muon for the matrices of the transformer blocks, AdamW for all else."""
    lr: Positive = 2e-3
    """Highest learning rate."""
    weight_decay: NotNegative = 0.05
    """See ``decay``; decoupled, times the learning rate."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's memory of squared gradients; its beta1 is 0.9."""
    decay: Literal["matrices", "all"] = "matrices"
    """What weight decay applies to; ``matrices`` spares biases, norms and single vectors."""
    warmup_epochs: NotNegative = 1.0
    """``cosine`` only: epochs in which the learning rate rises."""
    schedule: Literal["cosine", "cosine_epoch"] = "cosine"
    """``cosine``: per step, after a linear warm-up; ``cosine_epoch``: per epoch, no warm-up."""
    grad_clip: Positive | None = 1.0
    """Largest norm of the gradient of all weights; ``null``: any."""
    augment: Literal["none", "d4"] = "d4"
    """``d4``: one of the eight flips and quarter turns of a square, drawn per chip."""
    jitter: Annotated[float, Field(ge=0, lt=0.6)] = 0.0
    """How much the light on a chip varies from one presentation to the next: every band is
    multiplied by 1 +- ``jitter`` (+- half as much by itself) and shifted by +- 3 ``jitter`` of its
    deviations. Little ground then lasts longer; not for class colours. 0.2 is strong."""
    average: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """More than 0: what is validated and kept is a moving average of the weights; training itself
    goes on as without it. The steps averaged lie back, on average, by this share of those taken so
    far, which means the same in short runs and in long ones; 0.5: all of them, equally."""
    keep: Literal["last", "best"] = "last"
    """``best``: the weights of the epoch with the lowest ``val_loss``; needs a val split."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bf16 where the processor multiplies it natively, else fp32."""
    masks_per_chip: Count = 1
    """Presentations made of every chip read, each with its own mask and symmetry. They count as
    chips of the epoch and of the batch; more than 1 reads fewer bytes, and varies less ground."""
    shuffle_window: Count | None = None
    """Chips shuffled among each other after runs of neighbours on the disk have been shuffled;
    ``null``: all. A few thousand keeps slow disks reading in long runs."""
    lanes: Count = 1
    """Hands into which the training chips are dealt; every batch takes equally from each. Ranks
    (a divisor of it) then read their own hands alone, so ``machine.resident`` divides by them."""
    bands: tuple[str, ...] = ()
    """Bands of the dataset to train on (band names, ``rgb``, ``rgbn``, ``liss``, ``10band``); none:
    all."""
    checkpoint_seconds: NotNegative = 20.0
    """Least time between checkpoints, and longer where writing one would take more than 2 % of
    it; 0: after every step."""
    seed: Seed = 42
    """Of the first weights and of every order, window, symmetry and mask."""


@dataclass(frozen=True)
class MachineConfig(_Section):
    """How the machine is used: changes speed and memory, and results by rounding at most. A run
    may be resumed with another ``machine`` section, and on another number of ranks."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: the GPU where there is one."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under ``torchrun``: a whole copy of the model on every rank, or its shards (FSDP2)."""
    compile: bool | None = None
    """``torch.compile``; ``null``: on a GPU. On a CPU it does not pay."""
    micro_batch: Count | None = None
    """Chips a rank takes through the model at once; gradients are added up over its share of the
    batch. ``null``: the whole share."""
    threads: Annotated[int, Field(ge=1, le=4_096)] | None = None
    """Threads of arithmetic; ``null``: the cores this process may use, shared by the ranks."""
    keep_freed_memory: bool = True
    """Let the allocator keep freed arrays (glibc), instead of faulting them in every step."""
    prefetch: Annotated[int, Field(ge=0, le=10_000)] = 2
    """Batches read ahead by a thread of this process; 0 reads when asked."""
    resident: Literal["auto", "off", "ram", "device"] = "auto"
    """Where the chips of this rank are kept: on disk alone (``off``), in memory, on the GPU.
    ``auto``: on a GPU if they take less than half of its free memory, else ``off``."""
    tensorboard: bool = False
    """Write ``RUN/tensorboard`` as well; needs ``pip install bharateo[tensorboard]``."""


@dataclass(frozen=True)
class Config(_Section):
    """A whole experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    """What ``bharateo build`` reads; the other sections are for ``bharateo pretrain``."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The masked autoencoder's shape."""
    heads: Mapping[str, HeadConfig] = field(
        default_factory=lambda: {
            "pixels": HeadConfig(1.0, {"beta": 0.1}),
            "landcover": HeadConfig(0.2, {"target": "fraction"}),
        }
    )
    """Pretext task -> its weight in the loss and its options."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The optimisation."""
    machine: MachineConfig = field(default_factory=MachineConfig)
    """How the machine is used, which does not change what is computed."""


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
    return parse_config(_overridden(record, _pairs(overrides), str(file)), str(file))


def _pairs(settings: Sequence[str] | Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Dotted keys and their values, of texts ``section.key=value`` or a mapping."""
    if isinstance(settings, Mapping):
        return settings.items()
    pairs = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        shown = f"--set {shortened(repr(setting))}"
        if not equals:
            raise ConfigError(f"{shown} is not KEY=VALUE, e.g. training.epochs=5")
        pairs.append((key.strip(), parse_yaml(value, f"{shown}: the value is no YAML")))
    return pairs


def parse_config(record: Mapping[str, Any], where: str = "the configuration") -> Config:
    """The configuration a mapping describes; what it leaves out has its default.

    Raises:
        ConfigError: a key is unknown (with the nearest known one) or a value does not fit.
    """
    plain = _with_size(_plain(record, where), where)
    try:
        return _config_of_json().validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_mistake(error)}") from error


@functools.cache
def _config_of_json() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file; what is written beneath a key describes it."""
    schema = _config_of_json().json_schema(schema_generator=_Described)
    schema["$defs"]["ModelConfig"]["properties"]["size"] = {
        "enum": [*SIZES],
        "description": "Stands for the six numbers of its width and depth; keys beside it win.",
    }
    return schema


class _Described(GenerateJsonSchema):
    # pydantic's own use_attribute_docstrings costs every reading a third of a second.
    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        described = super().dataclass_schema(schema)
        (declared,) = ast.parse(inspect.getsource(schema["cls"])).body
        for key, text in pairwise(getattr(declared, "body", ())):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    ast.Constant(value=str(said))
                ):
                    described["properties"][name]["description"] = inspect.cleandoc(said)
        return described


def _with_size(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The mapping with ``model.size`` replaced by the numbers it stands for."""
    model = record.get("model")
    if not isinstance(model, dict) or "size" not in model:
        return record
    given = {key: value for key, value in model.items() if key != "size"}
    size = model["size"]
    if not isinstance(size, str) or size not in SIZES:
        raise ConfigError(
            f"{where}: model.size {shortened(repr(size))} is not a size; known are "
            f"{', '.join(SIZES)}"
        )
    return {**record, "model": {**SIZES[size], **given}}


def with_settings(config: Config, settings: Sequence[str] | Mapping[str, Any]) -> Config:
    """The configuration with some dotted keys set, e.g. ``heads.landcover.weight``.

    Settings are given as to ``load_config``. ``model.size`` sets all that it stands for, but for
    what is set beside it.

    Raises:
        ConfigError: a key is unknown or a value does not fit.
    """
    return parse_config(_overridden(asdict(config), _pairs(settings), "the configuration"))


def _overridden(
    record: Mapping[str, Any], settings: Iterable[tuple[str, Any]], where: str
) -> dict[str, Any]:
    """The mapping with dotted keys set, later ones last.

    A size that is set takes the place of all the sizes there, so these go first: what is set
    beside it wins in any order.
    """
    settings = list(settings)
    whole: dict[str, Any] = _plain(record, where)
    model = whole.get("model")
    if any(key == "model.size" for key, _ in settings) and isinstance(model, dict):
        whole["model"] = {key: value for key, value in model.items() if key not in SIZES["nano"]}
    for dotted, value in settings:
        *sections, last = dotted.split(".")
        inner = whole
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"{shortened(dotted)}: {shortened(section)} is a value, not a section"
                )
        inner[last] = _plain(value, shortened(dotted))
    return whole


def setting(config: Config, key: str) -> Any:
    """The value of a dotted key, None where the configuration does not hold it."""
    return dict(_leaves(to_record(config))).get(key)


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, defaults included."""
    return write_yaml(to_record(config))


def to_record(config: Config) -> dict[str, Any]:
    """The whole configuration as plain values, defaults included: what its YAML holds."""
    record: dict[str, Any] = _with_lists(asdict(config))
    return record


def _with_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def section_to_yaml(config: Config, section: str) -> str:
    """One section of the configuration as YAML, defaults included."""
    return write_yaml({section: to_record(config)[section]})


def differences(record: Mapping[str, Any], config: Config) -> list[str]:
    """``key: there against wanted`` for every key in which a stored configuration differs.

    The ``machine`` section may differ: it does not change what is computed. So may ``data``, which
    no training reads: its pixels are those of a dataset, known by its fingerprint. Keys of
    ``model`` and ``training`` that an earlier version did not have count as their defaults, which
    do what it did.
    """
    since = {k: v for k, v in _leaves(to_record(Config())) if k.startswith(("model.", "training."))}
    there, wanted = since | dict(_leaves(record)), dict(_leaves(to_record(config)))
    return [
        f"{key}: {there.get(key)!r} there, {wanted.get(key)!r} wanted"
        for key in sorted({*there, *wanted})
        if there.get(key) != wanted.get(key) and not key.startswith(("machine.", "data."))
    ]


def _first_mistake(error: ValidationError) -> str:
    """The first misfit in a few words, unknown keys before wrong values."""
    misfits = error.errors(include_url=False)
    unknown = [each for each in misfits if each["type"] == "unexpected_keyword_argument"]
    misfit = (unknown or misfits)[0]
    path = misfit["loc"]
    if unknown:
        *above, key = map(str, path)
        known = _keys_at(above)
        near = _nearest_key(key, known)
        hint = f"did you mean {near!r}? " if near else ""
        section = f"section {shortened('.'.join(above))!r}" if above else "the top level"
        return f"unknown key {shortened(repr(key))} in {section}: {hint}known are {_listed(known)}"
    if misfit["type"] == "dataclass_type":
        return (
            f"{shortened('.'.join(map(str, path)))} is a section with keys "
            f"({_listed(_keys_at(path))}), not the value {shortened(repr(misfit['input']))}"
        )
    if misfit["type"] == "string_pattern_mismatch":
        misfit["msg"] = _PATTERNS[misfit["ctx"]["pattern"]]
    remedy = _REMEDIES.get(misfit["type"])
    return misfit_in_words(misfit) + (f": {remedy}" if remedy else "")


_PATTERNS = {
    _DATES: "give FIRST/LAST, such as 2021-01-01/2021-12-31",
    _SET_NAME: "name a set by letters, digits, - and _, 40 at most",
}
"""What to give where a text is not of the form asked for."""

_REMEDIES = {
    "bool_type": "give true or false",
    "dict_type": "give names with what they hold, such as {a: 1}",
    "string_type": "in quotes it is a text",
    "tuple_type": "give a list, such as [a, b]",
}
"""What to do about a misfit, by pydantic's name of it."""


def _keys_at(path: Iterable[Any]) -> list[str]:
    """The keys of the section at a path, some of which may be names that the user gave."""
    kind: Any = Config
    for key in path:
        kind = get_type_hints(kind)[key] if is_dataclass(kind) else get_args(kind)[1]
        if NoneType in get_args(kind):
            kind = get_args(kind)[0]
    return [each.name for each in fields(kind)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


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
    everywhere = {path.rpartition(".")[2]: path for path, _ in _leaves(asdict(Config()))}
    everywhere |= _OTHER_NAMES
    if key in everywhere:
        return everywhere[key]
    if near := difflib.get_close_matches(key, here, n=1):
        return near[0]
    near = difflib.get_close_matches(key, list(everywhere), n=1, cutoff=0.75)
    return everywhere[near[0]] if near else None


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that no file name, title or page can hold; tabs and ends of lines are none of them."""
_MOST_LEVELS = 20
_MOST_CHARACTERS = 10_000


def _plain(value: Any, where: str, level: int = 0) -> Any:
    """A copy of plain values, with texts for keys and lists for tuples.

    Raises:
        ConfigError: it holds anything else, a number or text that is too long, control characters,
            or is nested too deep.
    """
    if level > _MOST_LEVELS:
        raise ConfigError(f"{where}: it is nested deeper than {_MOST_LEVELS} levels")
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, level + 1) for item in value]
    if isinstance(value, Mapping):
        record = {
            str(_plain(key, where, level + 1)): _plain(item, where, level + 1)
            for key, item in value.items()
            if isinstance(key, (str, int)) and not isinstance(key, bool)
        }
        if len(record) < len(value):
            raise ConfigError(
                f"{where}: of the keys {shortened(', '.join(map(repr, value)))} two are the same, "
                "or one is no text"
            )
        return record
    if isinstance(value, str):
        if len(value) > _MOST_CHARACTERS or _CONTROL.search(value):
            raise ConfigError(
                f"{where}: the text {shortened(ascii(value))} has control characters, or more than "
                f"{_MOST_CHARACTERS} in all"
            )
        return value
    if isinstance(value, int) and value.bit_length() > 64:
        raise ConfigError(f"{where}: a whole number of {value.bit_length()} bits is too large")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise ConfigError(
        f"{where}: a {type(value).__name__} is no plain value: give a text, number, list or mapping"
    )


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
    if os.path.isfile(path):  # noqa: PTH113 - False, not an error, for what can be no path
        return path
    names = sorted(file.stem for file in _configs_folder().glob("*.yaml"))
    if str(path) in names:
        return preset_path(path.name)
    if os.path.exists(path):  # noqa: PTH110 - a folder or a pipe, which the reader refuses
        return path
    near = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = " ".join(str(path)[:200].split())
    raise ConfigError(
        f"cannot read the configuration {shown}: No such file; {hint}those that come with the "
        f"package are {', '.join(names)}"
    )


def preset_path(name: str) -> Path:
    """The YAML file of a configuration that comes with the package, such as v0 or sample."""
    return _configs_folder() / f"{name}.yaml"


def _configs_folder() -> Path:
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"
