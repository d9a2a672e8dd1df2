"""What happens in a run, as frozen values.

The events of one file come in a promised order: `FileStarted`, any number of `Progress` and `FileRetried`, then exactly
one of `FileFinished` and `FileFailed`. A file that fails before it was opened only has the last. A file that an earlier
run has dumped has `Progress` while that dump is verified, and then `FileKept`, or the events of any other file.
"""

from __future__ import annotations

import msgspec

from asyncdump.engines import Method
from asyncdump.errors import AsyncdumpError


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened, ``at`` seconds after the run began."""

    at: float


class RunStarted(_Event, frozen=True, kw_only=True):
    """The run is about to open its first file. ``files`` and ``bytes`` are those of the plan."""

    output: str
    files: int
    bytes: int
    concurrency: int


class FileStarted(_Event, frozen=True, kw_only=True):
    """A file of ``bytes`` bytes is being moved, by ``method``. ``kind`` is that of its source: ``hugetlbfs 2 MiB``."""

    name: str
    source: str
    kind: str
    bytes: int
    method: Method


class Progress(_Event, frozen=True, kw_only=True):
    """``done`` of ``total`` bytes of a file are moved. A slow listener gets only the latest progress of a file.

    ``phase`` is ``verify`` while an earlier dump is compared with its record, ``move``, ``filter`` while programs come
    to their end, ``digest`` while the dump is read back, or ``sync`` while it is made durable.
    """

    name: str
    done: int
    total: int
    phase: str


class FileFinished(_Event, frozen=True, kw_only=True):
    """A dump is complete, durable unless that was switched off, and under its final name.

    ``bytes`` is its size, ``stored`` how much of it was written (the rest is holes), ``seconds`` the time from opening
    the source to the final name. ``digest`` is that of the file as stored, such as ``xxh128:...``, or None without a
    checksum; ``content_digest`` is that of the bytes of the source, which differs if they were compressed.
    ``bad_bytes`` of the source could not be read, and are zeros in the dump.
    """

    name: str
    source: str
    bytes: int
    stored: int
    seconds: float
    method: Method
    digest: str | None
    content_digest: str | None = None
    bad_bytes: int = 0


class FileKept(_Event, frozen=True, kw_only=True):
    """An earlier run has dumped this file, and the dump was verified: nothing else happens to it."""

    name: str
    source: str
    bytes: int
    digest: str | None


class FileRetried(_Event, frozen=True, kw_only=True):
    """A dump failed for a transient reason: ``attempt`` 1, 2 and so on begins in ``delay`` seconds or later."""

    name: str
    error: AsyncdumpError
    attempt: int
    delay: float


class FileFailed(_Event, frozen=True, kw_only=True):
    """A dump failed or was abandoned in ``phase``: nothing is left of it."""

    name: str
    source: str
    error: AsyncdumpError
    phase: str


class RunFinished(_Event, frozen=True, kw_only=True):
    """The run has ended, and its receipt is written. ``interrupted`` says what interrupted it, or is None."""

    files: int
    failed: int
    bytes: int
    seconds: float
    interrupted: str | None


Event = RunStarted | FileStarted | Progress | FileFinished | FileKept | FileRetried | FileFailed | RunFinished
"""What a listener gets: one of these. A ``match`` over all of them is exhaustive to a type checker."""
