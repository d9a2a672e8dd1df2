"""What was requested: the models of a manifest.

They are the same for a YAML file (read by `asyncdump.manifest.yaml`) and for a program that builds them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeGuard

import msgspec
from msgspec import Meta

from asyncdump.errors import ManifestError, Problem
from asyncdump.manifest.compression import CompressField
from asyncdump.manifest.model import Model, Size
from asyncdump.text import shown
from asyncdump.vocabulary.size import MAXIMUM, parse_size
from asyncdump.vocabulary.values import Checksum, Choice, OnError, OnReadError

if TYPE_CHECKING:
    Path = str | os.PathLike[str]
else:
    Path = str  # The constructor converts paths to str.

Passing = Literal["EINTR", "EAGAIN", "ENOSPC", "EDQUOT"]
Sparse = Literal["auto", "never"]
MethodField = Annotated[
    Choice, Meta(description="how the bytes are moved; auto lets the kernel decide, which is nearly always best")
]
ChecksumField = Annotated[Checksum, Meta(description="the digest to compute of each dump")]
DurableField = Annotated[bool, Meta(description="wait until the dump would survive a power failure")]
SparseField = Annotated[Sparse, Meta(description="auto skips zeros, and stores them as holes")]


_LONGEST_WAIT = 60.0
OnReadErrorField = Annotated[
    OnReadError, Meta(description="what to do about unreadable memory: fail its file, or dump zeros in its place")
]


FilterField = Annotated[
    Sequence[Annotated[Sequence[str], Meta(min_length=1)]] | None,
    Meta(description="programs that the bytes are piped through, as argument lists; run without a shell, if allowed"),
]
FirstField = Annotated[
    Literal["compress", "filter"] | None,
    Meta(description="which is applied first; by default the one that is written first, in a program compress"),
]
TimeoutField = Annotated[
    Annotated[float, Meta(gt=0, le=86400)] | None,
    Meta(description="seconds that a filter may neither read nor write anything"),
]


class Defaults(Model, frozen=True, kw_only=True):
    """Settings of every dump that doesn't have its own."""

    method: MethodField = "auto"
    checksum: ChecksumField = "xxh128"
    durable: DurableField = True
    sparse: SparseField = "auto"
    compress: CompressField = "none"
    filter: FilterField = None
    first: FirstField = None
    timeout: TimeoutField = 300.0
    on_read_error: OnReadErrorField = "fail"

    def __post_init__(self) -> None:
        _freeze_filter(self)
        super().__post_init__()


class ProcessMemory(Model, frozen=True, kw_only=True):
    """A range of the memory of a process."""

    example: ClassVar[str] = "{pid: 4242, address: 0x7f0000000000, length: 2MiB}"

    pid: Annotated[int, Meta(description="the ID of the process", ge=1, le=(1 << 31) - 1)]
    address: Annotated[int, Meta(description="where it begins, as /proc/PID/maps says after 0x", ge=0, le=MAXIMUM)]
    length: Annotated[Size, Meta(description="how much of it is dumped; all of it must be mapped")]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < parse_size(self.length) <= MAXIMUM - self.address:
            raise ManifestError(Problem(message=f"{shown(self.length)} is not the length of a range", key="length"))


class _Sourced(Model, frozen=True):
    """The positional argument of a `Dump`."""

    source: Annotated[
        Annotated[Path, Meta(min_length=1)] | ProcessMemory,
        Meta(description="a path or a glob, relative to the directory of the manifest, or memory of a process"),
    ]


class Dump(_Sourced, frozen=True, kw_only=True):
    """One source, or all files that a glob matches."""

    name: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="file name under output, by default {name}, or {name}.zst if it is compressed with zstd; "
            "{name} {stem} {suffix} {parent} {index} {pid} are parts of the source's path",
        ),
    ] = None
    offset: Annotated[Size, Meta(description="where the dump starts in the source (dd's skip)")] = 0
    length: Annotated[Size | None, Meta(description="how much to dump at most (dd's count)")] = None
    method: MethodField | None = None
    checksum: ChecksumField | None = None
    durable: DurableField | None = None
    sparse: SparseField | None = None
    compress: CompressField = None
    filter: FilterField = None
    first: FirstField = None
    timeout: TimeoutField = None
    on_read_error: OnReadErrorField | None = None

    def __post_init__(self) -> None:
        _freeze_path(self, "source")
        _freeze_filter(self)
        super().__post_init__()


class Retries(Model, frozen=True, kw_only=True):
    """How often a file that failed is dumped again, from its start, after the other files."""

    example: ClassVar[str] = "{times: 3}"

    times: Annotated[int, Meta(description="maximum number of retries", ge=0, le=1000)] = 3
    delay: Annotated[
        float, Meta(description="seconds before the first retry; doubled before each later one, up to a minute")
    ] = 1.0
    errors: Annotated[
        Sequence[Passing], Meta(description="which failures are transient; a full disk is if someone frees space")
    ] = ("EINTR", "EAGAIN")

    def __post_init__(self) -> None:
        _freeze(self, "errors")
        super().__post_init__()

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of the errors, as in errno(3)."""
        return frozenset(getattr(errno, name) for name in self.errors)

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait before a retry; retries are counted from 1."""
        return float(min(self.delay * 2 ** min(attempt - 1, 32), max(self.delay, _LONGEST_WAIT)))


RetriesField = Annotated[
    Annotated[int, Meta(ge=0, le=1000)] | Retries,
    Meta(description="how often a file is dumped again after a transient failure; a number, or a mapping"),
]


class Manifest(Model, frozen=True, kw_only=True):
    """A run: which files to dump, where to, and how."""

    version: Annotated[Literal[1], Meta(description="the version of this format")] = 1
    output: Annotated[
        Path,
        Meta(
            description="directory for the dumps, created with mode 0700 if missing; "
            "relative to the directory of the manifest",
            min_length=1,
        ),
    ]
    concurrency: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | Literal["auto"], Meta(description="files in flight")
    ] = "auto"
    on_error: Annotated[OnError, Meta(description="what to do after the failure of a file")] = "continue"
    retries: RetriesField = 0
    defaults: Annotated[Defaults, Meta(description="settings of every dump that doesn't have its own")] = msgspec.field(
        default_factory=Defaults
    )
    dumps: Annotated[Sequence[Dump], Meta(description="what to dump", min_length=1)]

    def __post_init__(self) -> None:
        _freeze_path(self, "output")
        _freeze(self, "dumps")
        super().__post_init__()


def _freeze_path(model: Model, name: str) -> None:
    """Convert a path of a program to a string."""
    if isinstance(given := getattr(model, name), os.PathLike):
        msgspec.structs.force_setattr(model, name, os.fsdecode(given))


def _freeze(model: Model, name: str) -> None:
    """Convert a sequence of a program to a tuple."""
    if _is_sequence(given := getattr(model, name)):
        msgspec.structs.force_setattr(model, name, tuple(given))


def _freeze_filter(model: Defaults | Dump) -> None:
    """Convert the argument lists of a program to tuples."""
    if _is_sequence(given := model.filter):
        frozen = tuple(tuple(command) if _is_sequence(command) else command for command in given)
        msgspec.structs.force_setattr(model, "filter", frozen)


def _is_sequence(given: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(given, Sequence) and not isinstance(given, str | bytes)
