"""The base class of the parts of a manifest: frozen values that are checked by the constructor."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from asyncdump.errors import ManifestError, Problem
from asyncdump.manifest.complaints import complaint, fields

Size = Annotated[
    int | str,
    Meta(description="bytes, or a number with a unit: 512KiB, 16MiB, 1GiB (dd's suffixes)", examples=[4096, "16MiB"]),
]


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a manifest. Values of the wrong type or out of range raise `ManifestError`."""

    def __post_init__(self) -> None:
        problems = [
            Problem(message=message, key=name)
            for name in fields(type(self))
            if (message := complaint(type(self), name, getattr(self, name)))
        ]
        if problems:
            raise ManifestError(*problems)
