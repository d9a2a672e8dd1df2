"""Dump sample memory-mapped files with a manifest and the command line, and show the result.

    python examples/quickstart.py [DIRECTORY]

The samples are on a hugetlbfs mount if this machine has one with free huge pages, otherwise on /dev/shm. They are
removed at the end. The dumps stay in DIRECTORY (default: ./asyncdump-quickstart, with a number appended if it exists).
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

FILES = 12
SIZE = 4 << 20
ODD = 1234
SPARE_PAGES = 8

MANIFEST = """\
version: 1
output: dumps                        # relative to this file
defaults: {{checksum: xxh128, durable: true, sparse: auto}}
dumps:
  - source: {pattern}
    name: "{{stem}}.bin"
"""


def main() -> int:
    if importlib.util.find_spec("asyncdump") is None:
        sys.exit("asyncdump is not installed for this Python: run `pip install .` in the root directory of the project")
    signal.signal(signal.SIGTERM, _exit)
    folder = new_folder(Path(sys.argv[1] if len(sys.argv) > 1 else "asyncdump-quickstart"))
    with samples() as place:
        manifest = folder / "manifest.yaml"
        manifest.write_text(MANIFEST.format(pattern=json.dumps(f"{place}/ring_*")))
        heading(str(manifest))
        print(manifest.read_text(), end="")
        code = dump(manifest)
    if code:
        print(f"\nasyncdump failed with exit code {code}.")
        return code
    return show(folder, manifest)


def _exit(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def heading(title: str) -> None:
    style, reset = ("\033[1m", "\033[0m") if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    print(f"\n{style}== {title}{reset}", flush=True)


def new_folder(wanted: Path) -> Path:
    number = 1
    while True:
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


# --- samples ---------------------------------------------------------------------------------------------------------


@contextmanager
def samples() -> Iterator[Path]:
    """Create the sample files, and remove them at the end of the block."""
    for parent, page in places():
        place = Path(tempfile.mkdtemp(prefix="asyncdump-quickstart-", dir=parent))
        try:
            try:
                fill(place, page)
            except OSError as error:
                # A mount or a control group may have its own limit, which is only known by trying.
                print(f"{parent} can't hold the samples: {error.strerror}")
                continue
            kind = f"huge pages of {page >> 20} MiB" if page > mmap.PAGESIZE else "small pages"
            print(f"{FILES} sample files of {SIZE >> 20} MiB in {place} ({kind}), two fifths of the pages zero")
            yield place
            return
        finally:
            shutil.rmtree(place, ignore_errors=True)
    sys.exit(f"no space for {FILES * SIZE >> 20} MiB of sample files")


def places() -> Iterator[tuple[str, int]]:
    """Yield candidate directories for the samples, best first, each with its page size in bytes."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, filesystem, *_ = line.split()
        if filesystem == "hugetlbfs" and os.access(mount, os.W_OK | os.X_OK):
            page = os.statvfs(mount).f_bsize
            if page <= SIZE and free_pages(page) >= FILES * SIZE // page + SPARE_PAGES:
                yield mount, page
    if os.access("/dev/shm", os.W_OK | os.X_OK):
        yield "/dev/shm", mmap.PAGESIZE
    yield tempfile.gettempdir(), mmap.PAGESIZE


def free_pages(size: int) -> int:
    """Return the number of huge pages of a size, in bytes, that are neither used nor reserved."""
    pool = Path(f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB")
    try:
        return int((pool / "free_hugepages").read_text()) - int((pool / "resv_hugepages").read_text())
    except (OSError, ValueError):
        return 0


def fill(place: Path, page: int) -> None:
    """Fill the sample files through a mapping, because hugetlbfs does not support write(2)."""
    # With small pages, use units of 512 KiB: in real memory, zeros come in runs too.
    grain = max(page, 512 << 10)
    numbers = itertools.count()
    for index in range(FILES):
        size = SIZE if index or page > mmap.PAGESIZE else SIZE + ODD
        with (place / f"ring_{index}.mem").open("xb+") as file:
            file.truncate(size)
            with mmap.mmap(file.fileno(), size) as memory:
                for start in range(0, size, grain):
                    length = min(grain, size - start)
                    zero = next(numbers) % 5 in {1, 3}
                    memory[start : start + length] = bytes(length) if zero else os.urandom(length)


# --- the run and its result -------------------------------------------------------------------------------------------


def dump(manifest: Path) -> int:
    heading(f"asyncdump {manifest}")
    command = [sys.executable, "-m", "asyncdump", str(manifest)]
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 130 if process.wait() else 0  # The child got Ctrl-C too, and stops the run cleanly.
        finally:
            process.terminate()


def show(folder: Path, manifest: Path) -> int:
    output = folder / "dumps"
    dumps = sorted(output.glob("*.bin"), key=lambda path: (len(path.name), path.name))
    heading(str(output))
    print(f"{'size':>10} {'on disk':>10}  name")
    for path in dumps:
        status = path.stat()
        print(f"{status.st_size:>10} {status.st_blocks * 512:>10}  {path.name}")
    heading("receipt.json")
    print("\n".join((output / "receipt.json").read_text().splitlines()[:10]), "\n ...")
    heading("XXH128SUMS")
    if not verify(output) or len(dumps) != FILES:
        print("The dumps do NOT match their digests.")
        return 1
    print(f"All {len(dumps)} dumps verified.")
    heading("Next")
    print(f"edit {manifest}: list your own files, choose a different output")
    print(f"{sys.executable} -m asyncdump {manifest} --dry-run     print the plan")
    print(f"{sys.executable} -m asyncdump verify {output}     verify the dumps")
    print(f"{sys.executable} -m asyncdump restore {output} --to {folder / 'back'}     restore the dumps")
    print(f"{sys.executable} -m asyncdump probe FILE {folder}      show which methods work here, and how fast")
    print(f"rm -r {folder}")
    return 0


def verify(output: Path) -> bool:
    if xxhsum := shutil.which("xxhsum"):
        answer = subprocess.run(
            [xxhsum, "--quiet", "-c", "XXH128SUMS"], cwd=output, capture_output=True, text=True, check=False
        )
        print(f"xxhsum -c XXH128SUMS: exit code {answer.returncode} {answer.stdout}{answer.stderr}".rstrip())
        return answer.returncode == 0
    import xxhash  # A dependency of asyncdump.

    for line in (output / "XXH128SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        with (output / name).open("rb") as file:
            if hashlib.file_digest(file, xxhash.xxh3_128).hexdigest() != digest:
                print(f"{name}: FAILED")
                return False
    return True


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
