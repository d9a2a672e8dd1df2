"""The command-line options of a run, generated from their definition."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import click

from asyncdump.errors import ManifestError
from asyncdump.manifest.options import OPTIONS, Known
from asyncdump.spelling import command_line, spelled

Parsed = Callable[[click.Context, click.Parameter, Any], Any]


def concurrency(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | Literal["auto"] | None:
    """Parse a number of files in flight, or auto."""
    if value is None or value == "auto":
        return value  # type: ignore[return-value] # "auto" is just that literal
    if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= 256:  # noqa: PLR2004
        raise click.BadParameter(f"{value!r} is not a whole number from 1 to 256 or auto")
    return int(value)


def _compress(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    from asyncdump.manifest.compression import compress_of

    try:
        return compress_of(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from error


def _retries(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    from asyncdump.manifest.models import Retries

    times, colon, errors = value.partition(":")
    try:
        names: Any = tuple(errors.upper().split(","))
        if not re.fullmatch("[0-9]{1,9}", times):
            raise ValueError(times)
        return Retries(times=int(times), errors=names) if colon else Retries(times=int(times))
    except (ValueError, ManifestError) as error:
        raise click.BadParameter(
            f"{value!r} is not a number from 0 to 1000, or one with errors: 5:ENOSPC,EDQUOT"
        ) from error


def _off(_ctx: click.Context, _param: click.Parameter, value: bool) -> bool | None:  # noqa: FBT001 (click calls it so)
    return False if value else None


_PARSERS: Final[dict[str, Parsed]] = {"concurrency": concurrency, "compress": _compress, "retries": _retries}
"""The parsers of the options whose value isn't one of a list."""


def run_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add every option of a run to a command, in the order of their definition."""
    for known in reversed(OPTIONS):
        function = _decorator(known)(function)
    return function


def _decorator(known: Known) -> Callable[[Callable[..., None]], Callable[..., None]]:
    flag, text = spelled(f"{{{known.name}}}", command_line), spelled(known.option.help, command_line)
    if known.option.off:
        switch = spelled(f"{{{known.name}=False}}", command_line)
        return click.option(switch, known.name, is_flag=True, callback=_off, help=known.option.off)
    if known.default is False:
        return click.option(flag, is_flag=True, help=text)
    if known.choices:
        choices: Sequence[str] = known.choices
        return click.option(flag, type=click.Choice(choices), help=text)
    return click.option(flag, metavar=known.option.metavar, callback=_PARSERS.get(known.name), help=text)
