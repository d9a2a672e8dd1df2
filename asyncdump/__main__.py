"""The entry point of ``asyncdump`` and ``python -m asyncdump``."""

from __future__ import annotations

import gc
import os
import signal
import sys

from asyncdump.version import __version__


def main() -> None:
    """Run the command line and exit; ``--version`` alone is answered before anything else is imported."""
    try:
        code = _tell_version() if sys.argv[1:] == ["--version"] else _run()
    except KeyboardInterrupt:  # Before anything was started, or after everything was done.
        code = 130
    # Nothing is left to do, and an orderly shutdown of the interpreter takes as long as dumping 40 MiB.
    os._exit(code)


def _tell_version() -> int:
    try:
        os.write(1, f"asyncdump {__version__}\n".encode())
    except OSError:
        return 1
    return 0


def _run() -> int:
    # Start-up creates many objects and little garbage. Collecting it took a tenth of the start-up (bench start).
    gc.set_threshold(100_000)
    # An ignored SIGCHLD is inherited, and then the kernel doesn't keep the exit status of a filter (wait(2)).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    from asyncdump.cli.output import take_over
    from asyncdump.cli.signals import end, heeding
    from asyncdump.spelling import command_line, speak

    speak(command_line)
    stdout = take_over()
    with heeding(end):
        from asyncdump.cli.app import run

        return stdout.verdict(run())


if __name__ == "__main__":
    main()
