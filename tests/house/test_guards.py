"""The guards of tests/conftest.py themselves: a guard that never fires guards nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest


async def test_a_blocked_event_loop_is_noticed_even_when_the_error_is_swallowed(event_loop_never_blocks: list[str]) -> None:
    with contextlib.suppress(Exception):
        time.sleep(0.001)
    assert event_loop_never_blocks == ["time.sleep"]
    event_loop_never_blocks.clear()


@pytest.mark.blocking
async def test_a_test_marked_blocking_may_block() -> None:
    time.sleep(0.001)


async def test_a_task_left_behind_is_a_leak(no_leaks: Any) -> None:
    task = asyncio.create_task(asyncio.sleep(60), name="forgotten")
    assert no_leaks.leaks()[0].startswith("task forgotten")
    task.cancel()
    await asyncio.wait([task])


async def test_a_thread_left_behind_is_a_leak(no_leaks: Any) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten", daemon=True)
    thread.start()
    leaks = no_leaks.leaks()
    end.set()
    assert leaks == ["thread forgotten"]


async def test_a_descriptor_left_behind_is_a_leak(no_leaks: Any) -> None:
    forgotten = socket.socket()
    assert no_leaks.leaks()[0].startswith(f"descriptor {forgotten.fileno()}: socket:")
    forgotten.close()


async def test_the_leak_guard_gives_up_after_its_deadline(no_leaks: Any) -> None:
    forgotten = socket.socket()
    with pytest.raises(pytest.fail.Exception, match="leaked"):
        await no_leaks.settle(deadline=0.05)
    forgotten.close()


def test_a_free_port_can_be_bound(free_port: Callable[[], int]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
