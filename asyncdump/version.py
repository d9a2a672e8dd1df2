"""The version of this package. The module contains nothing else, so that importing it is cheap."""

__version__ = "0.1.0"
