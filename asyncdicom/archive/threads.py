"""What is under way on threads, awaited to its end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from anyio import CancelScope

_log = logging.getLogger(__name__)

T = TypeVar("T")


async def end(executor: ThreadPoolExecutor) -> None:
    """Shut an executor down and return when its threads have ended; joining them would block the loop."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def join() -> None:
        executor.shutdown(wait=True)
        loop.call_soon_threadsafe(ended.set_result, None)

    threading.Thread(target=join, name="archive-end", daemon=True).start()
    await ended


async def to_its_end(work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
    """Await what must not be left halfway: when the caller is cancelled, that is raised after the end.

    A shielded scope is not enough: it stops anyio's cancellation, and not that of asyncio.
    """
    task = work if isinstance(work, asyncio.Task) else asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError:
                    # Cancelled again; it is raised below.
                    continue
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("what a cancelled caller began has failed: %s", type(error).__name__)
        raise
