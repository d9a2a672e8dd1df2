"""How the documentation is built: sphinx-build -n -W -b html docs docs/_build/html."""

import re

from sphinx.application import Sphinx

from asyncdump.version import __version__

project = "asyncdump"
copyright = "the asyncdump authors"
author = "the asyncdump authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"asyncdump {version}"

# Docstrings name things in single backticks: each of them is looked up, and a wrong one breaks the build.
default_role = "py:obj"
nitpicky = True
# A method that returns the type bytes: Sphinx finds our properties of that name, and complains of several.
suppress_warnings = ["ref.python"]
# Other projects' names aren't looked up: the build needs no network.
nitpick_ignore_regex = [("py:.*", r"(io|os|collections\.abc|datetime|typing|types|msgspec)\..*")]
myst_heading_anchors = 3

autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

_SHARED = re.compile(r"(\s+)(\w+(?:, \w+)+): (.*)")


def _prepare(_app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Say what napoleon can't know: a property's first line is no type, and one line may describe two attributes."""
    if what == "property":
        lines[:0] = ["..", ""]
    for number in reversed(range(len(lines))):
        if what == "class" and (match := _SHARED.fullmatch(lines[number])):
            lines[number : number + 1] = [f"{match[1]}{name}: {match[3]}" for name in match[2].split(", ")]


def _finish(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Keep the type ``bytes`` from being taken for one of the properties of that name."""
    lines[:] = [re.sub(r"^(:vartype \w+:) bytes$", r"\1 ``bytes``", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _prepare, priority=100)
    app.connect("autodoc-process-docstring", _finish, priority=900)
