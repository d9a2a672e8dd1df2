"""How long does it take to dump huge pages with compression, and how large are the dumps?"""

from __future__ import annotations

import os
import shlex
from statistics import median

import click

from bench import peers
from bench.host import header
from bench.options import WARM, common, workplace
from bench.rounds import Peer, Runs, run_rounds
from bench.sources import Sources, huge_files
from bench.table import GIB, MIB, Bar, Median, Outcome


@click.command()
@click.option("--level", type=int, multiple=True, default=(1, 3), show_default=True)
@common(rounds=5)
def zstd(level: tuple[int, ...], rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """asyncdump --compress zstd compared with xargs zstd and zstd -T0: 256 files of 8 MiB, one of 2 GiB; durable."""
    outcome = Outcome("zstd", header(dest, WARM), text=["", *NOTES])
    with workplace(dest, settle) as (place, scratch):
        for files, mib, limit in ((256, 8, 1.6), (1, 2048, 1.3)):
            with huge_files(files, mib, zeros=40, structured=40) as sources:
                manifest = peers.write_manifest(scratch, sources)
                for number in level:
                    lineup = [
                        _ours(f"asyncdump zstd:{number}", manifest, sources, number),
                        _ours(
                            f"asyncdump zstd:{number}, fed by splice", manifest, sources, number, "--method", "splice"
                        ),
                        _theirs(sources, number, many=files > 1),
                    ]
                    runs = run_rounds(lineup, place, rounds)
                    title = f"{sources.title}, level {number}"
                    outcome.add_runs(title, runs, sources.bytes, (lineup[-1].name,))
                    outcome.bars += _bars(title, runs, [peer.name for peer in lineup], limit)
    outcome.show(json_file)


NOTES = (
    "xargs: printf '%s\\0' * | xargs -0 -P<cores> -I{} zstd -q -<level> {} -o ... && sync",
    "zstd: zstd -q -T0 -<level> FILE -o ... && sync",
)


def _ours(name: str, manifest: str, sources: Sources, level: int, *options: str) -> Peer:
    peer = peers.asyncdump(name, manifest, sources, ["--compress", f"zstd:{level}", *options])
    return Peer(name=peer.name, command=peer.command, bytes=1)


def _theirs(sources: Sources, level: int, *, many: bool) -> Peer:
    cores = len(os.sched_getaffinity(0))
    one = f"zstd -q -{level} {{}} -o {{out}}/{{}}.zst"

    def command(folder: str) -> list[str]:
        out = shlex.quote(folder)
        if many:
            line = rf"printf '%s\0' * | xargs -0 -P{cores} -I{{}} {one.replace('{out}', out)}"
        else:
            line = f"zstd -q -T0 -{level} * -o {out}/out.zst"
        return ["sh", "-c", f"cd {shlex.quote(sources.folder)} && {line} && sync"]

    return Peer(name=f"xargs -P{cores} zstd -{level}" if many else f"zstd -T0 -{level}", command=command, bytes=1)


def _bars(title: str, runs: Runs, names: list[str], limit: float) -> list[Bar]:
    ours, fed, theirs = (Median.of(runs[name]) for name in names)
    sizes = {name: median(run.written for run in runs[name]) for name in names}
    return [
        Bar(what=f"{title}: throughput against {names[2]}", value=theirs.wall / ours.wall, limit=limit),
        Bar(what=f"{title}: read against splice as the feed", value=fed.wall / ours.wall, limit=0),
        Bar(
            what=f"{title}: output size compared with theirs ({sizes[names[0]] / GIB:.3f} GiB)",
            value=sizes[names[0]] / sizes[names[2]],
            limit=1.02,
            at_least=False,
        ),
        Bar(what=f"{title}: peak memory", value=ours.rss / MIB, limit=200, at_least=False, unit="MiB"),
    ]
