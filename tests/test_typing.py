"""Programs as users write them: mypy and pyright accept each, find the mistakes, and they run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from files import noise

import asyncdump

FOLDER = Path(__file__).parent / "programs"
PROGRAMS = sorted(FOLDER.glob("*.py"))
INSTALLED = Path(asyncdump.__file__).parent.parent
"""Where the package is imported from: the checkout, or the environment."""


def run(*command: object, cwd: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_runs(program: Path, tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    for number in range(3):
        (tmp_path / "sources" / f"ring_{number}").write_bytes(noise(50_000 + number, number))
    done = run(sys.executable, "-W", "error", program, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_mypy_accepts_them(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    options = ["--strict", "--config-file=", "--cache-dir", tmp_path, "--python-executable", sys.executable]
    done = run(sys.executable, "-m", "mypy", *options, *PROGRAMS, cwd=tmp_path)
    assert done.stdout == f"Success: no issues found in {len(PROGRAMS)} source files\n"


@pytest.mark.slow
def test_pyright_accepts_them(tmp_path: Path) -> None:
    """basedpyright is pyright with a node of its own: a wheel, where pyright downloads one when it first runs."""
    pytest.importorskip("basedpyright")
    config: dict[str, Any] = {
        "include": list(map(str, PROGRAMS)),
        "extraPaths": [str(INSTALLED)],
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    done = run(sys.executable, "-m", "basedpyright", "-p", tmp_path, "--pythonpath", sys.executable, "--outputjson")
    found = json.loads(done.stdout)
    complaints = [
        f"{Path(each['file']).name}:{each['range']['start']['line'] + 1}: {each['message']}"
        for each in found["generalDiagnostics"]
        if each["severity"] == "error"
    ]
    assert complaints == []
    assert found["summary"]["filesAnalyzed"] == len(PROGRAMS)
