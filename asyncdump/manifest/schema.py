"""The JSON Schema of a manifest."""

from __future__ import annotations

from typing import Any

import msgspec

from asyncdump.manifest.compression import MODELS
from asyncdump.manifest.models import Manifest


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a manifest, for editors and validators."""
    # Decoded JSON has lists where the models have tuples.
    schema = msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(Manifest)))
    model = schema["$defs"]["Manifest"]
    model["required"] = ["version", *model["required"]]  # A file must say it; a program needn't.
    model["properties"]["version"].pop("default", None)
    for each in MODELS.values():  # Their tag only distinguishes them here: in a file, the key around them does.
        described = schema["$defs"][each.__name__]
        del described["properties"]["codec"], described["required"]
    for name in ("Defaults", "Dump"):
        _spell_compress(schema["$defs"][name]["properties"]["compress"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "asyncdump manifest", **schema}


def _spell_compress(field: dict[str, Any]) -> None:
    """Describe ``{zstd: {...}}``, which is how a file spells a model."""
    spelled = [
        {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/{model.__name__}"}},
            "required": [name],
            "additionalProperties": False,
        }
        for name, model in MODELS.items()
    ]
    field["anyOf"] = [choice for choice in field["anyOf"] if "discriminator" not in choice] + spelled
