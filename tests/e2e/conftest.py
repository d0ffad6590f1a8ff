"""Most of these tests start processes of ftx."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _many_processes(nursery: None) -> None:
    """Start them where Python has been loaded already."""
