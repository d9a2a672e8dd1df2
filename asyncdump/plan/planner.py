"""Makes a plan from a manifest: resolves globs, describes sources, makes names, and checks the destination.

Nothing is written here. All errors that can be found before a run are reported in one `ManifestError`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from asyncdump.codecs.registry import stored_by
from asyncdump.engines import FEEDS
from asyncdump.errors import DumpError, ManifestError, Problem, TargetExistsError, absolute, describe_errno
from asyncdump.kernel.linux import TRUE_ERRORS
from asyncdump.manifest.compression import compression_of
from asyncdump.manifest.models import Dump, Manifest, ProcessMemory, Retries
from asyncdump.manifest.options import Overrides, first
from asyncdump.manifest.yaml import Marks
from asyncdump.plan.globbing import find, is_glob
from asyncdump.plan.look import look_at, unseen
from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.plan.room import need_more, needed
from asyncdump.plan.templates import render_name
from asyncdump.records.receipt import is_journal_empty, read_receipt
from asyncdump.records.record import LARGEST, room
from asyncdump.records.report import FileReport
from asyncdump.sinks.output import local_folder, open_store, resolve
from asyncdump.sinks.place import Entry, Store
from asyncdump.sources.process import look_at_process
from asyncdump.text import as_path
from asyncdump.vocabulary.names import JOURNAL, LISTS, RECEIPT, name_complaint
from asyncdump.vocabulary.size import MAXIMUM, format_size, parse_size
from asyncdump.vocabulary.values import STANDARD_OUTPUT, Source

_SHOWN: Final = 3
_HEAD_OF_RECEIPT: Final = 64 << 10
"""The maximum size of a receipt before its records: two paths of 4 KiB, with each byte escaped if necessary."""


def make_plan(
    manifest: Manifest, marks: Marks, folder: str, options: Overrides, check: Callable[[], None] = lambda: None
) -> Plan:
    """Resolve a manifest against the current state of the filesystem.

    Args:
        manifest: the manifest.
        marks: the lines of its keys, for errors.
        folder: the directory that relative paths in it are relative to.
        options: the options that override it, already checked.
        check: called now and then; it may raise.

    Raises:
        ManifestError: it can't be run; all reasons are reported, and nothing was written.
    """
    return _Planner(manifest, marks, folder, options, check).plan()


class _Planner:
    def __init__(
        self, manifest: Manifest, marks: Marks, folder: str, options: Overrides, check: Callable[[], None]
    ) -> None:
        self._check = check
        self._manifest = manifest
        self._marks = marks
        self._folder = absolute(folder)
        self._options = options
        self._problems: list[Problem] = []
        self._output = self._place(options.get("output"))
        self._streamed = self._output == STANDARD_OUTPUT
        self._store: Store | None = None
        self._earlier: dict[str, FileReport] = {}
        self._lost = False
        self._existing: list[Problem] = []

    def _complain(self, key: str, message: str, remedy: str = "") -> Problem:
        self._problems.append(self._marks.problem(key, message, remedy))
        return self._problems[-1]

    def plan(self) -> Plan:
        with suppress(DumpError):  # An output that exists and can't be opened is reported below.
            self._store = None if self._streamed else open_store(self._output, make=False)
        try:
            return self._plan()
        finally:
            if self._store is not None:
                self._store.close()

    def _plan(self) -> Plan:
        if self._options.get("resume"):
            self._earlier = self._find_earlier()
        dumps = [dump for index, entry in enumerate(self._manifest.dumps) for dump in self._resolve(index, entry)]
        free = 0
        if self._streamed:
            if len(dumps) > 1 and not self._misplaced:
                self._complain("output", f"- is standard output, which accepts one dump, not {len(dumps)}")
        else:
            if (folder := local_folder(self._output)) is not None:
                free = self._check_folder(folder, [dump for _, dump in dumps])
            self._check_names(dumps)
            self._check_records([dump for _, dump in dumps])
        if self._problems:
            only = len(self._problems) == len(self._existing)
            raise (TargetExistsError if only else ManifestError)(
                *sorted(self._problems, key=lambda problem: problem.line), path=self._output if only else ""
            )
        manifest, options = self._manifest, self._options
        again = options.get("retries")
        retries = manifest.retries if again is None else again
        return Plan(
            output=self._output,
            dumps=tuple(dump for _, dump in dumps),
            concurrency=first(options.get("concurrency"), manifest.concurrency),
            on_error=first(options.get("on_error"), manifest.on_error),
            overwrite=options.get("overwrite", False),
            free=free,
            manifest_sha256=self._marks.sha256,
            resume=options.get("resume", False),
            trust_receipt=options.get("trust_receipt", False),
            retries=retries if isinstance(retries, Retries) else Retries(times=retries),
        )

    def _find_earlier(self) -> dict[str, FileReport]:
        """Return the dumps of earlier runs in the output, by name."""
        if self._streamed:
            if not self._misplaced:
                self._complain("output", "- is standard output, and a run to standard output can't be resumed")
            return {}
        try:
            if self._store is None and os.path.isdir(self._output):
                open_store(self._output, make=False).close()  # Raises the reason why it can't be opened.
            earlier = read_receipt(self._store) if self._store is not None else None
        except DumpError as error:
            message = f"{error}: the run can't be resumed without it"
            self._complain("output", message, "start from scratch with {overwrite} instead")
            self._lost = True
            return {}
        return earlier.ours if earlier else {}

    def _resolve(self, index: int, dump: Dump) -> Iterator[tuple[str, PlannedDump]]:
        key = f"dumps[{index}]"
        for position, (source, error, own) in enumerate(self._sources(key, dump.source)):
            offset = parse_size(dump.offset)
            if offset > source.size and source.sized and error is None:
                self._complain(
                    f"{key}.offset", f"{offset} is past the end of {source.path}, which has {source.size} bytes"
                )
                continue
            planned = self._planned(dump, source, offset, error)
            codec = stored_by(planned.stages)
            template = dump.name if dump.name is not None else f"{{name}}{codec.suffix if codec else ''}"
            name = self._name(f"{key}.name", own or template, source, position)
            if position == 0:
                self._check_stages(key, planned)
            if name is not None:
                yield key, msgspec.structs.replace(planned, name=name)

    def _check_stages(self, key: str, planned: PlannedDump) -> None:
        fed = planned.stages or self._streamed
        if fed and planned.method not in {"auto", *FEEDS}:
            what = "a compressor or filter" if planned.stages else "a pipe"
            self._complain(f"{key}.method", f"{planned.method} can't feed {what}: use auto, {' or '.join(FEEDS)}")
        if planned.compression is not None and (missing := planned.compression.codec.missing()):
            self._complain(f"{key}.compress", f"{planned.compression.codec.name} is not available", missing)
        if planned.filters and not self._options.get("allow_filters"):
            names = ", ".join(os.path.basename(command[0]) for command in planned.filters)
            self._complain(f"{key}.filter", f"runs programs ({names})", "pass {allow_filters} to allow that")
        for program, *_ in planned.filters:
            if shutil.which(program) is None:
                self._complain(f"{key}.filter", f"program {program} not found: install it, or specify its path")

    def _planned(self, dump: Dump, source: Source, offset: int, error: DumpError | None) -> PlannedDump:
        options, defaults = self._options, self._manifest.defaults
        rest = source.size - offset if source.sized and error is None else 0
        most = MAXIMUM if dump.length is None else parse_size(dump.length)
        compression = compression_of(first(options.get("compress"), dump.compress, defaults.compress, "none"))
        filters = dump.filter if dump.filter is not None else defaults.filter
        return PlannedDump(
            source=source,
            name="",
            offset=offset,
            length=min(rest, most),
            most=None if source.sized else most,
            error=error,
            method=first(options.get("method"), dump.method, defaults.method),
            checksum=first(options.get("checksum"), dump.checksum, defaults.checksum),
            durable=first(options.get("durable"), dump.durable, defaults.durable),
            sparse=(dump.sparse or defaults.sparse) == "auto",
            compression=compression,
            filters=tuple(map(tuple, filters or ())),
            compress_last=bool(compression and filters) and (dump.first or defaults.first) == "filter",
            timeout=dump.timeout or defaults.timeout or 300.0,
            on_read_error=first(options.get("on_read_error"), dump.on_read_error, defaults.on_read_error),
        )

    def _sources(
        self, key: str, asked: str | os.PathLike[str] | ProcessMemory
    ) -> Iterator[tuple[Source, DumpError | None, str]]:
        """Yield the sources of a dump, each with the error that it fails with, and a name if it has no path."""
        if not isinstance(asked, ProcessMemory):
            yield from self._files(key, asked)
            return
        try:
            yield look_at_process(asked.pid, asked.address, parse_size(asked.length)), None, ""
        except DumpError as error:
            self._complain(f"{key}.source", str(error), error.hint)

    def _files(self, key: str, pattern: str | os.PathLike[str]) -> Iterator[tuple[Source, DumpError | None, str]]:
        """Yield the files of a path or glob.

        A path must exist. A match of a glob that can't be opened is a failure of that file only.
        """
        given = self._path(f"{key}.source", pattern)
        if given is None:
            return
        pattern, path = given, os.path.join(self._folder, given)
        try:
            if not is_glob(pattern):
                yield look_at(path), None, ""
                return
            finds = find(self._folder, pattern, self._check)
        except DumpError as error:
            self._complain(f"{key}.source", str(error), error.hint)
            return
        if not finds.files:
            reasons = map(str, finds.failures[:_SHOWN])
            self._complain(f"{key}.source", "; ".join([f"{pattern} matches no file", *reasons]))
            return
        for found in finds.files:
            self._check()
            try:
                yield look_at(found.path, found), None, ""
            except DumpError as error:
                yield unseen(found.path, found), error, ""
        if finds.failures:
            yield unseen(path), _together(finds.failures), key

    @property
    def _misplaced(self) -> bool:
        """Whether the output isn't a valid path."""
        return any(problem.key == "output" for problem in self._problems)

    def _place(self, output: str | os.PathLike[str] | None) -> str:
        """Return the output: an option is relative to the working directory, a manifest to its own directory."""
        path = self._path("output", self._manifest.output if output is None else output)
        if path is None:
            return STANDARD_OUTPUT
        try:
            return resolve(path, "" if output is not None else self._folder)
        except ValueError as error:
            self._complain("output", str(error))
            return STANDARD_OUTPUT

    def _path(self, key: str, given: str | os.PathLike[str]) -> str | None:
        """Return a valid path, or complain and return None."""
        try:
            return as_path(given)
        except ValueError as error:
            self._complain(key, str(error))
            return None

    def _name(self, key: str, template: str, source: Source, index: int) -> str | None:
        pid = None if source.process is None else source.process.pid
        try:
            name = render_name(template, source.label, index, pid=pid)
        except ValueError as error:
            self._complain(key, str(error))
            return None
        if complaint := name_complaint(name):
            self._complain(key, complaint)
            return None
        return name

    def _check_records(self, dumps: list[PlannedDump]) -> None:
        """Complain if the receipt would exceed its maximum size."""
        names = {dump.name for dump in dumps}
        # If a dump fails, its receipt may also contain an older one, in this run or in one that resumes it.
        size = _HEAD_OF_RECEIPT + 2 * sum(room(dump.source.path, dump.name, dump.stages) for dump in dumps)
        size += sum(room(file.source, name, file.stages) for name, file in self._earlier.items() if name not in names)
        if size > LARGEST:
            message = f"is too long for one run: its receipt may reach {format_size(size)}, {format_size(LARGEST)} are"
            self._complain("dumps", f"{message} at most; split it into several runs with separate output directories")

    def _check_names(self, dumps: list[tuple[str, PlannedDump]]) -> None:
        taken: dict[str, str] = {}
        for key, dump in dumps:
            if (other := taken.get(dump.name)) is None:
                taken[dump.name] = dump.source.path
            else:
                self._complain(
                    f"{key}.name",
                    f"{dump.name} is the name of two dumps ({other} and {dump.source.path}): "
                    "use {index} or {parent} in the name",
                )
        sources = {(dump.source.device, dump.source.inode): dump.source.path for _, dump in dumps}
        existing = []
        comparable = set()
        for key, dump in dumps:
            if (entry := self._entry(dump.name)) is None:
                continue
            if (source := sources.get((entry.device, entry.inode))) is not None:
                self._complain(f"{key}.name", f"{dump.name} in {self._output} is {source}, one of the sources")
            elif entry.kind == "folder":
                self._complain(f"{key}.name", f"{dump.name} is a directory in {self._output}")
            else:
                existing.append(dump.name)
                if _may_be(dump, entry):
                    comparable.add(dump.name)
        if self._options.get("resume"):
            if any(name not in self._earlier for name in existing):
                # Another run may have published them since the records were read; it has recorded them before that.
                self._earlier = self._find_earlier()
            self._check_earlier(dumps)
            # A file that may be an unrecorded dump is compared with its source during the run (`stranger`).
            existing = [name for name in existing if name not in self._earlier and name not in comparable]
            if not self._stands(RECEIPT) and not self._stands(JOURNAL) and not existing and not comparable:
                lists = {LISTS[dump.checksum] for _, dump in dumps if dump.checksum != "none"}
                existing += filter(self._stands, sorted(lists))  # Nothing here was written by asyncdump.
            instead = "they are not from an earlier run: move them away, or also pass {overwrite}"
        else:
            # Without a receipt, an existing digest list isn't ours and must not be replaced.
            lists = {LISTS[dump.checksum] for _, dump in dumps if dump.checksum != "none"}
            existing += [RECEIPT] if self._stands(RECEIPT) else filter(self._stands, sorted(lists))
            instead = "choose another directory, or pass {overwrite}"
            if self._stands(JOURNAL) and not self._is_empty_journal():
                existing += [] if existing else ["the journal of an unfinished run"]
                instead = "continue that run with {resume}, choose another directory, or pass {overwrite}"
        for name in (RECEIPT, JOURNAL):
            if (entry := self._entry(name)) is not None and entry.kind == "folder":
                self._complain("output", f"{name} is a directory in {self._output}: move it away")
        if existing and not self._options.get("overwrite") and not self._lost:
            names = ", ".join(existing[:_SHOWN]) + (f" and {len(existing) - _SHOWN} more" * (len(existing) > _SHOWN))
            self._existing.append(self._complain("output", f"{self._output} has {names} already", instead))

    def _check_earlier(self, dumps: list[tuple[str, PlannedDump]]) -> None:
        """Complain about dumps that would replace the dump of another source."""
        for key, dump in dumps if not self._options.get("overwrite") else ():
            earlier = self._earlier.get(dump.name)
            if earlier is not None and earlier.source != dump.source.path and self._stands(dump.name):
                what = f"{dump.name} is the dump of {earlier.source} from an earlier run, not of {dump.source.path}"
                self._complain(f"{key}.name", what, "choose a different name, or also pass {overwrite}")

    def _is_empty_journal(self) -> bool:
        """Return whether the existing journal contains no dump; one that can't be read may contain some."""
        with suppress(DumpError):
            return self._store is None or is_journal_empty(self._store)
        return False

    def _entry(self, name: str) -> Entry | None:
        return None if self._store is None else self._store.entry(name)

    def _stands(self, name: str) -> bool:
        return self._entry(name) is not None

    def _check_folder(self, place: str, dumps: list[PlannedDump]) -> int:
        """Check that a directory can be written to and has enough space; return the free bytes."""
        while not os.path.lexists(place) and place != os.path.dirname(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            self._complain("output", f"{place} is not a directory")
            return 0
        try:
            status = os.statvfs(place)
        except OSError as error:
            if error.errno in TRUE_ERRORS:
                self._complain("output", f"{place} can't be accessed: {describe_errno(error.errno or 0)}")
            return 0  # Denied by a sandbox: errors will be reported when they occur.
        if status.f_flag & os.ST_RDONLY:
            self._complain("output", f"{place} is on a read-only filesystem")
        elif not os.access(place, os.W_OK | os.X_OK):
            self._complain("output", f"{place} is not writable by this user (EACCES)")
        free = status.f_bavail * status.f_frsize
        new = [dump for dump in dumps if dump.name not in self._earlier or not self._earlier[dump.name].ok]
        total = sum(needed(dump, place) for dump in new)
        if total > free and need_more(new, place, free):
            self._complain(
                "output", f"{place} has {format_size(free)} free, but the dumps need up to {format_size(total)}"
            )
        return free


def _may_be(dump: PlannedDump, entry: Entry) -> bool:
    """Return whether a file may be an unrecorded dump; the output of programs can't be compared with a source."""
    fits = dump.source.sized and (dump.compression is not None or entry.size == dump.length)
    return entry.kind == "file" and not dump.filters and fits


def _together(errors: Sequence[DumpError]) -> DumpError:
    """Return one error for all directories that a glob could not read."""
    shown = ", ".join(map(str, errors[:_SHOWN])) + f" and {len(errors) - _SHOWN} more" * (len(errors) > _SHOWN)
    first = errors[0]
    return DumpError(
        f"a glob may have missed matches: {shown}",
        path=first.path,
        operation=first.operation,
        errno=first.errno,
        hint=first.hint,
    )
