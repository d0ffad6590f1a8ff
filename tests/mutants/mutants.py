"""The guards, what replaces each, and the test that must notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One guard taken away.

    Attributes:
        name: what is missing then.
        guarantees: which of G1 to G12 the guard serves.
        file: where it stands.
        guard: its exact text, once in that file.
        instead: what stands there without it.
        test: the test that must fail.
    """

    name: str
    guarantees: tuple[str, ...]
    file: str
    guard: str
    instead: str
    test: str


MUTANTS: tuple[Mutant, ...] = ()
