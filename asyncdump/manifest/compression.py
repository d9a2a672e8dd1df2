"""Compression in a manifest: a model for each codec, and its settings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta

from asyncdump.codecs.codec import BUDGET, CodecName, Compression
from asyncdump.codecs.lz4 import LZ4, Lz4Options
from asyncdump.codecs.registry import parse_compression
from asyncdump.codecs.zstd import WINDOWS, ZSTD, ZstdOptions
from asyncdump.errors import ManifestError, Problem
from asyncdump.manifest.model import Model, Size
from asyncdump.vocabulary.size import KIB, parse_size

Threads = Annotated[int, Meta(description="maximum number of threads for one file; 0 for all", ge=0, le=256)]
FrameField = Annotated[
    Size, Meta(description="content of each frame: the granularity of parallel work and reading back")
]
ChecksumField = Annotated[bool, Meta(description="whether each frame has a checksum of its content")]


class _Compress(Model, frozen=True, kw_only=True):
    """The base class of the models of all codecs, whose values must fit into the memory budget of compression."""

    def __post_init__(self) -> None:
        super().__post_init__()
        options = self.options
        if (cost := options.cost) > BUDGET:
            needed, most = cost // KIB**2, BUDGET // KIB**2
            frame = f"level {options.level} with frames of {options.frame // KIB} KiB"
            message = f"{frame} needs {needed} MiB for one thread, the maximum is {most}"
            raise ManifestError(Problem(message=f"{message}: use smaller frames, or a lower level", key="frame"))

    @property
    def options(self) -> Compression:
        """The settings for the codec."""
        raise NotImplementedError


class Zstd(_Compress, frozen=True, kw_only=True, tag="zstd", tag_field="codec"):
    """Compression into a seekable .zst."""

    example: ClassVar[str] = "{zstd: {level: 3}}"

    level: Annotated[int, Meta(description="from fast to small", ge=ZSTD.levels[0], le=ZSTD.levels[1])] = 3
    threads: Threads = 0
    frame: FrameField = "2MiB"
    checksum: ChecksumField = True
    long: Annotated[
        Annotated[int, Meta(ge=WINDOWS[0], le=WINDOWS[1])] | None,
        Meta(description="log2 of the window for distant matches; needs larger frames, too"),
    ] = None

    @property
    def options(self) -> ZstdOptions:
        return ZstdOptions(
            level=self.level,
            threads=self.threads,
            frame=parse_size(self.frame),
            checksum=self.checksum,
            long=self.long,
        )


class Lz4(_Compress, frozen=True, kw_only=True, tag="lz4", tag_field="codec"):
    """Compression into a seekable .lz4, which decompresses faster than a .zst, and is larger."""

    example: ClassVar[str] = "{lz4: {level: 1}}"

    level: Annotated[int, Meta(description="from fast to small", ge=LZ4.levels[0], le=LZ4.levels[1])] = 1
    threads: Threads = 0
    frame: FrameField = "2MiB"
    checksum: ChecksumField = True

    @property
    def options(self) -> Lz4Options:
        return Lz4Options(level=self.level, threads=self.threads, frame=parse_size(self.frame), checksum=self.checksum)


MODELS: Final[dict[str, type[Zstd | Lz4]]] = {"zstd": Zstd, "lz4": Lz4}
"""The model of each codec."""

Compress = Literal["none", CodecName] | Zstd | Lz4
"""Compression as a program specifies it: a codec with its defaults, a model, or no compression."""

CompressField = Annotated[
    Compress | None, Meta(description="zstd, lz4 or none, or options: {zstd: {level: 3}}; a seekable .zst or .lz4")
]


def compression_of(compress: Compress) -> Compression | None:
    """Return the settings for the codec, or None for no compression."""
    if isinstance(compress, _Compress):
        return compress.options
    return parse_compression(compress)


def compress_of(text: str) -> Compress:
    """Parse ``NAME``, ``NAME:LEVEL`` or ``none`` into what a program would specify.

    Raises:
        ValueError: there is no such codec, or it has no such level.
    """
    options = parse_compression(text)
    return "none" if options is None else MODELS[options.codec.name](level=options.level)
