"""How long work says where it stands: one type of callable everywhere."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, float, str], None]
"""(done, total, note): in whatever unit, the note in a few words."""


def unseen(done: float, total: float, note: str) -> None:
    """The progress of work that nobody watches."""
