"""The options of a run, which override its manifest. This is their only definition.

The keyword arguments of `dump_all` and similar functions (`asyncdump.manifest.keywords`), the options of the command
line (`asyncdump.cli.options`), and the arguments of the planner are all derived from `Overrides`. Options that are also
in a manifest are checked by its models.
"""

# Annotations are values here, so that the command line can read them without loading the models.

import os
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypedDict, TypeVar, get_args

from asyncdump.vocabulary.values import Checksum, Choice, Concurrency, OnError, OnReadError

if TYPE_CHECKING:
    from asyncdump.manifest.compression import Compress
    from asyncdump.manifest.models import Retries


class Option(NamedTuple):
    """How an option is presented.

    Attributes:
        help: what it does, for ``help()`` and ``--help``; ``{resume}`` is replaced by the spelling of that option.
        metavar: the placeholder for its value on the command line. Without one, its type lists the values.
        off: what ``--no-NAME`` does, if that is the option on the command line.
    """

    help: str
    metavar: str = ""
    off: str = ""


class Overrides(TypedDict, total=False):
    """Keyword arguments of `dump_all`, `open_run` and `plan_all`; each overrides the manifest, for all of its files.

    None, or False for a flag, is the same as omitting it.
    """

    output: Annotated[
        str | os.PathLike[str] | None,
        Option("Directory for the dumps, relative to the working directory; - is standard output.", metavar="DIR"),
    ]
    concurrency: Annotated[Concurrency | None, Option("Files in flight: 1 to 256, or auto.", metavar="N|auto")]
    method: Annotated[Choice | None, Option("How the bytes are moved, for all files.")]
    checksum: Annotated[Checksum | None, Option("Digest to compute, for all files.")]
    compress: Annotated[
        "Compress | None",
        Option("Compression of all files: zstd, lz4, or none.", metavar="zstd[:LEVEL]|lz4[:LEVEL]|none"),
    ]
    on_error: Annotated[OnError | None, Option("What to do after the failure of a file.")]
    on_read_error: Annotated[
        OnReadError | None, Option("What to do about unreadable memory, for all files: zero dumps zeros in its place.")
    ]
    allow_filters: Annotated[bool, Option("Let the manifest run programs as filters.")]
    overwrite: Annotated[bool, Option("Replace existing dumps.")]
    resume: Annotated[bool, Option("Keep the dumps that an earlier run completed, and dump the rest.")]
    trust_receipt: Annotated[bool, Option("With {resume}: keep dumps even if their sources have changed since.")]
    retries: Annotated[
        "int | Retries | None",
        Option("How often to dump a file again after a transient failure.", metavar="N[:ERRNO,...]"),
    ]
    durable: Annotated[
        bool | None,
        Option(
            "Whether to wait until the dumps would survive a power failure.",
            off="Do not wait until the dumps would survive a power failure.",
        ),
    ]


class Known(NamedTuple):
    """An option, from its definition."""

    name: str
    kind: Any
    option: Option

    @property
    def default(self) -> bool | None:
        """The value that leaves the decision to the manifest: None, or False for a flag."""
        return False if self.kind is bool else None

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that its type lists, if any."""
        return () if self.option.metavar or self.option.off or self.kind is bool else get_args(get_args(self.kind)[0])


OPTIONS = tuple(Known(name, *get_args(kind)) for name, kind in Overrides.__annotations__.items())
"""All options, in the order of the help."""

_Value = TypeVar("_Value")


def first(*values: _Value | None) -> _Value:
    """Return the first value that isn't None; the last one is a default, and never None."""
    return next(value for value in values if value is not None)
