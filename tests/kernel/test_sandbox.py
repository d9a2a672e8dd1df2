"""Optional system calls that a sandbox or an old kernel doesn't allow: asyncdump does without, whatever the answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import seccomp

_EVERYTHING = Path(__file__).with_name("everything.py")
_TMPFILE = os.O_TMPFILE & ~os.O_DIRECTORY
_F_SETPIPE_SZ = 1031

OPTIONAL = [
    "preadv2=EPERM",
    "preadv2=ENOSYS",
    "pwritev2=EPERM",
    "pwritev2=ENOTTY",
    "renameat2=EPERM",
    "renameat2=EACCES",
    "flock=EPERM",
    "fstatfs=EPERM",
    "statfs=EPERM",
    "sched_setscheduler=EPERM",
    "sched_getscheduler=ENOSYS",
    "sched_getaffinity=EPERM",
    f"openat:2&{_TMPFILE}=EOPNOTSUPP",
    f"openat:2&{_TMPFILE}=EPERM",
    f"openat:2&{os.O_NOATIME}=EINVAL",
    f"openat:2&{os.O_DIRECT}=EPERM",
    f"fcntl:1=={_F_SETPIPE_SZ}=EPERM",
    "fadvise64=EPERM",
    "madvise=EPERM",
    "sync_file_range=EPERM",
    "syncfs=EPERM",
    "memfd_create=EPERM",
    "pidfd_open=EPERM",
    "copy_file_range=EPERM",
    "sendfile=EPERM",
    "splice=EPERM",
    "tee=EPERM",
    "vmsplice=EPERM",
]


@pytest.fixture(autouse=True)
def _known_machine() -> None:
    seccomp.require()


def denied(rules: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, seccomp.__file__, *rules, "--", sys.executable, str(_EVERYTHING), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.sample(1)
@pytest.mark.parametrize("rule", OPTIONAL)
def test_what_is_optional(rule: str, tmp_path: Path) -> None:
    done = denied([rule], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_all_of_it_at_once(tmp_path: Path) -> None:
    done = denied([rule for rule in OPTIONAL if rule.endswith("=EPERM")], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
