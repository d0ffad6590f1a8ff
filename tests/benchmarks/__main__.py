"""`python -m tests.benchmarks`: measure, and write the results down."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from tests.benchmarks import material, picture, report
from tests.benchmarks.cases import CASES, LINKS, LONG_CASES, LOOPBACK, Case, Contest, Results
from tests.benchmarks.material import QUICK, Material, Sizes
from tests.benchmarks.peers import PEERS, Peer, find
from tests.benchmarks.places import Place, loopback, wide_area, yardstick
from tests.support.wanlink import Unavailable

MEMORY = Path("/dev/shm")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure ftx beside its peers.")
    names = ", ".join(case.name for case in (*CASES, *LONG_CASES))
    parser.add_argument("--case", action="append", metavar="PATTERN", help=f"only these, * and ? allowed: {names}")
    usual, peers = Sizes(), ", ".join(peer.name for peer in PEERS)
    parser.add_argument("--peer", action="append", metavar="NAME", help=f"only these, and ftx: {peers}")
    parser.add_argument("--rounds", type=int, help="measured rounds, after one warm-up (5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round, to try it")
    parser.add_argument("--big", type=int, metavar="BYTES", help=f"the big file ({usual.big})")
    parser.add_argument("--medium", type=int, metavar="BYTES", help=f"the file for the links ({usual.medium})")
    parser.add_argument("--files", type=int, metavar="N", help=f"small files ({usual.files})")
    parser.add_argument("--mixed", type=int, metavar="BYTES", help=f"the mixed tree ({usual.mixed})")
    parser.add_argument("--long", action="store_true", help="send the big file over the links as well")
    parser.add_argument("--patience", type=float, default=60, metavar="SECONDS", help="stop what takes longer (60)")
    parser.add_argument("--work", type=Path, metavar="DIR", help=f"for sources and copies ({MEMORY} if there is room)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the results (a new temporary folder)")
    return parser.parse_args(arguments)


def chosen_sizes(given: argparse.Namespace) -> Sizes:
    sizes = QUICK if given.quick else Sizes()
    own = {name: getattr(given, name) for name in ("big", "medium", "files", "mixed")}
    return replace(sizes, **{name: value for name, value in own.items() if value is not None})


def chosen_peers(given: argparse.Namespace, results: Results) -> list[Peer]:
    """Those that are wanted and here, and ftx in any case; the others are named in the results."""
    wanted = [peer for peer in PEERS if not given.peer or peer.name in given.peer or peer.name.startswith("ftx")]
    for peer in wanted:
        if missing := peer.missing():
            results.left_out[peer.name] = f"not installed: {', '.join(missing)}"
    return [peer for peer in wanted if not peer.missing()]


def chosen_cases(given: argparse.Namespace) -> list[Case]:
    all_cases = (*CASES, *(LONG_CASES if given.long else ()))
    return [case for case in all_cases if not given.case or any(fnmatch(case.name, each) for each in given.case)]


def work_folder(given: argparse.Namespace, sizes: Sizes) -> Path:
    """A new folder for sources and one copy, in memory if it has room for them."""
    needed = 3 * (sizes.big + sizes.mixed + sizes.files * 12_000)
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > needed
    return Path(tempfile.mkdtemp(prefix="ftx-bench-", dir=given.work or (MEMORY if in_memory else None)))


def place_of(name: str) -> AbstractContextManager[Place]:
    return loopback() if name == LOOPBACK else wide_area(LINKS[name])


def measure(contest: Contest, cases: Iterable[Case], sizes: Sizes, results: Results) -> None:
    """All cases, place by place."""
    sources = contest.folder / "sources"
    sources.mkdir()
    made: dict[str, Material] = {}
    by_place: dict[str, list[Case]] = {}
    for case in cases:
        by_place.setdefault(case.place, []).append(case)
    for name, here in by_place.items():
        try:
            with place_of(name) as place:
                if place.note:
                    results.note(place.note)
                if name != LOOPBACK and find("iperf3"):
                    results.yardsticks[name] = {streams: yardstick(place, streams) for streams in (8, 1)}
                for case in here:
                    if case.material not in made:
                        made[case.material] = material.make(sources, sizes, case.material)
                    contest.run(case, place, made[case.material], results)
        except Unavailable as why:
            results.left_out[name] = str(why)
            contest.tell(f"{name}: left out: {why}")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure and write; also when it is broken off. The folder of the results."""
    given = options(arguments)
    results, sizes = Results(), chosen_sizes(given)
    peers = chosen_peers(given, results)
    results.environment = report.environment(peers) | {"material": material.titles(sizes)}
    out = given.out or Path(tempfile.mkdtemp(prefix="ftx-results-"))
    out.mkdir(parents=True, exist_ok=True)
    work = work_folder(given, sizes)
    rounds = given.rounds or (1 if given.quick else 5)
    try:
        measure(Contest(peers, rounds, given.patience, work, tell), chosen_cases(given), sizes, results)
    finally:
        shutil.rmtree(work)
        try:
            picture.draw(results, out)
        except ImportError:
            results.note("no picture: matplotlib is not installed")
        report.write(results, out)
    return out


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        print(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
