"""The library's logger, which uses the logging that the program has set up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import cache
from typing import Any, Final

from asyncdump.text import text

setups: list[Callable[[], None]] = []
"""Functions that are called before the first log record: the command line configures structlog in one."""

_setting_up = threading.Lock()


class Guarded:
    """A logger that never raises: if a processor or handler fails on a record, that record is lost."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        def record(event: str, **values: Any) -> None:
            with suppress(Exception):
                getattr(_logger(), level)(event, **values)

        return record


_guarded: Final = Guarded()


def logger() -> Guarded:
    """Return a logger named ``asyncdump`` with the methods of a structlog logger.

    If the program has configured structlog, records go there. Otherwise they go to the logger of that name in the
    standard library, so that its levels apply and nothing is printed to stdout. structlog is imported on the first
    record, because importing it takes longer than writing a small dump. Values are made printable first, so that a
    name with a newline can't fake a record.
    """
    return _guarded


def _logger() -> Any:
    import structlog

    with _setting_up:
        while setups:
            setups.pop()()
    return _Printable(structlog.get_logger("asyncdump") if structlog.is_configured() else _standard())


class _Printable:
    """Passes records on to a logger, with each string made printable (`text`)."""

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
    """Append the values to the message, because the standard formatters don't show ``extra``."""
    values = " ".join(f"{key}={value}" for key, value in event.get("extra", {}).items())
    return {**event, "msg": f"{event['msg']} {values}".rstrip()}
