"""What is written down: everything as JSON, the medians and ratios as tables."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.cases import Measurement, Results
from tests.benchmarks.peers import PEERS, REPOSITORY, SEARCH, Peer
from tests.benchmarks.ratios import Spread, paired, spread

MIB = 1024 * 1024
STEPS = {"copy": "into an empty folder", "again": "again, nothing changed", "resume": "the second run"}
#: Each tool is compared with ftx run alike: encrypted or not.
ENCRYPTED_BASE, PLAIN_BASE = "ftx", "ftx --plain"


@dataclass(frozen=True, slots=True)
class Row:
    """A tool in one table.

    Attributes:
        seconds: of its runs.
        ratio: to ftx run alike, round by round; above 1: ftx was faster. None: that did not run.
    """

    peer: Peer
    seconds: Spread
    ratio: Spread | None
    cpu_s: float
    wire_bytes: float


def rows(measurements: Sequence[Measurement], case: str, step: str) -> list[Row]:
    """The table of a case and step, fastest first."""
    runs: dict[str, dict[int, Measurement]] = defaultdict(dict)
    for each in measurements:
        if (each.case, each.step) == (case, step):
            runs[each.peer][each.round] = each
    found = []
    for peer in PEERS:
        if mine := runs.get(peer.name):
            base = runs.get(ENCRYPTED_BASE if peer.encrypted else PLAIN_BASE, {})
            ratios = paired(*({number: run.seconds for number, run in each.items()} for each in (mine, base)))
            found.append(
                Row(
                    peer,
                    spread([run.seconds for run in mine.values()]),
                    spread(ratios) if ratios else None,
                    spread([run.cpu_s for run in mine.values()]).median,
                    spread([run.wire_bytes for run in mine.values()]).median,
                )
            )
    return sorted(found, key=lambda row: row.seconds.median)


def tables(results: Results) -> Iterator[tuple[str, str]]:
    """Each case and step that was measured, in order."""
    yield from dict.fromkeys((each.case, each.step) for each in results.measurements)


def first_line(command: Sequence[str]) -> str:
    """What a program says of its version."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": SEARCH, "PYTHONPATH": str(REPOSITORY)}
    )
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if re.search(r"\d\.\d", line)), "unknown")


def environment(peers: Sequence[Peer]) -> dict[str, object]:
    """What the figures depend on."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / MIB) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {peer.name: first_line(peer.version) for peer in peers},
    }


def write(results: Results, out: Path) -> None:
    """``results.json`` and ``results.md``."""
    (out / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    (out / "results.md").write_text(markdown(results))


def markdown(results: Results) -> str:
    """The tables, for people."""
    around = results.environment
    parts = [
        "# ftx beside its peers",
        f"{around['cpu']}, {around['cores']} cores, Linux {around['kernel']}, Python {around['python']}, "
        f"{around['date']}. Source and destination in memory. Seconds of the whole sending process: the median, and "
        "the least and the most. The ratio is that to ftx of the same round, encrypted to encrypted and plain to "
        "plain; above 1 ftx is faster. Every copy was compared with its source.",
    ]
    parts += ["## At a glance", summary(results)]
    parts += [_listed(around["material"])]
    if results.yardsticks:
        parts += ["## The links", _yardsticks(results)]
    for case, step in tables(results):
        parts += [f"## {case}: {STEPS[step]}", _table(rows(results.measurements, case, step), _out_of(results, case))]
    parts += ["## Memory of ftx", _memory(results)]
    if results.left_out:
        parts += ["## Left out", "\n".join(f"- {who}: {why}" for who, why in results.left_out.items())]
    if results.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in results.notes)]
    parts += ["## Versions", _listed(around["versions"])]
    parts += ["## Command lines", "OWN is a folder of each tool's own, SOURCE the file or tree."]
    parts += ["\n".join(f"    {line}" for lines in results.commands.values() for line in lines)]
    return "\n\n".join(parts) + "\n"


def summary(results: Results) -> str:
    """One table of everything: the seconds of ftx, and of the others the ratio; who failed or was stopped is out."""
    shown = [peer for peer in PEERS if any(each.peer == peer.name for each in results.measurements)]
    bases = [peer for peer in shown if peer.name in (ENCRYPTED_BASE, PLAIN_BASE)]
    others = sorted((peer for peer in shown if peer not in bases), key=lambda peer: not peer.encrypted)
    heads = [f"{peer.name}, s" for peer in bases]
    heads += [peer.name if peer.encrypted else f"{peer.name} (plain)" for peer in others]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(shown) + 1) + "|"]
    for case, step in tables(results):
        table = {row.peer.name: row for row in rows(results.measurements, case, step)}
        cells = [f"{table[peer.name].seconds.median:.2f}" if peer.name in table else "" for peer in bases]
        for peer in others:
            row = table.get(peer.name)
            gone = "out" if peer.name in _out_of(results, case) else ""
            cells.append(f"{row.ratio.median:.2f}×" if row and row.ratio else gone)
        lines.append(f"| {case}{'' if step == 'copy' else f', {step}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _listed(what: object) -> str:
    assert isinstance(what, dict)
    return "\n".join(f"- {name}: {text}" for name, text in what.items())


def _out_of(results: Results, case: str) -> dict[str, str]:
    """Who is left out of a case, and why."""
    found = ((who.removesuffix(f", {case}"), why) for who, why in results.left_out.items() if who.endswith(f", {case}"))
    return dict(found)


def _table(found: list[Row], out: dict[str, str]) -> str:
    lines = ["| | | seconds | ratio | sender's CPU s | MB on the wire |", "|---|---|---|---|---|---|"]
    for row in found:
        kind = "encrypted" if row.peer.encrypted else "plain"
        ratio = f"**{row.ratio.median:.2f}** ({row.ratio.least:.2f}–{row.ratio.most:.2f})" if row.ratio else ""
        lines.append(
            f"| {row.peer.name} | {kind} | {_seconds(row.seconds)} | {ratio} | {row.cpu_s:.2f} "
            f"| {row.wire_bytes / 1e6:.1f} |"
        )
    lines += [f"| {name} | | {why.partition(';')[0]} | | | |" for name, why in out.items()]
    return "\n".join(lines)


def _seconds(values: Spread) -> str:
    return f"{values.median:.2f} ({values.least:.2f}–{values.most:.2f})"


def _yardsticks(results: Results) -> str:
    lines = ["| link | iperf3, Mbit/s with so many connections |", "|---|---|"]
    for link, found in results.yardsticks.items():
        lines.append(f"| {link} | {', '.join(f'{streams}: {mbit:.0f}' for streams, mbit in found.items())} |")
    return "\n".join(lines)


def _memory(results: Results) -> str:
    """The peaks of ftx, over all rounds of a case."""
    peaks: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for each in results.measurements:
        if each.peer in (ENCRYPTED_BASE, PLAIN_BASE):
            peaks[each.case, each.peer].append((each.sender_peak, each.receiver_peak))
    lines = ["| | | sender MiB | receiver MiB |", "|---|---|---|---|"]
    for (case, peer), found in peaks.items():
        sender, receiver = (max(each) // MIB for each in zip(*found, strict=True))
        lines.append(f"| {case} | {peer} | {sender} | {receiver} |")
    return "\n".join(lines)
