"""The options of a run as keyword arguments: checked, and visible to ``help()``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar, get_type_hints

from asyncdump.errors import ManifestError, Problem
from asyncdump.manifest.complaints import complaint, fields
from asyncdump.manifest.compression import Compress
from asyncdump.manifest.models import Defaults, Manifest, Retries
from asyncdump.manifest.options import OPTIONS, Overrides
from asyncdump.spelling import python, spelled

_PLACE: Final = "**options"
"""The placeholder for the options in the docstring of a function."""

_Function = TypeVar("_Function", bound=Callable[..., object])


def checked(overrides: Overrides) -> Overrides:
    """Return the options, after checking their values as if they were in a manifest.

    Raises:
        TypeError: there is no option of that name.
        ManifestError: values are invalid; it lists all of them.
    """
    known = {option.name for option in OPTIONS}
    if unknown := [name for name in overrides if name not in known]:
        raise TypeError(f"unknown option {unknown[0]!r}; known options are {', '.join(sorted(known))}")
    problems = [
        Problem(key=name, message=message)
        for name, value in overrides.items()
        if value is not None and (model := _model(name)) is not None and (message := complaint(model, name, value))
    ]
    if problems:
        raise ManifestError(*problems)
    return overrides


def given(overrides: Overrides) -> list[str]:
    """Return the names of the options that override something."""
    defaults = {option.name: option.default for option in OPTIONS}
    return [name for name, value in overrides.items() if value is not None and value is not defaults[name]]


@cache
def _model(name: str) -> Any:
    """Return the part of a manifest that an option overrides; None if it isn't in a manifest, or is a path."""
    return next((model for model in (Manifest, Defaults) if name in fields(model) and name != "output"), None)


def spell_out(function: _Function) -> _Function:
    """Replace ``**options`` in the signature and the docstring of a function by the individual options."""
    hints = get_type_hints(Overrides, localns={"Compress": Compress, "Retries": Retries})
    keywords = [
        inspect.Parameter(
            option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=hints[option.name]
        )
        for option in OPTIONS
    ]
    signature = inspect.signature(function)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    setattr(function, "__signature__", signature.replace(parameters=[*own, *keywords]))  # noqa: B010 (mypy knows none)
    if function.__doc__:  # Not with python -OO.
        lines = "\n".join(f"        {option.name}: {spelled(option.option.help, python)}" for option in OPTIONS)
        function.__doc__ = function.__doc__.replace(f"        {_PLACE}", lines)
    return function
