"""The version, in one place: the package, its metadata and every file that a run writes read it here."""

__version__ = "0.1.0"
