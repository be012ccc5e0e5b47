"""A frozen encoder: every patch of a chip is seen, nothing is hidden, nothing is learnt."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from bharateo.config import load_config
from bharateo.errors import ConfigError, ContractError, RunError
from bharateo.models.embedding import EnergyEmbedding
from bharateo.models.heads import HEADS, Head, Layer
from bharateo.models.mae import MaskedAutoencoder
from bharateo.models.patches import all_visible
from bharateo.training.contract import CONFIG_FILE
from bharateo.training.engine import autocast, find_device, resolve_precision
from bharateo.training.run import Run

CHIPS_AT_ONCE = 64
"""Chips of one pass through the model; more do not make it faster on a CPU."""


@runtime_checkable
class PerToken(Protocol):
    """What is predicted of a chip: some numbers for each of its tokens, row-major."""

    def __call__(
        self, image: Real[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
    ) -> Float[Tensor, "batch token dim"]:
        """Numbers of every token; ``image`` in physical units, anything where not ``valid``."""
        ...


@dataclass(frozen=True)
class RunLayer:
    """A layer that a run's head offers for maps: which of the head's ``values`` are it."""

    head: str
    layer: Layer
    values: slice


Readout = Literal["token", "views", "views+energies"]
"""How a vector is read out: of the chip as it is; the mean ``over_views``; or, beside each other,
that mean and the one of the energies that the embedding was given, which say more of textures than
the encoder keeps.
"""


def over_views(predict: PerToken, patch_px: int) -> PerToken:
    """The mean of what is predicted of a chip's eight flips and quarter turns, turned back: eight
    times the work, and what only the way up has made of a patch averages out.

    Each is moved by a quarter of a patch along its own diagonal, so that a token is the mean over
    patches that lie around its own; the chip's edge is mirrored.
    """
    shift = patch_px // 4

    def moved(layer: Tensor) -> Tensor:
        for dim in (-2, -1):
            place = torch.arange(shift, layer.shape[dim] + shift, device=layer.device)
            last = layer.shape[dim] - 1
            layer = layer.index_select(dim, last - (last - place).abs())
        return layer

    def mean(image: Tensor, valid: Tensor) -> Tensor:
        total = torch.zeros(())
        for turns, flipped in itertools.product(range(4), (False, True)):
            turned = (torch.rot90(each, turns, (-2, -1)) for each in (image, valid))
            values = predict(*(moved(each.flip(-1) if flipped else each) for each in turned))
            side = math.isqrt(values.shape[1])
            grid = values.transpose(1, 2).unflatten(2, (side, side))
            grid = torch.rot90(grid.flip(-1) if flipped else grid, -turns, (-2, -1))
            total = total + grid.flatten(2).transpose(1, 2) / 8
        return total

    return mean


def device_of(run: Run) -> torch.device:
    """Where a run computes: on the device it was opened for, else ``machine.device`` of its own
    configuration.

    Weights outlive the machine they were trained on: a GPU that is not here is done without, and
    a folder without its configuration is ``auto``.
    """
    if run.device is not None:
        return run.device
    try:
        asked_for = load_config(run.path / CONFIG_FILE).machine.device
    except (ConfigError, OSError):
        asked_for = "auto"
    return find_device("cpu" if asked_for == "cpu" else "auto")


class FrozenEncoder:
    """A model's vectors and what its heads predict, of chips without a mask.

    The model computes on ``device``, in a copy where it does not lie there already. Chips come
    from, and numbers return to, the device the chips lie on. With a ``band_set`` they hold the
    bands of that set of the model alone.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        heads: nn.ModuleDict | None = None,
        device: torch.device | None = None,
        band_set: str | None = None,
    ) -> None:
        heads = nn.ModuleDict() if heads is None else heads
        own = next(model.parameters()).device
        self.device = device or own
        if self.device != own:  # others go on with the model where it is
            model = copy.deepcopy(model).to(self.device)
            heads = copy.deepcopy(heads).to(self.device)
        self.model, self.heads = model.eval(), heads
        self.chip_px, self.patch_px = model.config.chip_px, model.config.patch_px
        self.grid, self.num_tokens = model.grid, model.num_tokens
        self.band_set, self.width = band_set, model.config.width

    @classmethod
    def of_run(cls, run: Run) -> FrozenEncoder:
        """The encoder of a finished run, with its heads, on the run's device."""
        return cls(run.model, run.heads, device_of(run), run.band_set)

    @property
    def layers(self) -> tuple[RunLayer, ...]:
        """All that the run's heads offer for maps."""
        found = []
        for name, head in self.heads.items():
            first, layers = 0, cast(Head, head).layers()
            for layer in layers:
                found.append(RunLayer(name, layer, slice(first, first + layer.num_values)))
                first += layer.num_values
        return tuple(found)

    @property
    def class_layer(self) -> RunLayer:
        """The first layer that tells classes apart.

        Raises:
            RunError: the run has none.
        """
        for each in self.layers:
            if each.layer.classes:
                return each
        able = " or ".join(f"heads.{name}" for name, head in HEADS.items() if head.confusion_key)
        raise RunError(
            f"{able} is not among the run's heads, so it has no classes of its own: "
            "fit a probe on its features, or pretrain with that head"
        )

    def features(
        self, image: Real[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
    ) -> Float[Tensor, "batch token dim"]:
        """The encoder's vector of every patch, after its last normalisation; in the precision of
        the model's weights.

        Images may be larger or smaller than the chips of the training, by whole patches.

        Raises:
            ContractError: they are, and the model has learned places of chips alone.
        """
        return self.predict(image, valid)[0]

    def class_probabilities(
        self, image: Real[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
    ) -> Float[Tensor, "batch token cls"]:
        """What the run's own head says of the classes of every patch.

        Raises:
            RunError: the run was trained without a head that tells classes apart.
        """
        return self.predict(image, valid, [self.class_layer])[1].softmax(2)

    def read_out(self, readout: Readout) -> PerToken:
        """``features`` as a readout has them.

        Raises:
            ConfigError: energies are wanted, and the model's embedding has none.
        """
        if readout == "token":
            return self.features
        if readout == "views":
            return over_views(self.features, self.patch_px)
        if not isinstance(self.model.embed, EnergyEmbedding):
            raise ConfigError(
                f"--readout {readout}: the run's patches are embedded otherwise (model.embedding "
                f"'{self.model.config.embedding}') and have no energies: give --readout views"
            )
        return over_views(self._features_and_energies, self.patch_px)

    @torch.no_grad()
    def _features_and_energies(self, image: Tensor, valid: Tensor) -> Tensor:
        embed = cast(EnergyEmbedding, self.model.embed)
        energies = embed.of_set(self.band_set)[0]
        num_tokens = image.shape[2] // self.patch_px * (image.shape[3] // self.patch_px)
        every = torch.arange(num_tokens, device=self.device).expand(len(image), -1)
        there = image.to(self.device), valid.to(self.device)
        found = energies(*self.model.patches(*there, every, self.band_set)).to(image.device)
        features = self.features(image, valid)
        return torch.cat([features, found.to(features.dtype)], 2)

    @torch.no_grad()
    def predict(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        layers: Sequence[RunLayer] = (),
    ) -> tuple[Float[Tensor, "batch token _"], ...]:
        """``features``, and after them the values of these layers, in one pass: logits of classes,
        before any softmax.

        Raises:
            ContractError: layers are wanted of images that are no chips, whose places the decoder
                does not know.
        """
        size, chip = tuple(image.shape[2:]), (self.chip_px, self.chip_px)
        if layers and size != chip:
            raise ContractError(f"image: what heads predict is of chips, {chip} px; got {size}")
        num_tokens = size[0] // self.patch_px * (size[1] // self.patch_px)
        parts = []
        for chips, known in zip(
            image.split(CHIPS_AT_ONCE), valid.split(CHIPS_AT_ONCE), strict=True
        ):
            mask = all_visible(len(chips), num_tokens, self.device)
            there = chips.to(self.device), known.to(self.device)
            encoded = self.model.encode(*there, mask, self.band_set)
            found = [encoded]
            if layers:
                decoded = self.model.decode(encoded, mask)
                names = {each.head for each in layers}
                said = {name: cast(Head, self.heads[name]).predict(decoded) for name in names}
                found += [said[each.head][..., each.values] for each in layers]
            parts.append([each.to(image.device) for each in found])
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def in_precision(self, predict: PerToken, precision: str) -> PerToken:
        """``predict`` with matrix products in ``fp32``, ``bf16``, or what is fastest (``auto``)."""
        context = autocast(resolve_precision(precision, self.device.type), self.device.type)

        def predicted(image: Tensor, valid: Tensor) -> Tensor:
            with context():
                return predict(image, valid)

        return predicted
