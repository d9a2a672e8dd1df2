"""Frozen values are light: what a manifest says can be read without an engine, ctypes, or a library that compresses."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "ctypes",
    "_ctypes",
    "mmap",
    "zstandard",
    "lz4",
    "yaml",
    "anyio",
    "asyncdump.engines",
    "asyncdump.kernel.linux",
)


def loaded(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return {
        name for name in done.stdout.splitlines() for heavy in HEAVY if name == heavy or name.startswith(heavy + ".")
    }


@pytest.mark.parametrize(
    "code",
    [
        "from asyncdump.manifest import Manifest",
        "from asyncdump.codecs.registry import CODECS",
        "import asyncdump; asyncdump.Manifest(output='o', dumps=(asyncdump.Dump(source='s', compress='lz4'),))",
        "import asyncdump; asyncdump.Lz4(level=3, frame='4MiB')",
    ],
)
def test_a_manifest_loads_nothing_heavy(code: str) -> None:
    assert loaded(code) == set()


def test_what_is_loaded_is_seen() -> None:
    assert loaded("import asyncdump; asyncdump.Zstd(level=3)") == loaded("import zstandard")
    assert "asyncdump.engines" in loaded("import asyncdump.engines")
