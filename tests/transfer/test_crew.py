"""A session's threads: one stops all, and all have left before anything is taken from under them."""

from __future__ import annotations

import threading

import pytest

from ftx.errors import Leaving, LinkLost
from ftx.transfer.crew import Crew

LEAVE_S = 5.0


def test_all_have_left_behind_the_block_those_that_joined_too() -> None:
    """A thread that the crew did not start works in it like the others."""
    left: list[str] = []
    stopped, working = threading.Event(), threading.Event()

    def work() -> None:
        working.set()
        stopped.wait()
        left.append("worker")

    crew = Crew("test", LEAVE_S, stopped.set, lambda: left.append("cleared up"))
    joined = threading.Thread(target=crew.run, args=("joined", work))
    with crew:
        joined.start()
        working.wait()
    assert left == ["worker", "cleared up"]
    joined.join()


def test_who_is_stuck_clears_up_when_it_leaves() -> None:
    left: list[str] = []
    let_go = threading.Event()

    def stuck() -> None:
        let_go.wait()
        left.append("stuck")

    with Crew("test", 0.01, lambda: None, lambda: left.append("cleared up")) as crew:
        thread = threading.Thread(target=crew.run, args=("stuck", stuck))
        thread.start()
        while not crew._working:
            pass
    assert left == []
    let_go.set()
    thread.join()
    assert left == ["stuck", "cleared up"]


def test_who_comes_when_the_crew_is_leaving_does_nothing() -> None:
    done: list[str] = []
    with Crew("test", LEAVE_S, lambda: None) as crew:
        pass
    crew.run("late", lambda: done.append("late"))
    assert done == []


def test_g11_a_machine_without_threads_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """And may have some a moment later."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(Leaving, match="no thread left") as caught, Crew("test", LEAVE_S, lambda: None) as crew:
        crew.start("first", lambda: None)
    assert caught.value.retry


def test_the_nearest_to_the_cause_is_raised() -> None:
    with pytest.raises(Leaving), Crew("test", LEAVE_S, lambda: None) as crew:
        crew.fail(LinkLost("evidence"))
        crew.fail(Leaving("the cause"))
        crew.wait(LEAVE_S)
