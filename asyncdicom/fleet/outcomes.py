"""Outcomes on their way from those who make them to the one who reads them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from asyncdicom.outcome import Outcome


class Outcomes:
    """An asynchronous iterator over what is put into it, for one reader.

    A sweep has thousands of them: a stream of anyio's looks up its backend, and yields to the loop, for each.
    """

    def __init__(self) -> None:
        self._here: deque[Outcome] = deque()
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, outcome: Outcome) -> None:
        """Add one; also when nobody reads any more."""
        self._here.append(outcome)
        self._wake()

    def end(self) -> None:
        """Nothing more will be put."""
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        while not self._here:
            if self._is_over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._here.popleft()
