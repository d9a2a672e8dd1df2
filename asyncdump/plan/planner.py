"""Makes a plan from a manifest: resolves globs, describes sources, makes names, and checks the destination.

Nothing is written here. All errors that can be found before a run are reported in one `ManifestError`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Final

import msgspec

from asyncdump.codecs.registry import stored_by
from asyncdump.engines import FEEDS
from asyncdump.errors import DumpError, ManifestError, Problem, TargetExistsError, absolute
from asyncdump.manifest.compression import compression_of
from asyncdump.manifest.models import Dump, Manifest, ProcessMemory, Retries
from asyncdump.manifest.options import Overrides, first
from asyncdump.manifest.yaml import Marks
from asyncdump.plan.destination import Destination
from asyncdump.plan.globbing import find, is_glob
from asyncdump.plan.look import look_at, unseen
from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.plan.templates import render_name
from asyncdump.sinks.output import resolve
from asyncdump.sources.opening import look_at_process
from asyncdump.text import as_path
from asyncdump.vocabulary.names import name_complaint
from asyncdump.vocabulary.size import MAXIMUM, parse_size
from asyncdump.vocabulary.values import STANDARD_OUTPUT, Source

_SHOWN: Final = 3


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

    def _complain(self, key: str, message: str, remedy: str = "") -> Problem:
        self._problems.append(self._marks.problem(key, message, remedy))
        return self._problems[-1]

    def plan(self) -> Plan:
        with closing(Destination(self._output, self._options, self._complain)) as destination:
            return self._plan(destination)

    def _plan(self, destination: Destination) -> Plan:
        if self._options.get("resume") and not self._misplaced:
            destination.read_earlier()
        dumps = [dump for index, entry in enumerate(self._manifest.dumps) for dump in self._resolve(index, entry)]
        if not (self._streamed and self._misplaced):
            destination.check(dumps)
        if self._problems:
            only = len(self._problems) == len(destination.existing)
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
            free=destination.free,
            manifest_sha256=self._marks.sha256,
            resume=options.get("resume", False),
            trust_receipt=options.get("trust_receipt", False),
            retries=retries if isinstance(retries, Retries) else Retries(times=retries),
        )

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
                self._complain(f"{key}.filter", f"the program {program} was not found: install it, or specify its path")

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
