"""Sources for the command line, on the filesystem that memory-mapped files are on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import TiB
from files import MiB, noise


@pytest.fixture
def shm(tmpfs: Path) -> Iterator[Path]:
    """A folder on tmpfs for one test."""
    folder = Path(tempfile.mkdtemp(dir=tmpfs))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def sources(shm: Path) -> list[Path]:
    """Three files of some size on tmpfs."""
    made = []
    for number, size in enumerate((3 * MiB + 1, MiB, 5000)):
        made.append(shm / f"ring{number}")
        made[-1].write_bytes(noise(size, number))
    return made


@pytest.fixture
def endless(shm: Path) -> Path:
    """A file of nothing but a hole: it takes no memory, its dump takes no disk, and its digest takes an hour."""
    path = shm / "endless"
    with path.open("wb") as file:
        file.truncate(4 * TiB)
    return path
