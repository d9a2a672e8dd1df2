"""A run that is ready to start, as frozen values."""

from __future__ import annotations

import os
from heapq import heappop, heappush
from typing import Any, Literal

import msgspec

from asyncdump.codecs.codec import Compression
from asyncdump.errors import DumpError
from asyncdump.manifest.models import Retries
from asyncdump.records.report import FileReport
from asyncdump.text import as_path
from asyncdump.vocabulary.values import Checksum, Choice, OnError, OnReadError, Source


class PlannedDump(msgspec.Struct, frozen=True, kw_only=True):
    """One file to dump: ``length`` bytes of ``source`` from byte ``offset``, into ``name``.

    ``compression`` says how it is compressed, if it is; ``filters`` are the programs that it goes through, before it
    is compressed if ``compress_last``, and ``timeout`` is how many seconds they may neither read nor write anything.
    ``on_read_error`` says what to do about unreadable memory; ``expected`` is the record of a source that is a dump
    itself. If the size of a source isn't known, neither is ``length``, and at most ``most`` bytes are dumped. A file
    that a glob matches and that can't be opened has the ``error`` that it fails with.
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
        """Compression and filters, in short: ``zstd:3``, and the names of programs without their arguments."""
        programs = tuple(os.path.basename(command[0]) for command in self.filters)
        compression = (str(self.compression),) if self.compression else ()
        return (*programs, *compression) if self.compress_last else (*compression, *programs)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is ready to start: `dump_all` and `open_run` take it. It can be pickled.

    ``print`` shows it as a table, and so does a notebook.

    It refers to the files that existed when it was made: a source that is replaced later fails.

    Attributes:
        output: absolute path of the output directory, or ``-`` for standard output.
        dumps: what will be dumped, in the order of the manifest.
        concurrency: files in flight, or ``auto``.
        on_error: what to do after the failure of a file.
        overwrite: whether existing dumps are replaced.
        free: the free bytes on the filesystem of ``output`` when the plan was made, or 0 if that isn't known.
        manifest_sha256: the SHA-256 of the manifest.
        resume: whether to keep what an earlier run into the same directory completed.
        trust_receipt: with ``resume``, keep it even if sources have changed.
        retries: how often a file is dumped again after a transient failure.
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
        """The total bytes of all dumps."""
        return sum(dump.length for dump in self.dumps)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a JSON object; the API reference lists its keys."""
        from asyncdump.plan.summary import record_of

        return record_of(self)

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        return msgspec.json.format(msgspec.json.encode(self.to_dict()), indent=1).decode()

    def __str__(self) -> str:
        from asyncdump.plan.summary import summary_of

        return str(summary_of(self))

    def __repr__(self) -> str:
        from asyncdump.plan.summary import total_of

        return f"<Plan: {total_of(self)}>"

    def _repr_html_(self) -> str:
        from asyncdump.plan.summary import summary_of

        return summary_of(self).html()

    def split(self, parts: int) -> tuple[Plan, ...]:
        """Split the plan into at most ``parts`` plans of about the same number of bytes, none of them empty.

        Only one run at a time can use a directory: give each part its own with `into` to run them concurrently.

        Raises:
            ValueError: ``parts`` is less than 1.
        """
        if parts < 1:
            raise ValueError(f"a plan can't be split into {parts} parts")
        loads: list[tuple[int, int, list[int]]] = [(0, number, []) for number in range(min(parts, len(self.dumps)))]
        # The largest dump first, each to the part with the fewest bytes: at most 4/3 of the optimal split.
        for index in sorted(range(len(self.dumps)), key=lambda index: -self.dumps[index].length):
            total, number, indices = heappop(loads)
            indices.append(index)
            heappush(loads, (total + max(1, self.dumps[index].length), number, indices))
        ordered = sorted((number, sorted(indices)) for _, number, indices in loads)
        return tuple(
            msgspec.structs.replace(self, dumps=tuple(self.dumps[index] for index in indices)) for _, indices in ordered
        )

    def into(self, output: str | os.PathLike[str]) -> Plan:
        """Return this plan with another output, a directory relative to the working directory, or ``scheme://...``.

        The run checks whether it exists, is writable and has enough space.

        Raises:
            ValueError: the scheme is unknown, or no directory can have this name.
        """
        from asyncdump.sinks.output import resolve

        return msgspec.structs.replace(self, output=resolve(as_path(output)), free=0)
