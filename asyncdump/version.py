"""The version of this package, and nothing else: reading it is cheap."""

__version__ = "0.1.0"
