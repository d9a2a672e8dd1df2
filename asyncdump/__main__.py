"""The command: ``asyncdump`` and ``python -m asyncdump``."""

from __future__ import annotations

import gc
import os
import sys

from asyncdump.version import __version__


def main() -> None:
    """Run the command line; a question for the version alone is answered before anything is imported."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"asyncdump {__version__}\n")
        return
    # Starting makes many objects and little garbage: looking for it took a tenth of the start-up (bench start).
    gc.set_threshold(100_000)
    from asyncdump.cli.app import run

    code = run()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = code or 1
    # Nothing is left to be done, and taking the interpreter to pieces would take as long as dumping 40 MiB.
    os._exit(code)


if __name__ == "__main__":
    main()
