"""Waiting for the other side of a connection: until something changes, or for so long."""

from __future__ import annotations

import asyncio

# An alarm that rings this many seconds late is in time.
_EARLY = 0.01


class Wakeup:
    """What the one task of a connection waits at. Everything is called on the loop.

    An alarm that rings earlier than need be is left as it is: setting one anew for every message costs more than to look once
    more.
    """

    __slots__ = ("_alarm", "_loop", "_waiter")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def notify(self) -> None:
        """Something has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Return when something has changed, or after so many seconds; now and then for nothing."""
        if self._alarm is None or self._alarm.when() > self._loop.time() + seconds + _EARLY:
            self.silence()
            self._alarm = self._loop.call_later(max(0.0, seconds), self._ring)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _ring(self) -> None:
        self._alarm = None
        self.notify()

    def silence(self) -> None:
        """Give the alarm back."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
