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
from pathlib import Path

import pytest

from tests.support.nursery import Nursery

TIMEOUT_S = 60
LONG_TIMEOUT_S = 600
#: How long a thread that was told to end may take, before it counts as a leak.
SETTLE_S = 8.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout_s(seconds): a hang of this test fails it after so long")


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
    with Nursery.open():
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
