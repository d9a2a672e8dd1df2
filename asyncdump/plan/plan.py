"""A run that is ready to start, as frozen values."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from asyncdump.codecs.codec import Compression
from asyncdump.errors import DumpError
from asyncdump.manifest.models import Retries
from asyncdump.records.report import FileReport
from asyncdump.vocabulary.values import Checksum, Choice, OnError, OnReadError, Source


class PlannedDump(msgspec.Struct, frozen=True, kw_only=True):
    """One file to dump: ``length`` bytes of ``source`` from byte ``offset``, into ``name``.

    ``compression`` says how it is compressed, if it is; ``filters`` are the programs that it goes through, with
    ``compress_last`` before it is compressed, and ``timeout`` the seconds that they may take and give nothing.
    ``on_read_error`` says what a page that can't be read means; ``expected`` is what is known of a source that is a
    dump itself. Of a source that doesn't tell its size, ``length`` isn't known, and at most ``most`` bytes are dumped.
    What a glob matches and can't be opened has the ``error`` that it fails with.
    """

    source: Source
    name: str
    offset: int
    length: int
    method: Choice
    checksum: Checksum
    durable: bool
    sparse: bool
    compression: Compression | None = None
    filters: tuple[tuple[str, ...], ...] = ()
    compress_last: bool = False
    timeout: float = 300.0
    expected: FileReport | None = None
    on_read_error: OnReadError = "fail"
    most: int | None = None
    error: DumpError | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """What the bytes go through, in short: ``zstd:3``, and the names of programs, without their arguments."""
        programs = tuple(os.path.basename(command[0]) for command in self.filters)
        compression = (str(self.compression),) if self.compression else ()
        return (*programs, *compression) if self.compress_last else (*compression, *programs)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is ready to start.

    Attributes:
        output: absolute path of the output folder.
        free: bytes free on its filesystem when it was looked at.
        manifest_sha256: of the manifest as it was read.
        resume: keep what an earlier run into the same folder has done; ``trust_receipt``, even if sources have changed.
    """

    output: str
    dumps: tuple[PlannedDump, ...]
    concurrency: int | Literal["auto"]
    on_error: OnError
    overwrite: bool
    free: int
    manifest_sha256: str
    resume: bool = False
    trust_receipt: bool = False
    retries: Retries = Retries(times=0)

    @property
    def bytes(self) -> int:
        """The bytes of all dumps together."""
        return sum(dump.length for dump in self.dumps)
