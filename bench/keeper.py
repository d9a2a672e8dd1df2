"""Resources of the host that a benchmark takes, and that are released however it ends, even by ``kill -9``."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import click

from bench.host import huge_page

_SCRIPT = """
trap '' HUP INT TERM
{take}
echo "$got"
cat >/dev/null
{give_back}
"""

_TAKE_PAGES = """
nr=/proc/sys/vm/nr_hugepages
before=$(cat $nr)
echo $((before + {pages})) >$nr
got=$(($(cat $nr) - before))
mount -t hugetlbfs -o mode=0700,pagesize={page} none {folder}
"""

_GIVE_PAGES_BACK = """
umount -l {folder} && rmdir {folder}
echo $(($(cat $nr) - got)) >$nr
"""


@contextmanager
def _kept(take: str, give_back: str) -> Iterator[str]:
    """Run ``take`` now, and ``give_back`` when the block or this process ends: either closes a pipe."""
    keeper = subprocess.Popen(
        ["sh", "-c", _SCRIPT.format(take=take, give_back=give_back)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        yield keeper.stdout.readline().strip()
    finally:
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()


@contextmanager
def huge_pages(size: int) -> Iterator[str]:
    """Reserve huge pages for ``size`` bytes in addition to those of others, and mount a separate hugetlbfs for them."""
    if os.geteuid():
        raise click.ClickException("reserving huge pages needs root: run this as root, or specify files with --source")
    page = huge_page()
    pages = -(-size // page)
    folder = tempfile.mkdtemp(prefix="asyncdump-bench-huge-")
    take = _TAKE_PAGES.format(pages=pages, page=page, folder=shlex.quote(folder))
    with _kept(take, _GIVE_PAGES_BACK.format(folder=shlex.quote(folder))) as got:
        if int(got or 0) < pages:
            raise click.ClickException(
                f"the kernel granted {got} of {pages} huge pages: free memory, or use fewer files"
            )
        if not os.path.ismount(folder):
            raise click.ClickException("hugetlbfs can't be mounted here")
        yield folder


@contextmanager
def folder_in(place: str) -> Iterator[str]:
    """Create a directory, and remove it with its contents at the end."""
    folder = tempfile.mkdtemp(prefix=".asyncdump-bench-", dir=place)
    # Retry: a process that was killed together with this one may still be creating its last file.
    with _kept("got=", f"for _ in 1 2 3 4 5 6 7 8 9; do rm -rf {shlex.quote(folder)} && break; sleep 1; done"):
        yield folder
