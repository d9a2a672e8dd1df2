"""What happens in a run, as frozen values, and the mailbox in which they wait for a listener.

The events of one file come in a promised order: `FileStarted`, any number of `Progress` and `FileRetried`, then exactly
one of `FileFinished` and `FileFailed`. A file that fails before it was opened only has the last. What an earlier run
has dumped has `Progress` while it is verified, and then `FileKept`, or all that any other has.
"""

from __future__ import annotations

import msgspec

from asyncdump.engines import Method
from asyncdump.errors import AsyncdumpError


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened, ``at`` seconds after the run began."""

    at: float


class RunStarted(Event, frozen=True, kw_only=True):
    """The plan stands and the first file is about to be opened."""

    output: str
    files: int
    bytes: int
    concurrency: int


class FileStarted(Event, frozen=True, kw_only=True):
    """A file is being moved, by ``method``."""

    name: str
    source: str
    kind: str
    bytes: int
    method: Method


class Progress(Event, frozen=True, kw_only=True):
    """``done`` of ``total`` bytes of a file are moved; a listener that is behind is told the latest only.

    ``stage`` is ``verify`` while an earlier dump is compared with its record, ``move``, ``digest`` while the dump is
    read back, or ``sync`` while it is made durable.
    """

    name: str
    done: int
    total: int
    stage: str


class FileFinished(Event, frozen=True, kw_only=True):
    """A dump is whole, durable and has its name.

    ``bytes`` is its size, ``stored`` what of it was written (the rest is holes), ``seconds`` the time from its opening
    to its name. ``digest`` is that of the file as stored, ``xxh128:...`` and the like, or None without a checksum;
    ``content_digest`` is that of the bytes of the source, another one where they were compressed. ``bad_bytes`` of the
    source could not be read, and are zeros in the dump.
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


class FileKept(Event, frozen=True, kw_only=True):
    """An earlier run has dumped this file, and what it wrote was found whole: nothing else happens to it."""

    name: str
    source: str
    bytes: int
    digest: str | None


class FileRetried(Event, frozen=True, kw_only=True):
    """A dump failed for a reason that may pass: ``attempt`` 1, 2 and so on begins in ``delay`` seconds or later."""

    name: str
    error: AsyncdumpError
    attempt: int
    delay: float


class FileFailed(Event, frozen=True, kw_only=True):
    """A dump failed or was given up in ``stage``: nothing is left of it."""

    name: str
    source: str
    error: AsyncdumpError
    stage: str


class RunFinished(Event, frozen=True, kw_only=True):
    """All is done, the receipt too. ``interrupted`` says what ended the run early, or is None."""

    files: int
    failed: int
    bytes: int
    seconds: float
    interrupted: str | None
