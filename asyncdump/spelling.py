"""How options are spelled in the interface at hand: ``overwrite=True`` in Python, ``--overwrite`` on the command line.

Hints have ``{overwrite}`` or ``{on_read_error=zero}`` in that place. They are spelled when they are read, so that an
error that crosses processes speaks the language of the one that shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_PLACE: Final = re.compile(r"\{([a-z_]+)(?:=([A-Za-z]+))?\}")

Spelling = Callable[[str, str], str]
"""Makes one spelling of the name of an option, and its value: ``True`` for one that is switched on."""


def python(name: str, value: str) -> str:
    """Spell an option as a keyword argument."""
    return f"{name}={value}" if value in {"True", "False"} else f'{name}="{value}"'


def command_line(name: str, value: str) -> str:
    """Spell an option as a flag."""
    if name == "compressed":
        return "--zstd" if value == "True" else "--raw"
    flag = name.replace("_", "-")
    return f"--{flag}" if value == "True" else f"--no-{flag}" if value == "False" else f"--{flag} {value}"


class _Interface:
    """What this process is used by: a program, until the command line says that it is."""

    spelling: Spelling = staticmethod(python)


_interface: Final = _Interface()


def speak(spelling: Spelling) -> None:
    """Choose the spelling of this process."""
    _interface.spelling = spelling


def spelled(template: str, spelling: Spelling | None = None) -> str:
    """Return a text with its options spelled, by default as this process does."""
    spell = spelling or _interface.spelling
    return _PLACE.sub(lambda match: spell(match[1], match[2] or "True"), template)
