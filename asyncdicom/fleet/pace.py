"""How many associations begin at once, however many may be open."""

from __future__ import annotations

import asyncio
from collections import deque

# A healthy peer is asked and has answered within about six turns of the loop: a hundred have something to do in each.
_AT_ONCE = 16


class Pace:
    """Lets so many associations begin in one turn of the event loop, and others in the next ones.

    Of hundreds that are begun at once each has something to do in each turn of the loop, and whoever else wants something of
    it, an instance that arrives or a page that is asked for, waits for all of them; so does each of them, and the time that it
    measures is ours and not the peer's. Begun in small numbers, as many are done in the same time.

    :param at_once: how many begin in one turn
    """

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        self._at_once = at_once
        self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_turning = False

    async def begin(self) -> None:
        """Return when one more may begin."""
        loop = asyncio.get_running_loop()
        if not self._is_turning:
            self._is_turning = True
            loop.call_soon(self._turn, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._at_once
        while self._left and self._waiting:
            waiter = self._waiting.popleft()
            # Whoever was cancelled waits no more.
            if not waiter.done():
                waiter.set_result(None)
                self._left -= 1
        self._is_turning = self._left < self._at_once
        if self._is_turning:
            loop.call_soon(self._turn, loop)
