"""What holds for every test: one backend, an event loop that never blocks, no leaks, and peers that are really there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import blockbuster
import pytest

from asyncdicom.association.workers import workers

# `pytest` alone, unlike `python -m pytest`, does not make the package of the peers importable.
_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

from tests.peers import running  # noqa: E402 - importable from here on only

pytest_plugins = ["tests.peers.fixtures"]

_SETTLE_DEADLINE = 5.0


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach the programs under test, also where a shell without job control started the tests ignoring it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long forms to ``make soak``: they run only when they are asked for by mark."""
    if "soak" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Publish what tests recorded of their trials: that nothing failed says little without how often it was tried."""
    for report in terminalreporter.getreports("passed"):
        for name, what in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {name}: {what}")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio is the backend of the project, so it is the only one in tests."""
    return "asyncio"


@pytest.fixture(autouse=True)
def event_loop_never_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fail a test in which anything blocks the event loop; ``@pytest.mark.blocking`` exempts one.

    :return: what has blocked so far
    """
    blocked: list[str] = []
    if request.node.get_closest_marker("blocking"):
        yield blocked
        return

    class Recorded(blockbuster.BlockingError):
        def __init__(self, function: str) -> None:
            super().__init__(function)
            blocked.append(function)

    # The error alone is not enough: code that must survive any exception of a handler or a peer would swallow it.
    monkeypatch.setattr(blockbuster.blockbuster, "BlockingError", Recorded)
    guard = blockbuster.BlockBuster()
    for name in ("os.listdir", "os.readlink"):
        guard.functions[name].can_block_in("tests/conftest.py", "_descriptors")
    # Where log records go, and how slowly, is decided by whoever installs the handlers; the service's own never block.
    for name in ("io.TextIOWrapper.write", "io.BufferedWriter.write"):
        if name in guard.functions:
            guard.functions[name].can_block_in("logging/__init__.py", "emit")
    # On a file system in memory there is no device to wait for.
    for guarded in guard.functions.values():
        guarded.can_block_in("asyncdicom/archive/archive.py", {"_keep_at_once", "_do_at_once"})
    guard.activate()
    try:
        yield blocked
    finally:
        guard.deactivate()
    if blocked:
        pytest.fail(f"the event loop was blocked by {', '.join(sorted(set(blocked)))}", pytrace=False)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that returns a TCP port of 127.0.0.1 on which nothing listens; for programs that cannot bind port 0."""
    return running.free_port


class Baseline:
    """What this process holds at one moment: tasks, threads and descriptors."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()

    def leaks(self) -> list[str]:
        """What is held now and was not then, in words."""
        tasks = {task for task in asyncio.all_tasks() if not _runs_tests(task)} - self._tasks
        threads = {thread for thread in threading.enumerate() if not _is_pooled(thread)} - self._threads
        descriptors = _descriptors().items() - self._descriptors.items()
        busy = workers().busy
        return [
            *([f"{busy} calls of pynetdicom under way"] if busy else []),
            *(f"task {task.get_name()}: {task.get_coro()}" for task in tasks),
            *(f"thread {thread.name}" for thread in threads),
            *(f"descriptor {number}: {what}" for number, what in sorted(descriptors)),
        ]

    async def settle(self, deadline: float = _SETTLE_DEADLINE) -> None:
        """Return once nothing more is held than then.

        :param deadline: seconds until what is left counts as leaked
        """
        end = time.monotonic() + deadline
        while leaks := self.leaks():
            if time.monotonic() > end:
                pytest.fail("leaked:\n  " + "\n  ".join(leaks), pytrace=False)
            await anyio.sleep(0.01)


@pytest.fixture
async def no_leaks() -> AsyncIterator[Baseline]:
    """Fail a test that leaves tasks, threads or descriptors behind. Name it first, so that it looks last.

    :return: the baseline, for tests that want to settle in between
    """
    baseline = Baseline()
    yield baseline
    await baseline.settle()


def _descriptors() -> dict[int, str]:
    """The open descriptors, each with what it stands for."""
    descriptors = {}
    # No disk is behind it; a Path of Python 3.13 looks into folders by what is taken for a blocking call.
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):  # the one that listed the folder
            descriptors[int(number)] = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
    return descriptors


def _runs_tests(task: asyncio.Task[object]) -> bool:
    """Whether a task is anyio's own call of a fixture or test."""
    return task is asyncio.current_task() or "TestRunner." in str(getattr(task.get_coro(), "__qualname__", ""))


def _is_pooled(thread: threading.Thread) -> bool:
    """Whether a thread waits in a pool that outlives what it works for; those at work are counted by themselves."""
    return thread.name.startswith(("AnyIO worker thread", "asyncio_", "asyncdicom-bridge", "asyncdicom-resolve"))
