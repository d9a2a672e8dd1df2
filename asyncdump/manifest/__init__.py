"""The manifest: its models, read from YAML or built by a program, and the options that override them.

Neither engines nor anything that needs them is imported for the models. Names are imported when they are first used,
so that the command line can read the options without the models.

- `model`, `models`, `compression`: the models, which check their values
- `yaml`: reading a manifest, with all errors and their lines
- `complaints`: the messages for invalid values
- `options`, `keywords`: the options of a run, defined once; the same as keyword arguments
- `schema`: the JSON Schema of a manifest
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncdump.manifest.compression import Lz4 as Lz4
    from asyncdump.manifest.compression import Zstd as Zstd
    from asyncdump.manifest.models import Defaults as Defaults
    from asyncdump.manifest.models import Dump as Dump
    from asyncdump.manifest.models import Manifest as Manifest
    from asyncdump.manifest.models import ProcessMemory as ProcessMemory
    from asyncdump.manifest.models import Retries as Retries
    from asyncdump.manifest.options import Overrides as Overrides
    from asyncdump.manifest.schema import json_schema as json_schema

_HOMES = {
    "Defaults": "models",
    "Dump": "models",
    "Lz4": "compression",
    "Manifest": "models",
    "Overrides": "options",
    "ProcessMemory": "models",
    "Retries": "models",
    "Zstd": "compression",
    "json_schema": "schema",
}

__all__ = ["Defaults", "Dump", "Lz4", "Manifest", "Overrides", "ProcessMemory", "Retries", "Zstd", "json_schema"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
