"""The ratios as horizontal bars. Takes matplotlib (the extra ``bench``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.cases import Results
from tests.benchmarks.peers import Peer
from tests.benchmarks.report import ENCRYPTED_BASE, PLAIN_BASE, Row, rows

#: What is drawn, of what was measured.
PANELS = {
    ("loopback/big", "copy"): "1 file, loopback",
    ("loopback/big-resume-50", "resume"): "its second half after a crash, loopback",
    ("loopback/small", "copy"): "small files, loopback",
    ("loopback/small", "again"): "small files, nothing changed",
    ("wan-cubic/medium", "copy"): "1 file, 80 ms, 200 Mbit/s",
    ("wan-cubic-lossy/medium", "copy"): "1 file, 80 ms, 0.5 % loss",
    ("wan-cubic/small", "copy"): "small files, 80 ms",
    ("wan-cubic/small", "again"): "small files, 80 ms, nothing changed",
}
COLUMNS = 2
ENCRYPTED, PLAIN = "#4c8fd6", "#d6904c"
#: Grey that can be read on white and on black.
INK = "#7f868e"


def draw(results: Results, out: Path) -> bool:
    """Write ``results.svg``; false if none of the panels was measured.

    Raises:
        ImportError: no matplotlib.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    found = {title: bars(rows(results.measurements, *what)) for what, title in PANELS.items()}
    found = {title: table for title, table in found.items() if table}
    if not found:
        return False
    style = {
        "svg.fonttype": "none",  # text stays text, and the file small
        "svg.hashsalt": "ftx",
        "font.size": 8,
        "axes.edgecolor": INK,
        **{key: INK for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")},
    }
    with pyplot.rc_context(style):
        lines = -(-len(found) // COLUMNS)
        figure, axes = pyplot.subplots(lines, COLUMNS, figsize=(9, 2.1 * lines), squeeze=False)
        for panel in axes.flat[len(found) :]:
            panel.remove()
        most = max(map(len, found.values()))
        for panel, (title, table) in zip(axes.flat, found.items(), strict=False):
            _panel(panel, title, table, most)
        figure.suptitle(
            "Time of each tool ÷ time of ftx in the same round. Right of the line ftx is faster.\n"
            "Blue: encrypted, beside ftx. Orange: not encrypted, beside ftx --plain."
        )
        figure.tight_layout()
        figure.savefig(out / "results.svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    return True


def bars(table: list[Row]) -> list[tuple[Peer, float]]:
    """The others and their ratios: first the encrypted ones, the slowest above."""
    found = [
        (row.peer, row.ratio.median) for row in table if row.ratio and row.peer.name not in (ENCRYPTED_BASE, PLAIN_BASE)
    ]
    return sorted(found, key=lambda each: (not each[0].encrypted, -each[1]))


def _panel(panel: Any, title: str, table: list[tuple[Peer, float]], most: int) -> None:
    names = [peer.name for peer, _ in table]
    ratios = [ratio for _, ratio in table]
    colours = [ENCRYPTED if peer.encrypted else PLAIN for peer, _ in table]
    panel.barh(names, [ratio - 1 for ratio in ratios], left=1, color=colours)
    panel.set_ylim(most - 0.4, -0.6)  # bars of one height everywhere
    panel.set_xscale("log")
    panel.set_xlim(min([0.3, *ratios]) / 2.5, max([3, *ratios]) * 2)  # room for the figures
    panel.vlines(1, -0.6, len(table) - 0.4, color=INK, linewidth=1)
    for place, ratio in enumerate(ratios):
        side = "left" if ratio >= 1 else "right"
        panel.annotate(f" {ratio:.2g}× ", (ratio, place), ha=side, va="center", fontsize=7)
    panel.set_title(title, fontsize=9)
    panel.set_xticks([])
    panel.minorticks_off()
    for edge in ("top", "right", "bottom", "left"):
        panel.spines[edge].set_visible(False)
    panel.tick_params(left=False)
