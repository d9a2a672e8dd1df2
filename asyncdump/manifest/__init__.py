"""What was requested: the models of a manifest, read from YAML or built by a program, and what overrides them.

No engine is loaded for them, and nothing that needs one. Names are imported when they are first used: the command line
reads the options without the models.
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
