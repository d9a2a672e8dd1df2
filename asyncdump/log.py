"""The library's logger: a guest in whatever logging the program has set up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import cache
from typing import Any, Final

from asyncdump.text import text

setups: list[Callable[[], None]] = []
"""What the command line wants done before the first record."""

_setting_up = threading.Lock()


class Guarded:
    """A logger whose records can't harm who makes them: one that somebody's processor or handler chokes on is lost."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        def record(event: str, **values: Any) -> None:
            with suppress(Exception):
                getattr(_logger(), level)(event, **values)

        return record


_guarded: Final = Guarded()


def logger() -> Guarded:
    """Return a structlog logger named ``asyncdump``, with the methods that such loggers have.

    A program that has configured structlog gets the records its way. In one that hasn't they go to the standard
    library's logger of that name, so that they obey its levels and are never printed to stdout. structlog is imported
    on the first record: it takes longer to import than many a dump takes to write. What texts hold is printable by
    then: a name with a newline in it makes no record of its own.
    """
    return _guarded


def _logger() -> Any:
    import structlog

    with _setting_up:
        while setups:
            setups.pop()()
    return _Printable(structlog.get_logger("asyncdump") if structlog.is_configured() else _standard())


class _Printable:
    """Hands records on to a logger, with what can be printed in the place of each text."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def log(event: str, **values: Any) -> Any:
            shown = {key: text(value) if isinstance(value, str) else value for key, value in values.items()}
            return getattr(self._target, method)(event, **shown)

        return log


@cache
def _standard() -> Any:
    import structlog

    return structlog.wrap_logger(
        logging.getLogger("asyncdump"),
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs, _inline],
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _inline(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Show the values in the message as well: the standard formatters leave ``extra`` out."""
    values = " ".join(f"{key}={value}" for key, value in event.get("extra", {}).items())
    return {**event, "msg": f"{event['msg']} {values}".rstrip()}
