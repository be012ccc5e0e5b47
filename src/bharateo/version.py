"""The version of this package, at the bottom so that every room can write it into what it makes."""

__version__ = "0.1.0"
