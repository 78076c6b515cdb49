"""Handing work to a pool of threads, whatever the system refuses; and the end of a pool, awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# What Python says when the system gives it no thread: the limit of tasks is reached.
_NO_THREAD = "can't start new thread"


def hand(executor: ThreadPoolExecutor, function: Callable[..., object], *arguments: object) -> None:
    """Have a thread of a pool do something.

    :param executor: with one thread at least: another that cannot be started is done without
    :raises RuntimeError: after its end
    """
    try:
        executor.submit(function, *arguments)
    except RuntimeError as error:
        # It was put into the queue before: those threads that there are will come to it.
        if str(error) != _NO_THREAD:
            raise


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

    try:
        threading.Thread(target=run, name="archive-end", daemon=True).start()
    except RuntimeError:
        # What is to be given back is given back: better the loop stands still for a moment.
        run()
    await ended
