"""Run the command as a user does, in a separate process; its manifests, receipts and events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked

COMMAND = (sys.executable, "-m", "asyncdump")
TiB = 1 << 40
ENOUGH = 30
"""Seconds after which a command is considered to hang."""

_NOT_OURS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "PYTHONUNBUFFERED")

Output = subprocess.CompletedProcess[str]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment without the variables that a developer's terminal adds."""
    return {**{name: value for name, value in os.environ.items() if name not in _NOT_OURS}, **changes}


def asyncdump(*arguments: str | Path | bytes, cwd: Path, **options: Any) -> Output:
    """Run the command to its end, without a terminal; with a fork, unless ``options`` need a real start."""
    if not options:
        done = forked.run(*arguments, cwd=cwd, env=environment(), timeout=ENOUGH)
        said = (os.fsdecode(stream).replace("\r\n", "\n") for stream in (done.stdout, done.stderr))
        return Output([*COMMAND, *arguments], done.returncode, *said)
    options.setdefault("stdin", subprocess.DEVNULL)
    if not {"stdout", "stderr"} & options.keys():
        options["capture_output"] = True
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        text=True,
        errors="surrogateescape",
        timeout=ENOUGH,
        check=False,
        env=options.pop("env", environment()),
        **options,
    )


@contextmanager
def running(*arguments: str | Path, cwd: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the command, and make sure that no process is left after the block."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=cwd, text=True, env=options.pop("env", environment()), **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[str], number: signal.Signals) -> Output:
    """Send a signal, and return what the process writes from then on."""
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=ENOUGH)
    return Output(process.args, process.returncode, stdout, stderr)


def redirected(how: str, *arguments: str | Path, cwd: Path, **options: Any) -> Output:
    """Run the command with shell redirections, such as ``2>&-``."""
    shell = ["sh", "-c", f'exec "$@" {how}', "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(
        shell,
        cwd=cwd,
        text=True,
        timeout=ENOUGH,
        check=False,
        env=environment(),
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@contextmanager
def unread() -> Iterator[int]:
    """Yield the write end of a pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


def write_manifest(folder: Path, *dumps: dict[str, Any] | str | Path, name: str = "m.yaml", **head: Any) -> Path:
    """Write a manifest as JSON, which is valid YAML."""
    entries = [dump if isinstance(dump, dict) else {"source": str(dump)} for dump in dumps]
    path = folder / name
    path.write_text(json.dumps({"version": 1, "output": "out", **head, "dumps": entries}))
    return path


def receipt(folder: Path) -> dict[str, Any]:
    """Return the receipt in an output directory."""
    content: dict[str, Any] = json.loads((folder / "receipt.json").read_bytes())
    return content


def events(text: str) -> list[dict[str, Any]]:
    """Return what ``--progress json`` printed; each line must be JSON."""
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]
