"""Everything the package raises on purpose.

::

    BharatEOError
    ├── ConfigError            a key or value in a configuration or on the command line
    ├── RegionError            a region of interest that cannot be placed on Earth
    ├── SourceError            pixels could not be had
    │   ├── UnreachableError       the server or folder did not answer (after retries)
    │   ├── CorruptRasterError     a file is truncated or is no raster
    │   ├── ItemError              a catalogue's item cannot be used
    │   ├── UnknownCodeError       a label code the class scheme does not know
    │   └── EmptyRegionError       the region holds no valid pixel
    ├── BuildError             a build cannot go on: too many units failed, or no worker is left
    ├── DatasetError           a dataset folder is missing, unfinished or another plan's
    ├── ContractError          a run was given input that breaks its contract
    ├── RunError               a run folder is missing, unfinished or another configuration's
    │   └── DivergedError          a loss or gradient that is no number; its chips are written down
    ├── RankLostError          another process of a run on several has gone
    ├── Stopped                asked to end (SIGTERM, Ctrl-C), and the work so far is kept
    └── StorageError           the disk is full or refuses writes

Messages name the value, the file and the remedy, in that order.
"""


class BharatEOError(Exception):
    """Base of every error raised on purpose; the command line prints it without a traceback."""


class ConfigError(BharatEOError):
    """A key or value of a configuration is wrong."""


class RegionError(BharatEOError):
    """A region of interest is misspelt, malformed or impossible."""


class SourceError(BharatEOError):
    """Pixels could not be had from a source."""


class UnreachableError(SourceError):
    """A server or folder did not answer, also after retries.

    ``reason`` says why in a few words, where a server is the cause. ``withheld``: S3 answered 403,
    which it does for keys that may not be read and for keys that do not exist.
    """

    reason = ""
    withheld = False


class CorruptRasterError(SourceError):
    """A raster file is truncated or unreadable."""


class ItemError(SourceError):
    """An item of a catalogue cannot be used; ``what`` says in what way, of several like it."""

    MALFORMED = "are not as STAC has them"

    def __init__(self, message: str, what: str = MALFORMED) -> None:
        super().__init__(message)
        self.what = what

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return ItemError, (str(self), self.what)


class UnknownCodeError(SourceError):
    """A label raster holds a code that its class scheme does not know."""


class EmptyRegionError(SourceError):
    """A region of interest holds no valid pixel."""


class BuildError(BharatEOError):
    """A build cannot go on: too many of its units failed, or its workers are gone."""


class DatasetError(BharatEOError):
    """A dataset folder is missing, unfinished or belongs to another plan."""


class ContractError(BharatEOError):
    """A run was given input that breaks its contract (bands, unit, statistics, nodata)."""


class RunError(BharatEOError):
    """A run folder is missing, unfinished or belongs to another configuration."""


class DivergedError(RunError):
    """A loss or a gradient is no number any more."""


class RankLostError(BharatEOError):
    """Another rank of a run has ended or does not answer."""


class Stopped(BharatEOError):
    """The program was asked to end by ``signal`` and has kept what it had done."""

    def __init__(self, message: str, signal: int = 15) -> None:
        super().__init__(message)
        self.signal = signal


class StorageError(BharatEOError):
    """The disk is full or refuses to be written to."""
