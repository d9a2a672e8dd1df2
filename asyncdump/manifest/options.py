"""What a caller decides over a manifest."""

from __future__ import annotations

import os
from typing import Any, Final, Literal, TypedDict

import msgspec

from asyncdump.errors import ManifestError, Problem
from asyncdump.manifest.complaints import complaint
from asyncdump.manifest.compression import Compress
from asyncdump.manifest.models import Defaults, Manifest, Retries
from asyncdump.vocabulary.values import Checksum, Choice, OnError, OnReadError


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller decides over the manifest's head; None leaves a decision to the manifest."""

    output: str | os.PathLike[str] | None = None
    concurrency: int | Literal["auto"] | None = None
    method: Choice | None = None
    checksum: Checksum | None = None
    on_error: OnError | None = None
    durable: bool | None = None
    overwrite: bool = False
    compress: Compress | None = None
    allow_filters: bool = False
    resume: bool = False
    trust_receipt: bool = False
    retries: int | Retries | None = None
    on_read_error: OnReadError | None = None

    def __post_init__(self) -> None:
        problems = [
            Problem(key=name, message=message)
            for name, model in _OVERRIDING.items()
            if (value := getattr(self, name)) is not None and (message := complaint(model, name, value))
        ]
        if problems:
            raise ManifestError(*problems)


_OVERRIDING: Final[dict[str, Any]] = {
    "concurrency": Manifest,
    "on_error": Manifest,
    "retries": Manifest,
    "method": Defaults,
    "checksum": Defaults,
    "durable": Defaults,
    "compress": Defaults,
    "on_read_error": Defaults,
}


class Overrides(TypedDict, total=False):
    """Keyword arguments of `dump_all`, `open_run` and `plan_all`: each overrides the manifest, for all its files.

    Attributes:
        output: the folder for the dumps, relative to the working directory; ``-`` is standard output, for one dump.
        concurrency: files in flight, or ``auto``.
        method: how bytes are moved: ``auto``, ``reflink``, ``direct``, ``sendfile``, ``splice``, ``mmap`` or ``read``.
        checksum: the digest that is taken: ``xxh128``, ``blake3``, ``sha256`` or ``none``.
        on_error: ``continue``, or ``abort`` to end the run when a file fails.
        durable: whether to wait until the dumps would survive a power cut.
        overwrite: replace dumps of the same names; without it they are an error.
        compress: ``zstd``, a `Zstd`, or ``none``.
        allow_filters: whether the manifest may run programs; without it, filters are an error.
        resume: go on with what an earlier run into the same folder left: dumps that it has made are verified and kept,
            where their source is the same in size, time of change and inode, and the rest is done.
        trust_receipt: with ``resume``, keep them whatever has become of the source.
        retries: how often a file is dumped again after a failure that passes: a number, or `Retries`.
        on_read_error: ``fail``, or ``zero`` to have zeros in a dump where its source can't be read.
    """

    output: str | os.PathLike[str] | None
    concurrency: int | Literal["auto"] | None
    method: Choice | None
    checksum: Checksum | None
    on_error: OnError | None
    durable: bool | None
    overwrite: bool
    compress: Compress | None
    allow_filters: bool
    resume: bool
    trust_receipt: bool
    retries: int | Retries | None
    on_read_error: OnReadError | None
