"""The two masked autoencoders behind one interface: image, validity and mask in, tokens out.

Both work on tokens in the mask's visible-first order, so the masked ones are a slice; attention
does not mind the order, and positions are gathered with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from bharateo.config import ModelConfig
from bharateo.errors import ConfigError, ContractError
from bharateo.models.embedding import EMBEDDINGS, KeptInFloat32, PatchEmbedding
from bharateo.models.kernels import known_all, take_patches
from bharateo.models.patches import Mask
from bharateo.models.vit import blocks, init_transformer, sincos_positions, start_as_torch
from bharateo.sensor import named_bands


@dataclass(frozen=True)
class Tokens:
    """What a model returns: one vector a token, visible first, with the mask that ordered them.

    ``patches`` are the tokens' patches in model units and ``pixels`` says which of their pixels
    are valid, in the same order: the visible ones were the input, the masked ones are the target.
    ``encoded`` are the encoder's vectors of the visible ones.
    """

    values: Float[Tensor, "batch token dim"]
    mask: Mask
    patches: Float[Tensor, "batch token value"]
    pixels: Bool[Tensor, "batch token pixel"]
    encoded: Float[Tensor, "batch visible width"]

    @property
    def masked(self) -> Float[Tensor, "batch masked dim"]:
        """Vectors of the masked tokens."""
        return self.values[:, self.mask.num_visible :]


class Normalise(KeptInFloat32):
    """Physical units to model units: (x - mean) / std per band.

    The first module of every model and the only normalisation anywhere. The statistics travel
    in the weights; they are 0 and 1 for sensors that are not standardised. An invalid pixel takes
    the mean of its patch's valid pixels, or 0, so that what it held cannot matter.

    It stays in float32 when its model goes to half precision, in which stored values of thousands
    lie up to eight apart.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def model_units(self, physical: Float[Tensor, "*lead band"]) -> Float[Tensor, "*lead band"]:
        """Physical values of every band in model units."""
        return (physical - self.mean) / self.std

    def is_identity(self) -> bool:
        """Whether model units are known to be physical units, as for colours in [0, 1]."""
        return known_all(self.mean == 0) and known_all(self.std == 1)

    def physical_units(
        self, normalised: Float[Tensor, "batch band row col"]
    ) -> Float[Tensor, "batch band row col"]:
        """An image in model units back in physical units."""
        return normalised * self.std[:, None, None] + self.mean[:, None, None]

    def forward(
        self,
        patches: Float[Tensor, "batch chosen value"],
        valid: Bool[Tensor, "batch chosen pixel"],
        places: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch chosen value"]:
        """Normalised patches with their invalid pixels filled; they hold all bands, or those at
        some ``places`` among them.
        """
        mean, std = self.mean, self.std
        if places is not None:
            mean, std = mean[list(places)], std[list(places)]
        normalised = patches.unflatten(2, (mean.shape[0], -1))
        if not self.is_identity():
            scale = 1 / std[:, None]
            normalised = torch.addcmul(-mean[:, None] * scale, normalised, scale)
        if not known_all(valid):
            known = valid[:, :, None]
            normalised = normalised.masked_fill(~known, 0.0)
            mean = normalised.sum(3, keepdim=True) / known.sum(3, keepdim=True).clamp(min=1)
            normalised = torch.where(known, normalised, mean)
        return normalised.flatten(2)


class MaskedAutoencoder(nn.Module):
    """What both models share: patches of the right tokens, normalised, with their validity.

    Images are physical values of any type; vectors come in the weights' precision, which
    ``half()`` and ``bfloat16()`` change.

    ``band_sets`` are the places among all bands of those that each set of ``model.band_sets``
    holds. Where one is named, the encoder is given its bands alone; ``forward`` takes images of all
    bands all the same, whose hidden patches are targets in all bands, and ``encode`` images of the
    set's, in its order.
    """

    embed: PatchEmbedding
    """One of ``EMBEDDINGS``."""

    def __init__(
        self,
        config: ModelConfig,
        mean: Sequence[float],
        std: Sequence[float],
        band_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.num_bands = len(mean)
        self.band_names = tuple(band_names)
        self.band_sets = places_of_sets(config, band_names)
        self.grid = config.chip_px // config.patch_px
        self.num_tokens = self.grid**2
        self.values_per_patch = self.num_bands * config.patch_px**2
        self.normalise = Normalise(mean, std)
        self.embed = EMBEDDINGS[config.embedding](config, self.num_bands, self.band_sets)

    @property
    def decoded_width(self) -> int:
        """Width of the returned tokens, the heads' input."""
        raise NotImplementedError

    def init_weights(self, module: nn.Module) -> None:
        """How the model initialises a layer; PyTorch's own way unless overridden."""

    def patches(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        index: Tensor,
        band_set: str | None = None,
    ) -> tuple[Float[Tensor, "batch chosen value"], Bool[Tensor, "batch chosen pixel"]]:
        """Normalised patches ``index`` of an image in physical units, and pixel validity; of an
        image that holds a set's bands alone, where one is named.
        """
        places = None if band_set is None else self.band_sets[band_set]
        pixels = take_patches(valid[:, None], self.config.patch_px, index)
        physical = take_patches(image.float(), self.config.patch_px, index)
        return self.normalise(physical, pixels, places), pixels

    def of_set(
        self, patches: Float[Tensor, "batch chosen value"], band_set: str | None
    ) -> Float[Tensor, "batch chosen _"]:
        """Patches of all bands with those of a set left alone, in its order."""
        if band_set is None:
            return patches
        by_band = patches.unflatten(2, (self.num_bands, -1))
        return by_band[:, :, list(self.band_sets[band_set])].flatten(2)

    def every_patch(
        self, image: Real[Tensor, "batch band row col"], valid: Bool[Tensor, "batch row col"]
    ) -> tuple[Float[Tensor, "batch token value"], Bool[Tensor, "batch token pixel"]]:
        """``patches``, all of them, row-major."""
        every = torch.arange(self.num_tokens, device=image.device)
        return self.patches(image, valid, every.expand(len(image), -1))

    def forward(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        mask: Mask,
        band_set: str | None = None,
    ) -> Tokens:
        """A vector for every token, given only the visible patches, and of them only the bands of
        a set where one is named.
        """
        raise NotImplementedError

    def encode(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        mask: Mask,
        band_set: str | None = None,
    ) -> Float[Tensor, "batch visible dim"]:
        """The encoder's vectors of the visible patches alone, in the mask's order."""
        raise NotImplementedError

    def decode(
        self, encoded: Float[Tensor, "batch visible dim"], mask: Mask
    ) -> Float[Tensor, "batch token decoded"]:
        """The vectors that the heads take, from those of ``encode``."""
        raise NotImplementedError


class V0(MaskedAutoencoder):
    """The masked autoencoder of He et al. 2022: visible-only encoder, light decoder.

    Validity reaches the encoder as a learned vector times the share of a patch's pixels that are
    missing.
    """

    positions: Tensor
    decoder_positions: Tensor

    def __init__(
        self,
        config: ModelConfig,
        mean: Sequence[float],
        std: Sequence[float],
        band_names: Sequence[str] = (),
    ) -> None:
        super().__init__(config, mean, std, band_names)
        width, decoder_width = config.width, config.decoder_width
        self.missing = nn.Parameter(torch.zeros(width))
        self.encoder = blocks(config.depth, width, config.num_heads, config.mlp_ratio)
        self.norm = nn.LayerNorm(width)
        self.to_decoder = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(decoder_width))
        self.decoder = blocks(
            config.decoder_depth, decoder_width, config.decoder_num_heads, config.mlp_ratio
        )
        self.apply(self.init_weights)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.missing, std=0.02)
        for name, size in (("positions", width), ("decoder_positions", decoder_width)):
            table = sincos_positions(self.grid, self.grid, size)
            self.register_buffer(name, table, persistent=False)

    def init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform linear layers."""
        init_transformer(module)

    @property
    def decoded_width(self) -> int:
        """Width of the decoder."""
        return self.config.decoder_width

    def forward(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        mask: Mask,
        band_set: str | None = None,
    ) -> Tokens:
        """Encode the visible patches, then decode all tokens."""
        patches, pixels = self.patches(image, valid, mask.order)
        seen = slice(mask.num_visible)
        places = self.positions[mask.visible]
        visible = self.of_set(patches[:, seen], band_set)
        encoded = self._encode(visible, pixels[:, seen], places, band_set)
        return Tokens(self.decode(encoded, mask), mask, patches, pixels, encoded)

    def encode(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        mask: Mask,
        band_set: str | None = None,
    ) -> Float[Tensor, "batch visible dim"]:
        """The encoder's vectors of the visible patches alone, of an image of any whole number of
        patches: sine positions go on beyond the chips of the training.
        """
        rows, cols = (side // self.config.patch_px for side in image.shape[2:])
        positions = self.positions
        if (rows, cols) != (self.grid, self.grid):
            positions = sincos_positions(rows, cols, self.config.width).to(positions)
        patches, pixels = self.patches(image, valid, mask.visible, band_set)
        return self._encode(patches, pixels, positions[mask.visible], band_set)

    def _encode(
        self, patches: Tensor, pixels: Tensor, places: Tensor, band_set: str | None
    ) -> Tensor:
        missing = (1 - pixels.float().mean(2, keepdim=True)).to(self.missing.dtype)
        x = self.embed(patches, pixels, band_set) + missing * self.missing + places
        return self.norm(self.encoder(x))

    def decode(
        self, encoded: Float[Tensor, "batch visible dim"], mask: Mask
    ) -> Float[Tensor, "batch token decoded"]:
        """A decoder vector for every token; masked ones start as the mask token."""
        batch, num_masked = mask.masked.shape
        seen = self.to_decoder(encoded)
        hidden = self.mask_token.to(seen.dtype).expand(batch, num_masked, -1)
        x = torch.cat([seen, hidden], 1) + self.decoder_positions.to(seen.dtype)[mask.order]
        decoded: Tensor = self.decoder(x)
        return decoded


class Seed(MaskedAutoencoder):
    """The model of the first BharatEO-v0 experiment, as far as it is published.

    Learned positions, the mask token put in at the input, all tokens through one encoder. It is
    a baseline: the published numbers belong to it. Its code is not published; what its notebook
    prints tells of ``nn.TransformerEncoder``, so blocks compute and start as that one's do.
    Source: N. Batra, "Building a Foundational EO Model for BharatEO", 2026-05-05.
    """

    def __init__(
        self,
        config: ModelConfig,
        mean: Sequence[float],
        std: Sequence[float],
        band_names: Sequence[str] = (),
    ) -> None:
        super().__init__(config, mean, std, band_names)
        self.mask_token = nn.Parameter(torch.zeros(config.width))
        self.positions = nn.Parameter(torch.zeros(self.num_tokens, config.width))
        self.encoder = blocks(config.depth, config.width, config.num_heads, config.mlp_ratio)
        start_as_torch(self.encoder)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    @property
    def decoded_width(self) -> int:
        """Width of the encoder."""
        return self.config.width

    def forward(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        mask: Mask,
        band_set: str | None = None,
    ) -> Tokens:
        """All tokens through the encoder, masked ones as the mask token."""
        patches, pixels = self.patches(image, valid, mask.order)
        visible = slice(mask.num_visible)
        shown = self.of_set(patches[:, visible], band_set)
        seen = self.embed(shown, pixels[:, visible], band_set)
        hidden = self.mask_token.to(seen.dtype).expand(*mask.masked.shape, -1)
        x = torch.cat([seen, hidden], 1) + self.positions.to(seen.dtype)[mask.order]
        values = self.encoder(x)
        return Tokens(values, mask, patches, pixels, values[:, : mask.num_visible])

    def encode(
        self,
        image: Real[Tensor, "batch band row col"],
        valid: Bool[Tensor, "batch row col"],
        mask: Mask,
        band_set: str | None = None,
    ) -> Float[Tensor, "batch visible dim"]:
        """The vectors of the visible patches, where no masked ones take part.

        Raises:
            ContractError: the image is no chip; what was learned of places is of chips alone.
        """
        side = self.config.chip_px
        if tuple(image.shape[2:]) != (side, side):
            raise ContractError(
                f"image: the model 'seed' has learned the places in chips of {side} px and has "
                f"none for {tuple(image.shape[2:])}; cut chips, or pretrain a 'v0'"
            )
        patches, pixels = self.patches(image, valid, mask.visible, band_set)
        embedded = self.embed(patches, pixels, band_set)
        encoded: Tensor = self.encoder(embedded + self.positions[mask.visible])
        return encoded

    def decode(
        self, encoded: Float[Tensor, "batch visible dim"], mask: Mask
    ) -> Float[Tensor, "batch token decoded"]:
        """The same vectors, where nothing is masked; masked tokens go through the encoder."""
        if mask.masked.shape[1]:
            raise ValueError("this model has no decoder: what is masked is not in its encoding")
        return encoded


MODELS: dict[str, type[MaskedAutoencoder]] = {"v0": V0, "seed": Seed}


def build_model(
    config: ModelConfig,
    mean: Sequence[float],
    std: Sequence[float],
    band_names: Sequence[str] = (),
) -> MaskedAutoencoder:
    """The model named in the configuration, for the bands the statistics are of.

    Raises:
        ConfigError: sizes make no model, or a set of bands is none of ``band_names``.
    """
    return MODELS[config.name](config, mean, std, band_names)


def places_of_sets(config: ModelConfig, band_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The bands of each set in ``model.band_sets``, as their places among all; sets by name.

    Raises:
        ConfigError: a set names a band that is not there or twice, holds all of them, or the same
            as another set.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, given in sorted(config.band_sets.items()):
        bands, where = named_bands(given), f"model.band_sets.{name}"
        if strange := [band for band in bands if band not in band_names]:
            raise ConfigError(
                f"{where}: {strange[0]} is none of the bands {', '.join(band_names)}: leave the "
                "set out, or name bands that are there"
            )
        if len({*bands}) < len(bands):
            raise ConfigError(f"{where}: {', '.join(bands)} names a band twice: name each once")
        if len(bands) == len(band_names):
            raise ConfigError(
                f"{where} holds all {len(bands)} bands, which a model serves anyhow: leave it out"
            )
        places = tuple(band_names.index(band) for band in bands)
        for other, there in found.items():
            if {*there} == {*places}:
                raise ConfigError(f"{where} holds the bands of {other}: leave one of them out")
        found[name] = places
    return found


def num_parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters())
