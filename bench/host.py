"""The machine on which the figures were measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import asyncdump

_PACKAGES = ("anyio", "uvloop", "xxhash")


def meminfo() -> dict[str, int]:
    """Return /proc/meminfo (proc_meminfo(5)), sizes in bytes."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        fields = (line.split() for line in lines)
        return {name.rstrip(":"): int(value) << (10 if unit else 0) for name, value, *unit in fields}


def huge_page() -> int:
    return meminfo()["Hugepagesize"]


def page_cache() -> int:
    """Return the bytes of the page cache, without shared memory, which the kernel counts there too."""
    sizes = meminfo()
    return sizes["Cached"] - sizes["Shmem"]


def header(destination: str, state: str) -> dict[str, str]:
    """Describe the machine, the destination's filesystem and the versions of all programs."""
    return {
        "date": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "kernel": platform.release(),
        "cpu": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{meminfo()['MemTotal'] / (1 << 30):.1f} GiB, huge pages of {huge_page() >> 20} MiB",
        "destination": f"{os.path.abspath(destination)}: {_mount(destination)}",
        "state": state,
        "load": f"{os.getloadavg()[0]:.2f} before the first round",
        "versions": ", ".join([f"asyncdump {asyncdump.__version__}", *_versions()]),
        "asyncdump": os.path.dirname(asyncdump.__file__),
    }


def _cpu() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _mount(path: str) -> str:
    """Return the filesystem, device and options of the mount that contains a path (proc_pid_mountinfo(5))."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            if before.split()[2] == number:
                kind, name, *_ = after.split()
                return f"{kind} on {name} ({before.split()[5]},{after.split()[2]})"
    return "unknown"


def _versions() -> list[str]:
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return [*found, *filter(None, (_first_line("dd"), _first_line("fio")))]


def _first_line(command: str) -> str:
    if shutil.which(command) is None:
        return ""
    lines = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return lines[0] if lines else ""
