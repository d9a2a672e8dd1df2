"""The spelling of options in the current interface: ``overwrite=True`` in Python, ``--overwrite`` on the command line.

Hints contain placeholders: ``{overwrite}``, ``{on_read_error=zero}``. They are replaced when a hint is read, so that an
error from another process is shown in the spelling of the process that shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_PLACE: Final = re.compile(r"\{([a-z_]+)(?:=([A-Za-z]+))?\}")

Spelling = Callable[[str, str], str]
"""Spells an option, given its name and its value (``True`` for a switch that is on)."""


def python(name: str, value: str) -> str:
    """Spell an option as a keyword argument."""
    return f"{name}={value}" if value in {"True", "False"} else f'{name}="{value}"'


def command_line(name: str, value: str) -> str:
    """Spell an option as a flag."""
    if name == "compressed":
        return "--raw" if value == "False" else f"--{value}"
    flag = name.replace("_", "-")
    return f"--{flag}" if value == "True" else f"--no-{flag}" if value == "False" else f"--{flag} {value}"


class _Interface:
    """The interface of this process: Python, unless the command line calls `speak`."""

    spelling: Spelling = staticmethod(python)


_interface: Final = _Interface()


def speak(spelling: Spelling) -> None:
    """Set the spelling of this process."""
    _interface.spelling = spelling


def spelled(template: str, spelling: Spelling | None = None) -> str:
    """Return a text with its placeholders replaced, by default in the spelling of this process."""
    spell = spelling or _interface.spelling
    return _PLACE.sub(lambda match: spell(match[1], match[2] or "True"), template)
