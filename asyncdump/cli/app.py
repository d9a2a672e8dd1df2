"""The commands and their options. The code behind a command is imported when the command is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from asyncdump.cli.options import concurrency as _concurrency
from asyncdump.cli.options import run_options
from asyncdump.errors import AsyncdumpError, ManifestError, ReceiptError
from asyncdump.manifest.options import Overrides
from asyncdump.version import __version__


class _Commands(click.Group):
    """A group that treats anything that isn't a command as the manifest of the command ``run``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Options of the run may come before its manifest. The group itself has only these three.
        if args and args[0].startswith("-") and args[0] not in {"--help", "-h", "--version"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "MANIFEST [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of a run on the first help page, where people look for them."""
        options = [option for option in run_manifest.get_params(ctx) if isinstance(option, click.Option)]
        records = [record for option in options if (record := option.get_help_record(ctx))]
        with formatter.section("Options"):
            formatter.write_dl(records)
        self.format_commands(ctx, formatter)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [name for name in self.commands if name != "run"]


class _Run(click.Command):
    """The command without a name: its first argument is the manifest."""

    def format_usage(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("asyncdump", "MANIFEST [OPTIONS]")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, message="asyncdump %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Dump the memory-mapped files that MANIFEST (YAML) lists: concurrently, durably, with digests.

    \b
    A manifest in short:
      version: 1
      output: /var/dumps/crash-42
      dumps:
        - source: /dev/hugepages/rtemap_*

    Exit codes: 0 all dumped, 1 some failed, 2 invalid usage or manifest, 3 another run is running there, 130 or 143
    interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(2)


@cli.command("run", cls=_Run, hidden=True)
@click.argument("manifest", type=click.Path())
@run_options
@click.option("--dry-run", is_flag=True, help="Print the plan: files, sizes, kinds, methods, free space.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "plain", "json", "none"]),
    default="auto",
    help="How to show the progress: as a bar on a terminal, plain lines, or JSON events on stdout. Default: auto.",
)
@click.option(
    "--log-format", type=click.Choice(["console", "json"]), default="console", help="Format of the warnings on stderr."
)
@click.option("--quiet", "-q", is_flag=True, help="Print failures only.")
@click.help_option("-h", "--help")
def run_manifest(manifest: str, *, dry_run: bool, progress: str, log_format: str, quiet: bool, **options: Any) -> None:
    """Dump the files that MANIFEST lists."""
    from asyncdump.cli.logs import configure_later
    from asyncdump.cli.run import dry, wet

    configure_later(log_format, summary=progress != "json")
    if options["trust_receipt"] and not options["resume"]:
        raise click.UsageError("--trust-receipt works only with --resume: pass both")
    chosen = Overrides(**options)  # type: ignore[typeddict-item] # made from its definition
    sys.exit(dry(manifest, chosen) if dry_run else wet(manifest, chosen, "none" if quiet else progress, quiet=quiet))


_progress = click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "plain", "json", "none"]),
    default="auto",
    help="How to show the progress: as a bar on a terminal, plain lines, or JSON events on stdout. Default: auto.",
)
_files_in_flight = click.option(
    "--concurrency",
    metavar="N",
    default="auto",
    callback=_concurrency,
    help="Files in flight: a number, or auto.",
)
_quiet = click.option("--quiet", "-q", is_flag=True, help="Print failures only.")


@cli.command(short_help="Verify the dumps of a run.")
@click.argument("run", metavar="DIR|RECEIPT", type=click.Path())
@click.option(
    "--against-source",
    is_flag=True,
    help="Compare the dumps with their sources as they are now, instead of with the receipt.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome for each file as JSON.")
@_files_in_flight
@_progress
@_quiet
def verify(run: str, *, against_source: bool, as_json: bool, concurrency: Any, progress: str, quiet: bool) -> None:
    """Read every dump of the run in DIR and compare it with the receipt: sizes, digests, checksums of frames.

    Exit codes: 0 all verified, 1 some are damaged or missing, 2 no usable receipt, 3 a run is running there.
    """
    from asyncdump.cli.verify import main

    if as_json and progress == "json":
        raise click.UsageError("--json and --progress json both print to stdout: choose one")
    chosen = "none" if quiet or (as_json and progress == "auto") else progress
    options: dict[str, Any] = {"against_source": against_source, "concurrency": concurrency}
    sys.exit(main(run, chosen, as_json=as_json, quiet=quiet, **options))


def _mapped(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not name or not equals or not path:
            raise click.BadParameter(f"{value!r} is not NAME=PATH")
        if name in pairs:
            raise click.BadParameter(f"{name} is mapped twice")
        pairs[name] = path
    return pairs


@cli.command(short_help="Restore the dumps of a run.")
@click.argument("run", metavar="DIR|RECEIPT", type=click.Path())
@click.option("--to", metavar="TARGET_DIR", required=True, type=click.Path(), help="Directory for the targets.")
@click.option(
    "--map", "mapped", metavar="NAME=PATH", multiple=True, callback=_mapped, help="Another target for one dump."
)
@click.option("--overwrite", is_flag=True, help="Replace existing targets.")
@click.option("--no-durable", is_flag=True, help="Do not wait until the targets would survive a power failure.")
@_files_in_flight
@_progress
@_quiet
def restore(
    run: str, *, to: str, mapped: Any, overwrite: bool, no_durable: bool, concurrency: Any, progress: str, quiet: bool
) -> None:
    """Restore the dumps of the run in DIR into huge pages or ordinary files, and verify each against its digest.

    Exit codes: 0 all restored, 1 some failed, 2 nothing restored (targets exist, too few huge pages, no receipt), 3 a
    run is running there.
    """
    from asyncdump.cli.restore import main

    options: dict[str, Any] = {"map": mapped, "overwrite": overwrite, "durable": not no_durable}
    sys.exit(main(run, to, "none" if quiet else progress, quiet=quiet, concurrency=concurrency, **options))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of a manifest, for editors."""
    import json

    from asyncdump.manifest.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@cli.command(short_help="Try each method on SOURCE into DEST_DIR.")
@click.argument("source", type=click.Path())
@click.argument("folder", metavar="DEST_DIR", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def probe(source: str, folder: str, *, as_json: bool) -> None:
    """Try each method on SOURCE into DEST_DIR: supported and how fast, or refused and why. Leaves nothing there."""
    from asyncdump.cli.tables import print_findings
    from asyncdump.probing import probe_all

    print_findings(probe_all(source, folder), as_json=as_json)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("operands", nargs=-1, type=click.UNPROCESSED)
def dd(operands: tuple[str, ...]) -> None:
    """Copy one file like dd; the kernel moves the bytes.

    \b
    Operands: if= of= bs= count= skip= seek= status=none|noxfer|progress
              conv=fsync,fdatasync,notrunc,sparse
              iflag=count_bytes,skip_bytes  oflag=direct,seek_bytes
              method=auto|reflink|direct|sendfile|splice|mmap|read
              compress=zstd|zstd:LEVEL|lz4|lz4:LEVEL|none
    Without if= it reads standard input, without of= it writes standard output.
    """
    from asyncdump.cli.dd.command import main

    sys.exit(main(operands))


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from asyncdump.vocabulary.size import parse_size

    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _kind(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    return False if value == "raw" else value


def _compressed(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how a dump is stored."""
    for kind, meaning in (("raw", "as it is"), ("zstd", "as a .zst"), ("lz4", "as a .lz4")):
        text = f"Read it {meaning}, regardless of its record and its name."
        command = click.option(f"--{kind}", "compressed", flag_value=kind, callback=_kind, help=text)(command)
    return command


@cli.command(short_help="Write the content of DUMP, or a part of it.")
@click.argument("dump", type=click.Path())
@click.option("--offset", metavar="SIZE", default="0", callback=_size, help="Where to start.")
@click.option("--length", metavar="SIZE", callback=_size, help="Its length; without it, everything that follows.")
@_compressed
def cat(dump: str, *, offset: int, length: int | None, compressed: Any) -> None:
    """Write the content of DUMP, raw or compressed, to standard output; for a part, only what it needs is read."""
    from asyncdump.cli.reading import cat

    sys.exit(cat(dump, offset, length, compressed=compressed))


@cli.command(short_help="Print sizes, ratio and frames of each DUMP.")
@click.argument("dumps", metavar="DUMP...", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_compressed
def info(dumps: tuple[str, ...], *, as_json: bool, compressed: Any) -> None:
    """Print the properties of each DUMP: kind, sizes, ratio, frames, and whether they have checksums."""
    from asyncdump.cli.reading import info

    info(dumps, as_json=as_json, compressed=compressed)


def run() -> int:
    """Run the command line and return its exit code."""
    try:
        cli(prog_name="asyncdump")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (ManifestError, ReceiptError) as error:
        return _fail(*map(str, error.problems), code=error.exit_code)
    except AsyncdumpError as error:
        return _fail(f"{error}{f' ({error.hint})' if error.hint else ''}", code=error.exit_code)
    except (OSError, MemoryError, RuntimeError, ExceptionGroup) as error:
        # The state of the host, not a bug: no memory, no thread, no descriptor. Finished dumps stay recorded.
        return _fail(*map(_described, _told_apart(error)), code=1)
    return 0


def _told_apart(error: Exception) -> list[Exception]:
    """Return the errors in a group; if one of them points to a bug, raise the group."""
    found = [each for one in error.exceptions for each in _told_apart(one)] if isinstance(error, ExceptionGroup) else []
    for each in found:
        if not isinstance(each, AsyncdumpError | OSError | MemoryError | RuntimeError):
            raise error
    return found or [error]


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, AsyncdumpError) else f"{type(error).__name__}: {error}".rstrip(": ")


def _fail(*messages: str, code: int = 2) -> int:
    from asyncdump.text import text

    for message in dict.fromkeys(messages):
        sys.stderr.write(f"asyncdump: {text(message)}\n")
    return code
