"""Dump sample memory-mapped files through a manifest, with the real command line, and show what came of it.

    python examples/quickstart.py [FOLDER]

The samples stand on a hugetlbfs mount where this machine has one with free huge pages, else on /dev/shm, and are
removed at the end. The dumps stay in FOLDER (default ./asyncdump-quickstart, with a number behind it when that exists).
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
        sys.exit("asyncdump is not installed for this Python: run `pip install .` in the folder above")
    signal.signal(signal.SIGTERM, _exit)
    folder = new_folder(Path(sys.argv[1] if len(sys.argv) > 1 else "asyncdump-quickstart"))
    with samples() as place:
        manifest = folder / "manifest.yaml"
        manifest.write_text(MANIFEST.format(pattern=json.dumps(f"{place}/ring_*")))
        heading(str(manifest))
        print(manifest.read_text(), end="")
        code = dump(manifest)
    if code:
        print(f"\nasyncdump ended with exit code {code}.")
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
    """Make the sample files; whatever ends the block removes them."""
    for parent, page in places():
        place = Path(tempfile.mkdtemp(prefix="asyncdump-quickstart-", dir=parent))
        try:
            try:
                fill(place, page)
            except OSError as error:
                # A mount or a control group may have a limit of its own, which only trying tells.
                print(f"{parent} can't hold the samples: {error.strerror}")
                continue
            kind = f"huge pages of {page >> 20} MiB" if page > mmap.PAGESIZE else "small pages"
            print(f"{FILES} sample files of {SIZE >> 20} MiB in {place} ({kind}), two pages in five zero")
            yield place
            return
        finally:
            shutil.rmtree(place, ignore_errors=True)
    sys.exit(f"no place for {FILES * SIZE >> 20} MiB of sample files")


def places() -> Iterator[tuple[str, int]]:
    """Yield the folders that may hold the samples, the best first, each with the bytes of its pages."""
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
    """Return the huge pages of a size, in bytes, that nobody has or has reserved."""
    pool = Path(f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB")
    try:
        return int((pool / "free_hugepages").read_text()) - int((pool / "resv_hugepages").read_text())
    except (OSError, ValueError):
        return 0


def fill(place: Path, page: int) -> None:
    """Fill the sample files through a mapping: hugetlbfs takes no write(2)."""
    # On small pages a grain of 512 KiB: zeros come in runs in real memory too.
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


# --- the run, and what came of it -------------------------------------------------------------------------------------


def dump(manifest: Path) -> int:
    heading(f"asyncdump {manifest}")
    command = [sys.executable, "-m", "asyncdump", str(manifest)]
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 130 if process.wait() else 0  # Ctrl-C reached it as well: it ends the run in order.
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
        print("The dumps are NOT what was written.")
        return 1
    print(f"All {len(dumps)} dumps verified.")
    heading("Next")
    print(f"edit {manifest}: name your own files, another output")
    print(f"{sys.executable} -m asyncdump {manifest} --dry-run     what would be done")
    print(f"{sys.executable} -m asyncdump verify {output}     proves the dumps")
    print(f"{sys.executable} -m asyncdump restore {output} --to {folder / 'back'}     puts them back")
    print(f"{sys.executable} -m asyncdump probe FILE {folder}      which ways of moving bytes work here, how fast")
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
