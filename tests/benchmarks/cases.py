"""What is measured where, and the rounds of one case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.contest import Contestant
from tests.benchmarks.material import Material
from tests.benchmarks.peers import REPOSITORY, Peer
from tests.benchmarks.places import Place, Shape
from tests.benchmarks.processes import Failed, Run

LOOPBACK = "loopback"
#: The wide-area links: 80 ms and 200 Mbit/s, with and without loss.
LINKS = {
    f"wan-{congestion}{'-lossy' if loss else ''}": Shape(loss, congestion)
    for congestion in ("cubic", "bbr")
    for loss in (0, 0.5)
}


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent where.

    Attributes:
        material: a name that ``material.make`` knows.
        resume_at: both sides are killed when this part of the file has passed, and the second run is timed; None:
            the first run is timed, and then the same again with nothing changed.
    """

    place: str
    material: str
    resume_at: float | None = None

    @property
    def name(self) -> str:
        at = "" if self.resume_at is None else f"-resume-{self.resume_at:.0%}".rstrip("%")
        return f"{self.place}/{self.material}{at}"


CASES = (
    Case(LOOPBACK, "byte"),
    Case(LOOPBACK, "big"),
    Case(LOOPBACK, "big", 0.5),
    Case(LOOPBACK, "big", 0.9),
    Case(LOOPBACK, "small"),
    Case(LOOPBACK, "mixed"),
    *(Case(link, material) for link in LINKS for material in ("medium", "small")),
)
#: With an option only, since it takes a minute for every tool and round.
LONG_CASES = tuple(Case(link, "big") for link in LINKS)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One timed run.

    Attributes:
        step: ``copy``, ``again`` or ``resume``.
        receiver_peak: of tools with a single server process that has done it all; 0 otherwise.
        wire_bytes: with TCP/IP headers; on loopback both ways.
    """

    case: str
    step: str
    peer: str
    round: int
    seconds: float
    cpu_s: float
    sender_peak: int
    receiver_peak: int
    wire_bytes: int


@dataclass(slots=True)
class Results:
    """All that was found out.

    Attributes:
        left_out: what took no part, or no part any more, and why.
        notes: what a tool did not carry, and other things a reader should know.
        yardsticks: link -> streams -> Mbit/s of iperf3.
        commands: tool -> command lines.
    """

    environment: dict[str, object] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    yardsticks: dict[str, dict[int, float]] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def takes_part(peer: Peer, case: Case) -> bool:
    """Whether a tool has anything to do in a case."""
    if case.resume_at is not None:
        return peer.resume is not None
    return peer.only != "resume" and (peer.only != LOOPBACK or case.place == LOOPBACK)


@dataclass(frozen=True, slots=True)
class Contest:
    """How a case is run: who, how often, and where its folders are."""

    peers: Sequence[Peer]
    rounds: int
    patience_s: float
    folder: Path
    tell: Callable[[str], object]

    def run(self, case: Case, place: Place, material: Material, results: Results) -> None:
        """All rounds of a case; the first is a warm-up. Who fails is out of the case, and the reason is kept."""
        with ExitStack() as opened:
            contestants: list[Contestant] = []

            def out(peer: Peer, why: Failed) -> None:
                results.left_out[f"{peer.name}, {case.name}"] = self._neutral(str(why))
                self.tell(f"{case.name}: {peer.name}: {why}")

            for number, peer in enumerate(self.peers):
                if takes_part(peer, case):
                    entrant = Contestant(peer, place, self.folder / f"peer{number}", self.patience_s)
                    try:
                        contestants.append(opened.enter_context(entrant))
                    except Failed as why:
                        out(peer, why)
            for number in range(self.rounds + 1):
                first = number % max(1, len(contestants))  # who comes after whom changes
                for contestant in contestants[first:] + contestants[:first]:
                    try:
                        found = _round(contestant, case, number, material, results)
                    except Failed as why:
                        out(contestant.peer, why)
                        contestant.close()
                        contestants.remove(contestant)
                        continue
                    if number:
                        results.measurements += found
                    else:
                        self._keep_commands(contestant, results)
                self.tell(f"{case.name}: {f'round {number} of {self.rounds}' if number else 'warm-up'} done")

    def _keep_commands(self, contestant: Contestant, results: Results) -> None:
        lines = results.commands.setdefault(contestant.peer.name, [])
        lines += [line for line in contestant.commands if line not in lines]

    def _neutral(self, text: str) -> str:
        """Without the names of folders of this run."""
        return text.replace(str(self.folder), "WORK").replace(str(REPOSITORY), "REPOSITORY")


def _round(contestant: Contestant, case: Case, number: int, material: Material, results: Results) -> list[Measurement]:
    """One tool's part in a round: copied, judged, and cleared away."""
    peer, found = contestant.peer, []

    def measured(step: str, run: Run, wire_bytes: int) -> None:
        verdict = contestant.verdict(material)
        if verdict.not_carried:
            results.note(f"{peer.name}: {len(verdict.not_carried)} links and empty folders of {material.name!r} differ")
        found.append(
            Measurement(
                *(case.name, step, peer.name, number, run.seconds, run.cpu_s),
                *(run.peak, contestant.receiver_peak, wire_bytes),
            )
        )

    contestant.clear()
    if case.resume_at is not None:
        contestant.crash(material.path, int(material.size * case.resume_at))
        measured("resume", *contestant.resume(material.path))
    else:
        measured("copy", *contestant.copy(material.path))
        if peer.again:
            measured("again", *contestant.again(material.path))
    contestant.clear()
    return found
