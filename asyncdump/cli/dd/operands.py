"""The operands of dd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, get_args

import msgspec

from asyncdump.codecs.codec import Compression
from asyncdump.codecs.registry import parse_compression
from asyncdump.transfer.stream import StreamMethod
from asyncdump.vocabulary.size import MAXIMUM, parse_size, refuse_zero_times
from asyncdump.vocabulary.values import Choice

_CONVERSIONS: Final = {"fsync", "fdatasync", "notrunc", "sparse"}


_STATUSES: Final = ("default", "none", "noxfer", "progress")


_METHODS: Final = tuple(dict.fromkeys(get_args(Choice) + get_args(StreamMethod)))


_ALIASES: Final = {"iseek": "skip", "oseek": "seek"}


_FLAGGED: Final = {"count_bytes": "count", "skip_bytes": "skip", "seek_bytes": "seek"}


_NUMBERS: Final = frozenset({"bs", "ibs", "obs", "count", "skip", "seek", "iseek", "oseek"})


class Operands(msgspec.Struct):
    """The parsed operands; ``skip``, ``seek`` and ``count`` are in bytes."""

    source: str | None = None
    target: str | None = None
    block: int = 512
    skip: int = 0
    seek: int = 0
    count: int | None = None
    conversions: set[str] = msgspec.field(default_factory=set)
    direct: bool = False
    status: str = "default"
    method: Any = "auto"
    compression: Compression | None = None


def parse(arguments: Sequence[str]) -> tuple[Operands, list[str]]:
    """Return the operands, and all errors in them."""
    operands, problems, numbers = Operands(), [], {}
    flagged: set[str] = set()
    for argument in arguments:
        name, equals, value = argument.partition("=")
        try:
            if not equals:
                raise ValueError("dd's operands have the form name=value")
            if name in _NUMBERS:
                refuse_zero_times(value)
            match name:
                case "if":
                    operands.source = value
                case "of":
                    operands.target = value
                case "bs" | "ibs" | "obs":
                    operands.block = parse_size(value)
                    if operands.block == 0:
                        raise ValueError("a block has at least one byte")
                case "skip" | "iseek" | "seek" | "oseek" | "count":
                    numbers[_ALIASES.get(name, name)] = value
                    parse_size(value)
                case "conv":
                    operands.conversions = _words(value, _CONVERSIONS)
                case "oflag":
                    flags = _words(value, {"direct", "fullblock", "seek_bytes"})
                    operands.direct |= "direct" in flags
                    flagged |= {_FLAGGED[flag] for flag in flags & _FLAGGED.keys()}
                case "iflag":
                    flags = _words(value, {"fullblock", "count_bytes", "skip_bytes"})
                    flagged |= {_FLAGGED[flag] for flag in flags & _FLAGGED.keys()}
                case "status":
                    operands.status = _one(value, _STATUSES)
                case "compress":
                    operands.compression = _compression(value)
                case "method":
                    operands.method = _one(value, _METHODS)
                case _:
                    raise ValueError(
                        "unknown operand; known are if of bs count skip seek conv iflag oflag status method compress"
                    )
        except ValueError as error:
            problems.append(f"{argument}: {error}")
    for name, value in numbers.items():
        # A count in bytes, as in coreutils: skip=4096B, count=8KiB, iflag=count_bytes.
        in_bytes = "B" in value or name in flagged
        size = parse_size(value) * (1 if in_bytes else operands.block) if not problems else 0
        if size > MAXIMUM:
            problems.append(f"{name}={value}: exceeds the largest file size, in blocks of {operands.block} bytes")
        setattr(operands, name, size)
    return operands, problems


def _words(value: str, known: set[str]) -> set[str]:
    words = set(value.split(","))
    if unknown := words - known:
        raise ValueError(f"{', '.join(sorted(unknown))} unknown; known are {', '.join(sorted(known))}")
    return words


def _compression(value: str) -> Compression | None:
    found = parse_compression(value)
    if found is not None and (missing := found.codec.missing()):
        raise ValueError(f"{found.codec.name} is not available: {missing}")
    return found


def _one(value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"unknown; known are {', '.join(known)}")
    return value
