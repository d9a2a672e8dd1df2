"""The available codecs, by name, by the suffix of a file, by its first bytes, and by its record."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from asyncdump.codecs.codec import Codec, CodecName, Compression
from asyncdump.codecs.lz4 import LZ4
from asyncdump.codecs.zstd import ZSTD

CODECS: Final[dict[str, Codec]] = {codec.name: codec for codec in (ZSTD, LZ4)}

_COMPRESSION: Final = re.compile(r"([^:]+)(?::(-?[0-9]{1,3}))?")


def codec_of(name: CodecName) -> Codec:
    """Return a codec by its name."""
    return CODECS[name]


def detect(start: bytes) -> Codec | None:
    """Return the codec whose frames begin with ``start`` (at least four bytes), or None."""
    return next((codec for codec in CODECS.values() if codec.begins(start[:4])), None)


def codec_by_suffix(path: str) -> Codec | None:
    """Return the codec for the suffix of a file, or None."""
    return next((codec for codec in CODECS.values() if path.endswith(codec.suffix)), None)


def codec_of_stage(stage: str) -> Codec | None:
    """Return the codec of a stage in the notation of records (``zstd:3``), or None for a program."""
    name, colon, _ = stage.partition(":")
    return CODECS.get(name) if colon else None


def stored_by(stages: Iterable[str]) -> Codec | None:
    """Return the codec of a dump as stored, which is its last stage; None if that is a program, or there is none."""
    *_, last = ("", *stages)
    return codec_of_stage(last)


def parse_compression(text: str) -> Compression | None:
    """Parse ``NAME``, ``NAME:LEVEL`` or ``none``.

    Raises:
        ValueError: there is no such codec, or it has no such level.
    """
    if text == "none":
        return None
    found = _COMPRESSION.fullmatch(text)
    codec = CODECS.get(found[1]) if found else None
    if found is None or codec is None:
        raise ValueError(f"unknown; known are {', '.join(f'{name}, {name}:LEVEL' for name in CODECS)}, none")
    if found[2] is None:
        return codec.compression()
    level, (lowest, highest) = int(found[2]), codec.levels
    if not lowest <= level <= highest:
        raise ValueError(f"a level of {codec.name} is from {lowest} to {highest}")
    return codec.compression(level)
