"""The end of a pool of threads, awaited; and what comes after it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


async def end(executor: ThreadPoolExecutor) -> None:
    """Shut an executor down and return when its threads have ended; joining them would block the loop.

    What they use is given back after this and not before: a caller that was cancelled has left its work running.
    """
    await alone(executor.shutdown)


async def alone(function: Callable[[], object]) -> None:
    """Run what blocks on a thread of its own, and return, or raise, what became of it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            function()
        except BaseException as error:
            loop.call_soon_threadsafe(ended.set_exception, error)
        else:
            loop.call_soon_threadsafe(ended.set_result, None)

    threading.Thread(target=run, name="archive-end", daemon=True).start()
    await ended
