"""The end of a pool of threads, awaited."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor


async def end(executor: ThreadPoolExecutor) -> None:
    """Shut an executor down and return when its threads have ended; joining them would block the loop."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def join() -> None:
        executor.shutdown(wait=True)
        loop.call_soon_threadsafe(ended.set_result, None)

    threading.Thread(target=join, name="archive-end", daemon=True).start()
    await ended
