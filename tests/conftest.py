"""Rules for every test: it ends in time, and leaves no thread, descriptor, process or file behind."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.nursery import Nursery
from tests.support.room import Room

TIMEOUT_S = 60
LONG_TIMEOUT_S = 600
#: What ``addopts`` chooses.
EVERYDAY = "not long"
#: Half of a test's time is spent waiting. More than some would only make each test slower than it is made for.
WORKERS = min(2 * len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 4
#: Whether this process is one of those.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
ROOM = pytest.StashKey[Room]()
#: How long a thread that was told to end may take, before it counts as a leak.
SETTLE_S = 8.0


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole everyday suite runs side by side; what was chosen by hand, and the long tests, in this process."""
    options = config.option
    whole = config.args_source is config.ArgsSource.TESTPATHS and not options.keyword and options.markexpr == EVERYDAY
    if whole and not IS_WORKER and not options.usepdb and getattr(options, "numprocesses", 0) is None:
        options.numprocesses = WORKERS
        options.dist = "worksteal"  # neighbours share what their module makes


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout_s(seconds): a hang of this test fails it after so long")
    config.addinivalue_line("markers", "alone: looks at the clock; no other test runs meanwhile")
    if IS_WORKER:
        config.stash[ROOM] = Room(Path(config.option.basetemp).parent)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IS_WORKER:
        items.sort(key=_is_alone)  # together, so that the others stand aside once


def _is_alone(item: pytest.Item | None) -> bool:
    return item is not None and item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    if not IS_WORKER:
        return (yield)
    item.config.stash[ROOM].enter(alone=_is_alone(item))
    try:
        return (yield)
    finally:
        if not (_is_alone(item) and _is_alone(nextitem)):
            item.config.stash[ROOM].leave()


def _limit_s(item: pytest.Item) -> float:
    if marker := item.get_closest_marker("timeout_s"):
        return float(marker.args[0])
    return LONG_TIMEOUT_S if item.get_closest_marker("long") else TIMEOUT_S


def _guarded(item: pytest.Item) -> Iterator[None]:
    """Fail a phase of a test that hangs, and show where each thread stands."""
    limit_s = _limit_s(item)

    def give_up(_number: int, _frame: object) -> None:
        faulthandler.dump_traceback(file=sys.__stderr__)
        pytest.fail(f"no end after {limit_s:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    return (yield from _guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    return (yield from _guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    return (yield from _guarded(item))


def _descriptors() -> dict[int, str]:
    """Open descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed them
    return found


def _children() -> set[str]:
    """Of this process, and of the one that forks for it."""
    found: set[str] = set()
    for pid in ("self", *([str(Nursery.running.pid)] if Nursery.running else [])):
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                found |= set((task / "children").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread ended meanwhile
    return found


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """A thread, descriptor or process that outlives its test fails it."""
    if not Path("/proc/self/fd").exists():
        yield
        return
    threads, descriptors, children = set(threading.enumerate()), _descriptors(), _children()
    yield
    deadline = time.monotonic() + SETTLE_S
    while True:
        new_threads = [thread.name for thread in threading.enumerate() if thread not in threads]
        new_fds = {fd: what for fd, what in _descriptors().items() if descriptors.get(fd) != what}
        new_children = _children() - children
        if not (new_threads or new_fds or new_children):
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: threads {new_threads}, descriptors {new_fds}, processes {new_children}")
        time.sleep(0.01)


@pytest.fixture(scope="session")
def nursery() -> Iterator[None]:
    """Processes of ftx start in no time. The folders that use many of them ask for it."""
    with Nursery.open() if sys.platform == "linux" else nullcontext():
        yield


@pytest.fixture
def shm() -> Iterator[Path]:
    """A folder in memory, for what must not wait for a disk."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ftx-test-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
