"""How long does it take to get huge pages to disk compressed, and how large are they then?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import click

from bench import peers
from bench.host import header
from bench.options import WARM, common, workplace
from bench.rounds import Peer, Runs, run_rounds
from bench.sources import Sources, huge_files
from bench.table import GIB, MIB, Bar, Median, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """The program of a codec, for many files and for one, and how many times as fast asyncdump has to be."""

    many: str
    one: str
    many_limit: float
    one_limit: float


ZSTD = Rival(many="zstd -q -{level}", one="zstd -q -T0 -{level}", many_limit=1.6, one_limit=1.3)
LZ4 = Rival(many="lz4 -q -{level}", one="lz4 -q -{level}", many_limit=1.3, one_limit=1.3)


@click.command()
@click.option("--level", type=int, multiple=True, default=(1, 3), show_default=True)
@common(rounds=5)
def zstd(level: tuple[int, ...], rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """asyncdump --compress zstd compared with xargs zstd and zstd -T0: 256 files of 8 MiB, one of 2 GiB; durable."""
    _compare("zstd", ZSTD, level, rounds, dest, settle, json_file)


@click.command()
@click.option("--level", type=int, multiple=True, default=(1,), show_default=True)
@common(rounds=5)
def lz4(level: tuple[int, ...], rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """asyncdump --compress lz4 compared with xargs lz4, with zstd:1 and with raw dumps of the same files; durable."""
    _compare("lz4", LZ4, level, rounds, dest, settle, json_file, others=("zstd:1", "none"))


def _compare(
    codec: str,
    rival: Rival,
    levels: Sequence[int],
    rounds: int,
    dest: str,
    settle: float,
    json_file: str | None,
    *,
    others: Sequence[str] = (),
) -> None:
    cores = len(os.sched_getaffinity(0))
    notes = (
        f"xargs: printf '%s\\0' * | xargs -0 -P{cores} -I{{}} {rival.many.format(level='<level>')} {{}} OUT && sync",
        f"{codec}: {rival.one.format(level='<level>')} FILE OUT && sync",
    )
    outcome = Outcome(codec, header(dest, WARM), text=["", *notes])
    with workplace(dest, settle) as (place, scratch):
        for files, mib in ((256, 8), (1, 2048)):
            with huge_files(files, mib, zeros=40, structured=40) as sources:
                manifest = peers.write_manifest(scratch, sources)
                for level in levels:
                    how = f"{codec}:{level}"
                    lineup = [
                        _ours(f"asyncdump {how}", manifest, sources, how),
                        _ours(f"asyncdump {how}, fed by splice", manifest, sources, how, "--method", "splice"),
                        _theirs(codec, rival, level, sources, many=files > 1),
                        *(_ours(f"asyncdump {other}", manifest, sources, other) for other in others),
                    ]
                    runs = run_rounds(lineup, place, rounds)
                    title = f"{sources.title}, level {level}"
                    outcome.add_runs(title, runs, sources.bytes, (lineup[2].name,))
                    limit = rival.many_limit if files > 1 else rival.one_limit
                    outcome.bars += _bars(title, runs, [peer.name for peer in lineup[:3]], limit)
    outcome.show(json_file)


def _ours(name: str, manifest: str, sources: Sources, compress: str, *options: str) -> Peer:
    peer = peers.asyncdump(name, manifest, sources, ["--compress", compress, *options])
    return Peer(name=peer.name, command=peer.command, bytes=1)


def _theirs(codec: str, rival: Rival, level: int, sources: Sources, *, many: bool) -> Peer:
    cores = len(os.sched_getaffinity(0))
    program = (rival.many if many else rival.one).format(level=level)
    output = "-o " if codec == "zstd" else ""  # lz4 takes its output as the second file.

    def command(folder: str) -> list[str]:
        out = shlex.quote(folder)
        if many:
            line = rf"printf '%s\0' * | xargs -0 -P{cores} -I{{}} {program} {{}} {output}{out}/{{}}.{codec}"
        else:
            line = f"{program} * {output}{out}/out.{codec}"
        return ["sh", "-c", f"cd {shlex.quote(sources.folder)} && {line} && sync"]

    name = program.replace(" -q", "")
    return Peer(name=f"xargs -P{cores} {name}" if many else name, command=command, bytes=1)


def _bars(title: str, runs: Runs, names: list[str], limit: float) -> list[Bar]:
    ours, fed, theirs = (Median.of(runs[name]) for name in names)
    sizes = {name: median(run.written for run in runs[name]) for name in names}
    return [
        Bar(what=f"{title}: throughput against {names[2]}", value=theirs.wall / ours.wall, limit=limit),
        Bar(what=f"{title}: read against splice as the feed", value=fed.wall / ours.wall, limit=0),
        Bar(
            what=f"{title}: output against theirs ({sizes[names[0]] / GIB:.3f} GiB)",
            value=sizes[names[0]] / sizes[names[2]],
            limit=1.02,
            at_least=False,
        ),
        Bar(what=f"{title}: peak memory", value=ours.rss / MIB, limit=200, at_least=False, unit="MiB"),
    ]
