"""When the disk will be full, from how fast it filled up in the last hours."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import anyio

from asyncdicom.errors import ArchiveError

# Long enough for the lull between two patients, short enough to follow a migration that was started today; in seconds.
WINDOW = 6 * 3600.0
# A rate over less than this is chance, in seconds.
LEAST = 300.0
EVERY = 30.0
# Somebody made room when so much appears at once: bytes, or this share of what was free.
_ROOM = 256 << 20
_ROOM_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Forecast:
    """How fast a file system fills up.

    :ivar rate: bytes per second that become less; negative when they become more
    :ivar full_in: seconds until nothing more can be kept; None when it does not fill up
    :ivar observed: seconds that the rate was observed for
    """

    rate: float
    full_in: float | None
    observed: float


class Filling:
    """Follows the free space of a file system.

    What was free is measured, and not what was received: duplicates take no room, and others write too.

    :param floor: bytes that must stay free: below, instances are refused
    """

    def __init__(self, floor: int = 0) -> None:
        self._floor = floor
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, free: int, at: float) -> None:
        """So much is free.

        :param free: bytes
        :param at: seconds, of any clock that never goes back
        """
        samples = self._samples
        if samples and free - samples[-1][1] > max(_ROOM, samples[-1][1] * _ROOM_SHARE):
            # Room was made: what it was before says nothing of how fast it fills up.
            samples.clear()
        samples.append((at, free))
        while at - samples[0][0] > WINDOW:
            samples.popleft()

    def forecast(self) -> Forecast | None:
        """How it goes on at the same rate; None while too little is known. In any thread."""
        samples = list(self._samples)
        if not samples:
            return None
        (began, before), (ended, free) = samples[0], samples[-1]
        observed = ended - began
        if observed < LEAST:
            return None
        rate = (before - free) / observed
        full_in = max(0.0, free - self._floor) / rate if rate > 0 else None
        return Forecast(rate, full_in, observed)

    async def watch(self, look: Callable[[], int]) -> None:
        """Look for ever, every half minute.

        :param look: returns the bytes that are free; called in a thread of its own, because a file system may hang
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix="space")
        try:
            while True:
                try:
                    free = await asyncio.get_running_loop().run_in_executor(executor, look)
                except (ArchiveError, OSError):
                    # Nothing is known of it now: the readiness and the stores tell what is wrong, and the next look may do.
                    free = None
                if free is not None:
                    self.note(free, time.monotonic())
                await anyio.sleep(EVERY)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
