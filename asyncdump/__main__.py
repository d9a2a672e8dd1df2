"""The command: ``asyncdump`` and ``python -m asyncdump``."""

from __future__ import annotations

import sys

from asyncdump.version import __version__


def main() -> None:
    """Run the command line; a question for the version alone is answered before anything is imported."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"asyncdump {__version__}\n")
        return
    from asyncdump.cli.app import run

    run()


if __name__ == "__main__":
    main()
