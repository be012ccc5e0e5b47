"""A run as a folder of the Hugging Face Hub, and the encoder that is read back from one.

::

    model.safetensors   the weights of the whole run: encoder, decoder and heads
    config.json         shape, bands and unit for people; the Hub counts downloads by it
    README.md           the model card, written from the run
    contract.json       what the weights may be fed, and their checksum; written last

Such a folder is a run: every verb takes it. Only these files are read, none is executed,
and weights are safetensors or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from bharateo.errors import ConfigError, ContractError, RunError
from bharateo.files import read_bytes, write_json, write_text
from bharateo.handover.card import model_card
from bharateo.models.patches import all_visible
from bharateo.outputs import Own, beginning_with, check_outputs, record_in
from bharateo.training.contract import CONFIG_FILE, CONTRACT_FILE, MODEL_FILE
from bharateo.training.run import Run, save_run

try:
    from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
except ImportError as error:
    raise ConfigError(
        "huggingface_hub is not installed: add it with `pip install 'bharateo[hub]'`"
    ) from error

SHAPE_FILE = "config.json"
_LIBRARY = "bharateo"


class BharatEOEncoder(nn.Module, ModelHubMixin, library_name=_LIBRARY):
    """The encoder of a run with its normalisation: physical units in, a vector a patch out. With a
    ``band_set`` it takes that set of the run's bands alone.

    ``save_pretrained`` and ``push_to_hub`` hand over the whole run it came from, with a model card.
    It is in evaluation mode; freeze it with ``requires_grad_(False)``.
    """

    def __init__(self, run: Run, band_set: str | None = None) -> None:
        super().__init__()
        self.run, self.model, self.heads = run, run.model, run.heads
        self.contract, self.band_set = run.contract, band_set
        self.bands, self.unit = run.of_set(band_set).sensor.band_names, run.sensor.unit
        self.chip_px, self.patch_px = run.model.config.chip_px, run.model.config.patch_px
        self.width = run.model.config.width
        self.eval()

    def forward(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """The vector of every patch, row-major; see ``features`` for vectors without gradients.

        ``image`` is in the unit ``self.unit``, its bands ``self.bands`` in this order, of any
        whole number of patches a side; what was learned is chips of ``self.chip_px``. Where not
        ``valid`` it may hold anything; by default every pixel is valid that is finite in all bands.
        Vectors come in the weights' precision, see ``half()``.

        Raises:
            ContractError: another number of bands, no whole patches, or other than chips where the
                model has learned places in chips alone.
        """
        shape, side = tuple(image.shape[1:]), self.patch_px
        whole = [size > 0 and size % side == 0 for size in shape[1:]]
        if len(shape) != 3 or shape[0] != len(self.bands) or not all(whole):
            raise ContractError(
                f"image: the run takes (band, row, col) = ({len(self.bands)}, rows, cols), sides "
                f"whole multiples of its patches of {side} px, its bands are "
                f"{', '.join(self.bands)} in {self.unit}; got {shape}"
            )
        if valid is None:
            valid = image.float().isfinite().all(1)
        num_tokens = shape[1] // side * (shape[2] // side)
        mask = all_visible(len(image), num_tokens, image.device)
        return self.model.encode(image, valid, mask, self.band_set)

    @torch.no_grad()
    def features(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """What ``forward`` gives, without gradients."""
        return self(image, valid)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | Path,
        *,
        bands: Sequence[str] | None = None,
        unit: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> BharatEOEncoder:
        """The encoder of a run: of its own folder, of one that ``save_pretrained`` wrote, or in a
        repository of the Hub.

        With ``bands`` and ``unit`` a run is refused that does not take exactly these; ``bands`` may
        be those of one of its sets, which the encoder then takes alone. The mixin's
        own way is not taken, since it builds the model from whatever ``config.json`` says, lets
        missing weights pass, and falls back to a pickle.

        Raises:
            ContractError: the run takes other bands or another unit; the field is named.
            RunError: the folder or repository lacks a file or holds a damaged one, weights that
                are not safetensors, or a path that leads out of it.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = _download(str(source), revision=revision, token=token, cache_dir=cache_dir,
                               force_download=force_download,
                               local_files_only=local_files_only)  # fmt: skip
        run = Run.open(folder)
        own = (folder / CONFIG_FILE).exists()  # a training's, which names its dataset as it likes
        file, trained_on = folder / CONTRACT_FILE, Path(run.contract.dataset.path)
        if run.contract.weights is None:
            raise RunError(
                f"{file} has no checksum of the weights; write the folder with `bharateo export "
                "RUN --to hub --output FOLDER`, or use Run.open for your own run"
            )
        if not own and (trained_on.is_absolute() or ".." in trained_on.parts):
            raise RunError(
                f"{file}: dataset.path {str(trained_on)!r} leads out of the folder; write the "
                "folder with `bharateo export RUN --to hub --output FOLDER`"
            )
        asked_for = bands and tuple(bands)
        sets = run.contract.model.band_sets
        encoder = cls(run, next((name for name in sets if sets[name] == asked_for), None))
        expected = {"bands": asked_for, "unit": unit}
        for name, wanted in expected.items():
            taken = getattr(encoder, name)
            if wanted is not None and wanted != taken:
                if name == "bands" and sets:
                    taken = run.contract.bands_taken
                raise ContractError(
                    f"{name}: {source} takes {taken}, not {wanted}; feed it "
                    "those, or choose another run"
                )
        return encoder

    def _save_pretrained(self, save_directory: Path) -> None:
        save_folder(self.run, save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of the run this encoder came from."""
        return ModelCard(model_card(self.run))


def save_folder(run: Run, folder: Path, licence: str | None = None) -> None:
    """Write a run as a Hub folder; an older one there is replaced.

    Of the dataset's path its name alone is kept. ``licence`` is a Hub licence id for the card.

    Raises:
        ConfigError: the folder is one that training writes, or holds files of something else
            under the same names.
        StorageError: the disk is full or refuses.
    """
    if (folder / CONFIG_FILE).exists():
        raise ConfigError(f"{folder} is the folder of a training: choose another for the Hub")
    products: dict[Path, Own] = {
        folder / SHAPE_FILE: _is_ours,
        folder / "README.md": beginning_with(f"library_name: {_LIBRARY}"),
        folder / MODEL_FILE: _is_ours,
        folder / CONTRACT_FILE: _is_ours,
    }
    check_outputs("export --to hub", products, ())  # its own folder, too: the same bytes again
    trained_on = run.contract.dataset
    trained_on = trained_on.model_copy(update={"path": Path(trained_on.path).name})
    shape = {
        "library_name": _LIBRARY,
        "architectures": [BharatEOEncoder.__name__],
        "bands": list(run.sensor.band_names),
        "unit": run.sensor.unit,
        "mean": run.model.normalise.mean.tolist(),
        "std": run.model.normalise.std.tolist(),
        **run.contract.model.model_dump(),
    }
    write_json(folder / SHAPE_FILE, shape)
    write_text(folder / "README.md", model_card(run, licence))
    weights = nn.ModuleDict({"model": run.model, "heads": run.heads}).state_dict()
    save_run(folder, weights, run.contract.model_copy(update={"dataset": trained_on}))


def _is_ours(path: Path) -> bool:
    """Whether a file lies in a Hub folder of ours, of which the mixin takes ``config.json`` away
    before it saves, and which may have been left without a contract by a killed export.
    """
    shape, contract = (
        record_in(read_bytes(file)) if file.is_file() else {}
        for file in (path.with_name(SHAPE_FILE), path.with_name(CONTRACT_FILE))
    )
    return shape.get("library_name") == _LIBRARY or "class_scheme" in contract


def _download(repository: str, **options: Any) -> Path:
    """The folder in the cache that holds a repository's files, those that are read alone."""
    try:
        for name in (SHAPE_FILE, MODEL_FILE, CONTRACT_FILE):
            file = hf_hub_download(repository, name, **options)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{repository} is no folder here, and no repository of the Hub to be had with a "
            f"BharatEO run ({' '.join(str(error).split())}); check the name, or write a folder "
            "with `bharateo export RUN --to hub --output FOLDER`"
        ) from error
    return Path(file).parent
