"""What every presentation of an epoch shows: pure functions of seed, epoch and position.

A presentation is one chip shown once; position p of an epoch is its p-th. Every position owns its
own stretch of a counter-based generator, so a rank draws its share alone, and neither the batch
size nor the number of ranks changes what position p shows. With ``masks_per_chip`` k, positions
k * i to k * i + k - 1 show the i-th chip that the epoch loads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from bharateo.errors import ConfigError

_RUN_CHIPS = 64
"""Most neighbours that stay together when runs are shuffled."""

_WORDS_PER_COUNT = 4
"""64-bit words, a number each, that Philox makes of one count."""


@dataclass(frozen=True)
class Draws:
    """What presentations show: stored squares, the upper left pixels of the windows in them, the
    symmetry of each (0 to 7, see ``batches.symmetric``) and the noise that makes its mask.
    """

    chip: Int64[np.ndarray, " shown"]
    row: Int64[np.ndarray, " shown"]
    col: Int64[np.ndarray, " shown"]
    symmetry: Int64[np.ndarray, " shown"]
    noise: Float64[np.ndarray, "shown token"]

    def __len__(self) -> int:
        return len(self.chip)

    def __getitem__(self, some: slice) -> Draws:
        return Draws(
            self.chip[some], self.row[some], self.col[some], self.symmetry[some], self.noise[some]
        )


def epoch_order(
    chips: Int64[np.ndarray, " square"],
    num_chips: int,
    seed: int,
    epoch: int,
    shuffle_window: int | None = None,
    lanes: int = 1,
) -> Int64[np.ndarray, " chip"]:
    """Which stored square each of the chips is that an epoch loads: all equally often.

    All are shuffled; with ``shuffle_window``, runs of neighbours are, and then the chips inside
    consecutive windows of that many. With ``lanes``, lane k is ``chips[k::lanes]``; it has an
    order of its own, and every ``lanes``-th place of the epoch from the k-th on.

    Raises:
        ConfigError: there are more lanes than squares.
    """
    if lanes > len(chips):
        raise ConfigError(
            f"training.lanes {lanes} is more than the {len(chips)} squares of the train split: "
            f"set it to {len(chips)} at most"
        )
    order = np.empty(num_chips, np.int64)
    for lane in range(lanes):
        rng = np.random.default_rng([seed, epoch, lane])  # a last 0 changes nothing
        own = order[lane::lanes]
        own[:] = _shuffled(chips[lane::lanes], len(own), shuffle_window, rng)
    return order


def _shuffled(
    chips: Int64[np.ndarray, " square"],
    num_chips: int,
    window: int | None,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " chip"]:
    rounds = range(-(-num_chips // len(chips)))
    if window is None:
        return np.concatenate([chips[:0], *(rng.permutation(chips) for _ in rounds)])[:num_chips]
    run = max(min(_RUN_CHIPS, window // 8), 1)
    order = np.concatenate([chips[:0], *(_runs_shuffled(chips, run, rng) for _ in rounds)])
    order = order[:num_chips]
    for start in range(0, num_chips, window):
        rng.shuffle(order[start : start + window])
    return order


def _runs_shuffled(
    chips: Int64[np.ndarray, " square"], run: int, rng: np.random.Generator
) -> Int64[np.ndarray, " square"]:
    starts = rng.permutation(np.arange(0, len(chips), run))
    places = (starts[:, None] + np.arange(run)).reshape(-1)
    return chips[places[places < len(chips)]]


def share(
    start: int, stop: int, rank: int, num_ranks: int, lanes: int = 1, masks_per_chip: int = 1
) -> Int64[np.ndarray, " shown"]:
    """The positions that a rank takes of the batch [start, stop) of all ranks, ascending.

    Without lanes an even part of the batch in one piece, in whole chips; else those of its lanes,
    which are every ``num_ranks``-th. May be empty where a batch is small.

    Raises:
        ConfigError: the lanes cannot be shared evenly by the ranks.
    """
    if lanes > 1 and lanes % num_ranks:
        raise ConfigError(
            f"training.lanes {lanes} cannot be shared by {num_ranks} ranks: set it to a multiple "
            f"of {num_ranks}, or to 1"
        )
    positions = np.arange(start, stop)
    chip = positions // masks_per_chip
    first, last = start // masks_per_chip, -(-stop // masks_per_chip)
    owner = chip % num_ranks if lanes > 1 else (chip - first) * num_ranks // (last - first)
    return positions[owner == rank]


def draw(
    positions: Int64[np.ndarray, " shown"],
    chips: Int64[np.ndarray, " shown"],
    spare_px: int,
    num_tokens: int,
    augment: bool,
    seed: int,
    epoch: int,
    masks_per_chip: int = 1,
) -> Draws:
    """What the positions of an epoch show, which are ascending; ``chips`` are their squares.

    ``spare_px`` is by how much a square is larger than a chip. Windows are uniform over all
    places, the same for all presentations of a loaded chip; symmetry (0 unless ``augment``) and
    noise are every presentation's own.
    """
    firsts = positions - positions % masks_per_chip
    begin, end = (int(firsts[0]), int(positions[-1]) + 1) if len(positions) else (0, 0)
    numbers = _numbers(begin, end, 3 + num_tokens, seed, epoch)
    window, own = numbers[firsts - begin], numbers[positions - begin]
    row, col = (window[:, :2] * (spare_px + 1)).astype(np.int64).T
    symmetry = (own[:, 2] * (8 if augment else 1)).astype(np.int64)
    return Draws(chips, row, col, symmetry, own[:, 3:])


def _numbers(
    begin: int, end: int, width: int, seed: int, epoch: int
) -> Float64[np.ndarray, "shown width"]:
    """Numbers in [0, 1): row p - ``begin`` is position p's, wherever the range begins."""
    counts = -(-width // _WORDS_PER_COUNT)
    philox = np.random.Philox(np.random.SeedSequence([seed, epoch])).advance(begin * counts)
    numbers = np.random.Generator(philox).random((end - begin, counts * _WORDS_PER_COUNT))
    return numbers[:, :width]
