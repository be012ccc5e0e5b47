"""What verbs take: in Python the thing itself or its path, on the command line its path.

A verb's signature is read by type checkers, which see the types of the first branch, and by the
command line, which sees those of the second: there a run is the path of a run, and nothing that
takes long to import is imported to print a help page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

Precision = Literal["fp32", "bf16", "auto"]
Readout = Literal["token", "views", "views+energies"]

HOW_TO_READ = """\
A raster must hold the run's bands, or one of the sets of them that it was trained to take
(`model.band_sets`), in the run's unit. Where the file does not say so itself (names
of its bands, its scale and offset, its nodata value), say it here:

  --bands B02,B03,B04,B08        all bands of the file, in its order
  --bands B04=3,B03=2,B02=1      some of them, by their number in the file
  --scale 0.0001 --offset -0.1   Sentinel-2 L2A as ESA stores it since 2022
  --scale 0.001                  reflectance x 1000
  --mask QA_PIXEL:bits=1,3,4     clouds, by a band or a file
  --resample bilinear            20 m to the run's 10 m"""

if TYPE_CHECKING:
    from geopandas import GeoDataFrame as GeoDataFrame

    from bharateo.chips.store import Dataset as Dataset
    from bharateo.config import Config as Config
    from bharateo.display import Display
    from bharateo.reading import Reading
    from bharateo.training.run import Run as Run

    ConfigLike = Config | str | Path
    DatasetLike = Dataset | str | Path
    RunLike = Run | str | Path
    PathLike = str | Path
    Paths = str | Path | Sequence[str | Path]
    Location = str | Path
    Points = Sequence[str | tuple[float, float]]
    Budgets = Sequence[int | str]
    Words = Sequence[str]
    KeysOfValues = Sequence[str]
    Settings = Sequence[str]
    Stride = int | None
    Colours = Sequence[str]
    Places = Sequence[str]
    MaybeReading = Reading | None
    MaybeDisplay = Display | None
    AlwaysShown = Display | None
    Output = str | Path
    MaybeOutput = str | Path | None
    Outputs = str | Path | Sequence[str | Path]
    MaybeDevice = Literal["auto", "cpu", "cuda"] | None
else:
    from bharateo.reading import Reading

    ConfigLike = DatasetLike = RunLike = PathLike = Path
    Paths = list[Path]
    # A path for the shell to complete; kept as text, since it may be an address.
    Location = Annotated[Path, Parameter(converter=lambda _, words: words[0].value)]
    # -4.05,52.41 is no option
    Points = Annotated[list[str], Parameter(allow_leading_hyphen=True, metavar="LON,LAT")]
    Words = Annotated[list[str], Parameter(consume_multiple=1, metavar="NAME...")]
    Budgets = Annotated[list[int | str], Parameter(consume_multiple=1, metavar="N...")]
    KeysOfValues = Annotated[list[str], Parameter(metavar="KEY=VALUES")]
    Settings = Annotated[list[str], Parameter(name="--set", metavar="KEY=VALUE")]
    Stride = Annotated[int | None, Parameter(name="--stride", metavar="PX")]
    Colours = Annotated[list[str], Parameter(name="--colour", metavar="CLASS=#RRGGBB")]
    Places = Annotated[list[str], Parameter(metavar="ROI")]
    _HOW_TO_READ = Group("How to read the raster", help=HOW_TO_READ, sort_key=2)
    MaybeReading = Annotated[Reading | None, Parameter(name="*", group=_HOW_TO_READ)]
    Output = Annotated[Path, Parameter(name=("--output", "-o"))]
    MaybeOutput = Annotated[Path | None, Parameter(name=("--output", "-o"))]
    Outputs = Annotated[list[Path], Parameter(name=("--output", "-o"))]
    MaybeDevice = Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        Parameter(help="where to compute; auto: a GPU where there is one (default: machine.device "
                  "of the configuration, for a run its own)"),
    ]  # fmt: skip
    # True on the command line, which ``main`` makes a display of.
    MaybeDisplay = Annotated[
        bool | None,
        Parameter(name=("--quiet", "-q"), help="print warnings and errors alone"),
    ]
    AlwaysShown = Annotated[Any, Parameter(parse=False)]


def open_config(config: ConfigLike, settings: Settings = ()) -> Config:
    """A configuration, read if it is a file or the name of a packaged one, with some keys set."""
    from bharateo.config import Config, load_config, with_settings

    if isinstance(config, Config):
        return with_settings(config, settings) if settings else config
    return load_config(config, settings)


def open_run(run: RunLike, device: MaybeDevice = None) -> Run:
    """A run, opened if it is a folder, to compute on a device if one is named.

    Raises:
        ConfigError: there is no such device.
    """
    from bharateo.training.run import Run

    opened = run if isinstance(run, Run) else Run.open(run)
    if device is None:
        return opened
    from bharateo.training.engine import find_device

    return replace(opened, device=find_device(device))


def open_dataset(dataset: DatasetLike) -> Dataset:
    """A dataset, opened if it is a folder."""
    from bharateo.chips.store import Dataset

    return dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)


def list_of_paths(paths: Paths) -> list[Path]:
    """One path or several as a list."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
