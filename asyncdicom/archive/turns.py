"""One after the other for each key, and all keys at once."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType


class Turns:
    """Locks by name that exist only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def __call__(self, key: str) -> _Turn:
        """Return an async context manager that is entered by one task at a time for each key, in order of asking."""
        return _Turn(self._waiting, key)

    def __contains__(self, key: str) -> bool:
        """Whether somebody has the turn of a key."""
        return key in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)


class _Turn:
    __slots__ = ("_key", "_waiting")

    def __init__(self, waiting: dict[str, deque[asyncio.Future[None]]], key: str) -> None:
        self._waiting = waiting
        self._key = key

    async def __aenter__(self) -> None:
        queue = self._waiting.get(self._key)
        if queue is None:
            self._waiting[self._key] = deque()
            return
        mine = asyncio.get_running_loop().create_future()
        queue.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():
                # It was our turn already: hand it on.
                self._pass_on()
            elif mine in queue:
                # Otherwise whoever had the turn before has passed us over.
                queue.remove(mine)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        queue = self._waiting[self._key]
        while queue:
            following = queue.popleft()
            if not following.done():
                following.set_result(None)
                return
        del self._waiting[self._key]
