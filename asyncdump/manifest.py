"""What the user asked for: the models of a manifest and their JSON Schema.

The same models serve a YAML file (read by `asyncdump.yamlfile`) and a program that builds them itself.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from asyncdump.digest import Checksum
from asyncdump.engines import Choice
from asyncdump.errors import ManifestError, Problem
from asyncdump.size import parse_size

OnError = Literal["continue", "abort"]
Sparse = Literal["auto", "never"]
Size = Annotated[
    int | str,
    Meta(description="bytes, or a number with a unit: 512KiB, 16MiB, 1GiB (dd's suffixes)", examples=[4096, "16MiB"]),
]
MethodField = Annotated[
    Choice, Meta(description="how the bytes are moved; auto lets the kernel decide, and is right nearly always")
]
ChecksumField = Annotated[Checksum, Meta(description="the digest taken of each dump")]
DurableField = Annotated[bool, Meta(description="wait until the dump would survive a power cut")]
SparseField = Annotated[Sparse, Meta(description="auto leaves runs of zeros out of the dump as holes")]


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a manifest. Values of the wrong type or range raise `ManifestError`."""

    def __post_init__(self) -> None:
        problems = [
            Problem(message=message, key=name)
            for name in fields(type(self))
            if (message := complaint(type(self), name, getattr(self, name)))
        ]
        if problems:
            raise ManifestError(*problems)


class Defaults(_Model, frozen=True, kw_only=True):
    """What holds for each dump that doesn't say otherwise."""

    method: MethodField = "auto"
    checksum: ChecksumField = "xxh128"
    durable: DurableField = True
    sparse: SparseField = "auto"


class Dump(_Model, frozen=True, kw_only=True):
    """One source, or all that a glob matches."""

    source: Annotated[
        str,
        Meta(description="a path or a glob, relative to the manifest's folder", min_length=1),
    ]
    name: Annotated[
        str,
        Meta(
            description="file name under output; {name} {stem} {suffix} {parent} {index} stand for parts of the source",
            min_length=1,
        ),
    ] = "{name}"
    offset: Annotated[Size, Meta(description="where the dump starts in the source (dd's skip)")] = 0
    length: Annotated[Size | None, Meta(description="how much is dumped at most (dd's count)")] = None
    method: MethodField | None = None
    checksum: ChecksumField | None = None
    durable: DurableField | None = None
    sparse: SparseField | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, os.PathLike):
            msgspec.structs.force_setattr(self, "source", os.fsdecode(self.source))
        super().__post_init__()


class Manifest(_Model, frozen=True, kw_only=True):
    """A run: which files are dumped, where to, and how."""

    version: Annotated[Literal[1], Meta(description="the version of this format")] = 1
    output: Annotated[
        str,
        Meta(
            description="folder for the dumps, created 0700 if missing; relative to the manifest's folder",
            min_length=1,
        ),
    ]
    concurrency: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | Literal["auto"], Meta(description="files in flight")
    ] = "auto"
    on_error: Annotated[OnError, Meta(description="what the failure of one file means for the others")] = "continue"
    defaults: Annotated[Defaults, Meta(description="what holds for each dump that doesn't say otherwise")] = (
        msgspec.field(default_factory=Defaults)
    )
    dumps: Annotated[tuple[Dump, ...], Meta(description="what is dumped", min_length=1)]

    def __post_init__(self) -> None:
        if isinstance(self.output, os.PathLike):
            msgspec.structs.force_setattr(self, "output", os.fsdecode(self.output))
        super().__post_init__()


@cache
def fields(model: type[_Model]) -> dict[str, Any]:
    """Return the type of each field of a model."""
    return {field.name: field.type for field in msgspec.structs.fields(model)}


@cache
def required(model: type[_Model]) -> list[str]:
    """Return the names of the fields of a model that have no default."""
    return [field.name for field in msgspec.structs.fields(model) if field.required]


def complaint(model: type[_Model], name: str, value: Any) -> str:
    """Return what is wrong with the value of a field, or an empty string."""
    kind = fields(model)[name]
    if name in {"defaults", "dumps"}:  # Models already: they complained when they were made.
        return "" if value != () else "names no dump"
    try:
        msgspec.convert(value, kind, strict=True)
        if name in {"offset", "length"} and value is not None:
            parse_size(value)
    except msgspec.ValidationError:
        return f"{value!r} is not {_expected(kind)}{_near(value, _choices(kind))}"
    except ValueError as error:
        return str(error)
    return ""


def unknown_key(model: type[_Model], key: str) -> str:
    """Return the complaint about a key that a model doesn't have."""
    known = list(fields(model))
    return f"unknown key{_near(key, known) or '; known are ' + ', '.join(known)}"


def _near(word: object, choices: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(str(word), choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) if not isinstance(part, Meta) for choice in _choices(part)]


def _expected(kind: Any) -> str:
    """Describe a type in words: ``true or false``, ``one of auto, direct``."""
    words = {bool: "true or false", int: "a whole number", str: "text", type(None): ""}
    if kind in words:
        return words[kind]
    if get_origin(kind) is Literal:
        choices = _choices(kind)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    parts = get_args(kind)
    if get_origin(kind) is Annotated:
        meta = next((part for part in parts if isinstance(part, Meta) and part.ge is not None), None)
        return f"{_expected(parts[0])} from {meta.ge} to {meta.le}" if meta else _expected(parts[0])
    return " or ".join(filter(None, map(_expected, parts)))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a manifest, for editors and validators."""
    schema = msgspec.json.schema(Manifest)
    model = schema["$defs"]["Manifest"]
    model["required"] = ["version", *model["required"]]  # A file must say it; a program needn't.
    model["properties"]["version"].pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "asyncdump manifest", **schema}
