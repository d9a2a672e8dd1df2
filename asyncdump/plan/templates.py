"""Templates for the names of dumps."""

from __future__ import annotations

import os
import re
import string
from typing import Final

_SPEC: Final = re.compile(r"0?\d{0,2}")


def render_name(template: str, path: str, index: int, *, pid: int | None = None) -> str:
    """Return the name that a template yields for a source.

    The fields are: ``{name}``, the base name of the source; ``{stem}`` and ``{suffix}``, its parts before and from the
    last dot; ``{parent}``, the base name of its directory; ``{index}``, its position among the matches of its glob,
    from 0. For the memory of a process, ``{name}`` is ``pid-4242-0x7f0000000000``, and ``{pid}`` its ``pid``. A number
    may have a width: ``{index:04}``.

    Raises:
        ValueError: the template contains an unknown field, or is malformed.
    """
    base = os.path.basename(path.rstrip("/")) or path
    stem, suffix = os.path.splitext(base)
    values: dict[str, str | int] = {
        "name": base,
        "stem": stem,
        "suffix": suffix,
        "parent": os.path.basename(os.path.dirname(path)),
        "index": index,
        **({} if pid is None else {"pid": pid}),
    }
    parts: list[str] = []
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{template!r} is not a name: {error}; write {{{{ for a brace") from error
    for literal, field, spec, conversion in fields:
        parts.append(literal)
        if field is None:
            continue
        if field not in values or conversion or not _SPEC.fullmatch(spec or ""):
            known = ", ".join(f"{{{name}}}" for name in values)
            raise ValueError(
                f"{{{field}{f':{spec}' if spec else ''}}} is not a field of a name; the fields are {known}"
            )
        value = values[field]
        parts.append(f"{value:{spec}}" if isinstance(value, int) else value)
    return "".join(parts)
