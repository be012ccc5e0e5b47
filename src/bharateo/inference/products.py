"""Products of a run: which run made them, and of what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from bharateo.artefacts import OpenRecord, Record
from bharateo.pixels.product import Plan
from bharateo.training.run import Run


class MadeBy(Record):
    """The run that made a product."""

    name: str
    weights_sha256: str

    @classmethod
    def of(cls, run: Run) -> MadeBy:
        """That of an open run."""
        return cls(name=run.path.resolve().name, weights_sha256=run.weights_sha256)


class MadeOf(OpenRecord):
    """A product's input, a raster, scene or dataset; other keys tell this version of it apart.

    ``identity`` is the SHA-256 of what decides every number in it, ``datetime`` when a scene was
    taken, ``mtime_ns`` when a file was changed.
    """

    identity: str
    input: str | None = None
    dataset: str | None = None
    attribution: list[str] = Field(default_factory=list)
    datetime: str | None = None
    mtime_ns: int | None = None
    bands: list[str] = Field(default_factory=list)
    bands_in_file: list[int] = Field(default_factory=list)


class ProductPlan(Plan):
    """What decides a product's contents; ``run`` is None where no run has a part in it."""

    run: MadeBy | None
    source: MadeOf
    fingerprint: str = ""

    @property
    def when(self) -> dict[str, Any]:
        """The scene's time; else that of the input's file, which is said."""
        if self.source.datetime is not None:
            return {"datetime": self.source.datetime}
        if self.source.mtime_ns is not None:
            changed = datetime.fromtimestamp(self.source.mtime_ns // 10**9, UTC)
            return {
                "datetime": changed.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "description": "datetime: when the input's file was last changed; when its pixels "
                "were taken is not known",
            }
        return {
            "datetime": None,
            "start_datetime": "1972-07-23T00:00:00Z",
            "end_datetime": "2100-01-01T00:00:00Z",
            "description": "when the input's pixels were taken is not known: the time is any since "
            "the first Landsat",
        }
