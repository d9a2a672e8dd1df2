"""Strategies for hypothesis: names, sizes, manifests as YAML text, and invalid YAML."""

from __future__ import annotations

import os
from typing import Any, get_args

import yaml
from hypothesis import settings
from hypothesis import strategies as st

from asyncdump.manifest.models import Defaults, Dump, Manifest, Sparse
from asyncdump.manifest.yaml import core_loader
from asyncdump.vocabulary.values import Checksum, Choice, OnError, OnReadError

FUZZ = int(os.environ.get("ASYNCDUMP_FUZZ", "1"))
"""The factor for the number of examples: with ASYNCDUMP_FUZZ=100, every property gets a long run."""

# No deadline: a test must not fail because the machine is busy with something else.
settings.register_profile("asyncdump", deadline=None, derandomize="CI" in os.environ, max_examples=100 * FUZZ)
settings.load_profile("asyncdump")

UNITS = {"": 1, "c": 1, "B": 1, "w": 2, "b": 512, "k": 1 << 10, "K": 1 << 10, "kiB": 1 << 10, "KiB": 1 << 10}
UNITS |= {"kB": 10**3, "KB": 10**3, "M": 1 << 20, "MiB": 1 << 20, "MB": 10**6, "G": 1 << 30, "GiB": 1 << 30}
UNITS |= {"GB": 10**9, "T": 1 << 40, "TiB": 1 << 40, "TB": 10**12, "P": 1 << 50, "PiB": 1 << 50, "PB": 10**15}
"""Every unit of the reference manual, in bytes."""

KEYS = sorted({*Manifest.__struct_fields__, *Defaults.__struct_fields__, *Dump.__struct_fields__})

LOADER: Any = core_loader(yaml.SafeLoader)
_Dumper: Any = type(
    "Dumper",
    (getattr(yaml, "CSafeDumper", yaml.SafeDumper),),
    {"yaml_implicit_resolvers": LOADER.yaml_implicit_resolvers},
)
"""Quotes the same values that the loader needs quoted."""

# --- names and sizes --------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
"""Any text that can be encoded in UTF-8, including control characters and line ends."""

nonempty = text.filter(bool)

file_names = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/{}"), min_size=1, max_size=20)
"""Names that a filesystem accepts, without template fields; they include '.' and '..'."""

pieces_of_names = st.lists(
    st.sampled_from(["{name}", "{stem}", "{suffix}", "{parent}", "{index}", "{index:04}", "/", ".", "..", "{{", "}}"])
    | st.sampled_from(["\0", "\n", "receipt.json", ".asyncdump-", "SHA256SUMS", "a" * 200, "ö" * 100, "{nothing}", "{"])
    | text,
    max_size=4,
)
templates = pieces_of_names.map("".join)
"""Templates of names, valid and invalid."""


@st.composite
def sizes(draw: st.DrawFn) -> int | str:
    """Draw a size in one of the forms of a manifest, below the largest file size."""
    number = draw(st.integers(0, 2**12))
    unit = draw(st.sampled_from(["", *UNITS]))
    factor = draw(st.sampled_from(["", "2x", "00x", "3x512x"])) if UNITS[unit] < 1 << 40 else ""
    choices: list[int | str] = [number, f"{factor}{number}{unit}"]
    return draw(st.sampled_from(choices))


# --- manifests --------------------------------------------------------------------------------------------------------

_settings: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(get_args(Choice)),
    "checksum": st.sampled_from(get_args(Checksum)),
    "durable": st.booleans(),
    "sparse": st.sampled_from(get_args(Sparse)),
    "on_read_error": st.sampled_from(get_args(OnReadError)),
}

dumps = st.fixed_dictionaries(
    {"source": nonempty},
    optional={
        "name": nonempty,
        "offset": sizes(),
        "length": st.none() | sizes(),
        **{key: st.none() | value for key, value in _settings.items()},
    },
)

documents = st.fixed_dictionaries(
    {"version": st.just(1), "output": nonempty, "dumps": st.lists(dumps, min_size=1, max_size=4)},
    optional={
        "concurrency": st.just("auto") | st.integers(1, 256),
        "on_error": st.sampled_from(get_args(OnError)),
        "defaults": st.fixed_dictionaries({}, optional=_settings),
    },
)
"""Valid manifests, as plain dictionaries."""


@st.composite
def yaml_texts(draw: st.DrawFn, documents: st.SearchStrategy[Any]) -> tuple[bytes, Any]:
    """Draw a document and write it as YAML in some style; return the text and the document."""
    document = draw(documents)
    style = {
        "allow_unicode": draw(st.booleans()),
        "default_flow_style": draw(st.sampled_from([True, False, None])),
        "explicit_start": draw(st.booleans()),
        "sort_keys": draw(st.booleans()),
        "width": draw(st.sampled_from([20, 120])),
    }
    return as_yaml(document, **style), document


def as_yaml(document: Any, **style: Any) -> bytes:
    """Write a document as YAML."""
    written: bytes = yaml.dump(document, Dumper=_Dumper, encoding="utf-8", **style)
    return written


# --- invalid manifests ------------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats()
    | st.dates()
    | text
    | st.sampled_from(["auto", "read", "sha256", "1GiB", "never", 1])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | text, inner, max_size=4),
    max_leaves=12,
)
strange_documents = st.dictionaries(st.sampled_from(KEYS) | scalars, values, max_size=5) | values
"""Any value that YAML can represent, often with the right keys in the wrong places."""

_TOKENS = [
    *("version: 1\n", "output: o\n", "dumps:\n", "- source: s\n", "  offset: ", "defaults: ", "concurrency: "),
    *("- ", "? ", ": ", ", ", "\n", "\n  ", "{", "}", "[", "]", "&a ", "*a", "!!str ", "!x ", "|\n", ">\n", "---\n"),
    *(
        "...\n",
        "# \n",
        "'",
        '"',
        "\\",
        "%YAML 1.1\n",
        "<<: ",
        "\t",
        "\0",
        "1GiB",
        "2026-01-01",
        ".nan",
        "0x1f",
        "\ufeff",
    ),
]
broken_yaml = st.lists(st.sampled_from(_TOKENS), max_size=20).map(lambda tokens: "".join(tokens).encode())
"""Text made of pieces of YAML syntax, which is rarely valid."""
