"""What a run reads and is asked: tokens, pixels and scalars, each named for what it is.

A *presentation* is one chip, or one of its tokens, shown to the model once. Pixels are squares on
the ground; *scalars* are pixels times bands. The two differ by the number of bands, which is why
neither is ever called "pixels" for short.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bharateo.errors import ConfigError


class Row(NamedTuple):
    """One line of a table: a quantity, its value, its unit and what it means in one line."""

    name: str
    value: int | float
    unit: str
    meaning: str

    @property
    def shown(self) -> str:
        """The value as printed: whole numbers whole, others with three digits or to the unit."""
        if isinstance(self.value, int) or abs(self.value) >= 999.5:
            return f"{self.value:,.0f}"
        return f"{self.value:.3g}"


@dataclass(frozen=True)
class Accounting:
    """A planned or finished run, counted.

    ``chips`` are presented in every one of ``epochs`` epochs; a chip of ``chip_px`` pixels a side
    is cut into patches of ``patch_px``, one token each, and ``mask_ratio`` of them is hidden.

    Raises:
        ConfigError: a number is out of range, the patch does not divide the chip, or the mask
            hides no token, unless it is 0, or every token.
    """

    chips: int
    epochs: int
    chip_px: int
    patch_px: int
    num_bands: int
    mask_ratio: float

    def __post_init__(self) -> None:
        for name in ("chips", "epochs", "chip_px", "patch_px", "num_bands"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} {value} cannot be counted with: give at least 1")
        if self.chip_px % self.patch_px:
            raise ConfigError(
                f"patch_px {self.patch_px} does not divide chip_px {self.chip_px}: choose a patch "
                f"that does, such as {_nearest_divisor(self.chip_px, self.patch_px)}"
            )
        if not 0 <= self.mask_ratio < 1:
            raise ConfigError(
                f"mask_ratio {self.mask_ratio} is the share of tokens hidden: give 0 or more, "
                "and less than 1"
            )
        if self.mask_ratio and self.masked_per_chip == 0:
            raise ConfigError(
                f"mask_ratio {self.mask_ratio} of {self.tokens_per_chip} tokens hides none: raise "
                "it, or use smaller patches"
            )

    @property
    def tokens_per_chip(self) -> int:
        """Tokens a chip is cut into."""
        return (self.chip_px // self.patch_px) ** 2

    @property
    def masked_per_chip(self) -> int:
        """Tokens hidden in every chip: ``int(tokens x mask_ratio)``, exactly."""
        return int(self.tokens_per_chip * self.mask_ratio)

    @property
    def visible_per_chip(self) -> int:
        """Tokens of every chip that the model sees."""
        return self.tokens_per_chip - self.masked_per_chip

    @property
    def values_per_token(self) -> int:
        """Scalars in one token's patch: bands x rows x columns."""
        return self.num_bands * self.patch_px**2

    @property
    def chip_presentations(self) -> int:
        """Chips shown, counted every time."""
        return self.chips * self.epochs

    @property
    def token_presentations(self) -> int:
        """Tokens of all chips shown, visible and masked."""
        return self.chip_presentations * self.tokens_per_chip

    @property
    def visible_inputs(self) -> int:
        """Tokens the model was given."""
        return self.chip_presentations * self.visible_per_chip

    @property
    def masked_targets(self) -> int:
        """Tokens the model had to fill in."""
        return self.chip_presentations * self.masked_per_chip

    @property
    def masked_pixels(self) -> int:
        """Pixels under the masked tokens, each counted once whatever the number of bands."""
        return self.masked_targets * self.patch_px**2

    @property
    def scalar_targets(self) -> int:
        """Numbers the model had to predict: masked pixels x bands."""
        return self.masked_pixels * self.num_bands

    def rows(self) -> tuple[Row, ...]:
        """The account as table rows, from one chip to the whole run."""
        return _per_chip(self) + _per_run(self)


def _per_chip(run: Accounting) -> tuple[Row, ...]:
    grid = run.chip_px // run.patch_px
    return (
        Row(
            "tokens per chip",
            run.tokens_per_chip,
            "tokens",
            f"{run.chip_px} px chip in {run.patch_px} px patches: {grid} × {grid}",
        ),
        Row(
            "masked per chip",
            run.masked_per_chip,
            "tokens",
            f"int({run.tokens_per_chip} × {run.mask_ratio:g}), hidden from the model",
        ),
        Row("visible per chip", run.visible_per_chip, "tokens", "the rest, its only input"),
        Row(
            "values per token",
            run.values_per_token,
            "scalars",
            f"{run.num_bands} bands × {run.patch_px} × {run.patch_px} pixels",
        ),
    )


def _per_run(run: Accounting) -> tuple[Row, ...]:
    return (
        Row(
            "chip presentations",
            run.chip_presentations,
            "chips",
            f"{run.chips:,} chips an epoch × {run.epochs:,} epochs",
        ),
        Row(
            "token presentations",
            run.token_presentations,
            "tokens",
            "chip presentations × tokens per chip",
        ),
        Row(
            "visible inputs",
            run.visible_inputs,
            "tokens",
            "chip presentations × visible per chip",
        ),
        Row(
            "masked targets",
            run.masked_targets,
            "tokens",
            "chip presentations × masked per chip",
        ),
        Row(
            "masked pixels",
            run.masked_pixels,
            "pixels",
            f"masked targets × {run.patch_px}² pixels; a pixel counts once, whatever its bands",
        ),
        Row(
            "scalar targets",
            run.scalar_targets,
            "scalars",
            f"masked pixels × {run.num_bands} bands: the numbers the model had to predict",
        ),
    )


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = (step for step in range(1, number + 1) if number % step == 0)
    return min(divisors, key=lambda divisor: abs(divisor - wanted))


def published() -> Mapping[str, Accounting]:
    """The two runs whose accounts are published: BharatEO-v0 and the planned one of 1 M chips.

    Source: "Building a Foundational EO Model for BharatEO: A Tiny WorldCover V0 Notebook",
    N. Batra, 2026-05-05.
    """
    return {
        "BharatEO-v0": Accounting(384, 20, 128, 16, 3, 0.75),
        "1 M Sentinel-2 chips": Accounting(1_000_000, 100, 128, 16, 10, 0.75),
    }
