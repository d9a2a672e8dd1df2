"""What was asked for: the models of a manifest, read from YAML or built by a program, and what overrides them.

No engine is loaded for them, and nothing that needs one.
"""

from asyncdump.manifest.compression import Lz4, Zstd
from asyncdump.manifest.models import Defaults, Dump, Manifest, Retries
from asyncdump.manifest.schema import json_schema

__all__ = ["Defaults", "Dump", "Lz4", "Manifest", "Retries", "Zstd", "json_schema"]
