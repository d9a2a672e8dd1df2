"""Describes what is wrong with a value of a manifest."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from asyncdump.codecs.codec import FRAMES
from asyncdump.text import shown
from asyncdump.vocabulary.size import KIB, parse_size

SIZES = frozenset({"offset", "length", "frame"})
"""The fields that are sizes."""


_LONG_WORD = 64


_LONGEST_DELAY = 3600


@cache
def fields(model: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the type of each field of a model."""
    return {field.name: field.type for field in msgspec.structs.fields(model)}


@cache
def required(model: type[msgspec.Struct]) -> list[str]:
    """Return the names of the fields of a model without a default."""
    return [field.name for field in msgspec.structs.fields(model) if field.required]


def complaint(model: type[msgspec.Struct], name: str, value: Any) -> str:
    """Return the message for an invalid value of a field, or an empty string."""
    kind = fields(model)[name]
    models = _models_in(kind)
    if name in {"defaults", "dumps"}:
        values = value if name == "dumps" and isinstance(value, tuple | list) else (value,)
        if any(not isinstance(each, models) for each in values):
            return f"{shown(value)} must be made of {models[0].__name__}(...)"
        return "" if values else "is empty: list at least one dump"
    if isinstance(value, msgspec.Struct):  # It was checked when it was made: only its type is left to check.
        return "" if isinstance(value, models) else f"{shown(value)} is not {_expected(kind)}"
    try:
        msgspec.convert(value, kind, strict=True)
        if name in SIZES and value is not None:
            parse_size(value)
        if name == "delay" and not 0 < value <= _LONGEST_DELAY:
            return f"{shown(value)} is not a number of seconds, from 0 to {_LONGEST_DELAY}"
        if name == "frame" and not FRAMES[0] <= parse_size(value) <= FRAMES[1]:
            return f"{shown(value)} is not from {FRAMES[0] // KIB} KiB to {FRAMES[1] // KIB**2} MiB"
    except msgspec.ValidationError:
        if name == "errors":
            return f"{shown(value)} is not a list of {', '.join(_choices(kind))}"
        if name == "filter":
            return "must be a list of argument lists: [[age, -r, KEY], [gzip]]"
        if name == "timeout":
            return f"{shown(value)} is not a number of seconds, from 0 to 86400"
        return f"{shown(value)} is not {_expected(kind)}{_near(value, _choices(kind))}"
    except ValueError as error:
        return str(error)
    return ""


def unknown_key(model: type[msgspec.Struct], key: str) -> str:
    """Return the complaint about an unknown key."""
    known = list(fields(model))
    return f"unknown key{_near(key, known) or '; known keys are ' + ', '.join(known)}"


def _models_in(kind: Any) -> tuple[type[msgspec.Struct], ...]:
    """Return the models in a type."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return (kind,)
    return tuple(model for part in get_args(kind) for model in _models_in(part))


def _near(word: object, choices: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, choices, n=1) if isinstance(word, str) and len(word) < _LONG_WORD else []
    return f"; did you mean {near[0]}?" if near else ""


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) if not isinstance(part, Meta) for choice in _choices(part)]


def _expected(kind: Any) -> str:
    """Describe a type in words: ``true or false``, ``one of auto, direct``."""
    words = {bool: "true or false", int: "a whole number", str: "text", type(None): "", float: "a number"}
    if kind in words:
        return words[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return str(getattr(kind, "example", kind.__name__))
    if get_origin(kind) is Literal:
        choices = _choices(kind)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    parts = get_args(kind)
    if get_origin(kind) is Annotated:
        meta = next((part for part in parts if isinstance(part, Meta) and part.ge is not None), None)
        return f"{_expected(parts[0])} from {meta.ge} to {meta.le}" if meta else _expected(parts[0])
    return " or ".join(filter(None, map(_expected, parts)))
