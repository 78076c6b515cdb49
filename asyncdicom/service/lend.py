"""One fleet after the other: a reload replaces the fleet, and those who use the old one finish with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup, TaskStatus

from asyncdicom.fleet.fleet import Fleet


class _Held:
    """A fleet with those who use it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.users = 0
        self.retired = False
        self.over = anyio.Event()

    def give_back(self) -> None:
        if self.retired and not self.users:
            self.over.set()


class FleetLender:
    """Holds the current fleet open and lends it; an async context manager.

    A fleet that was replaced stays open until its last user has given it back. Its runs have deadlines, so it does end.
    """

    def __init__(self) -> None:
        self._current: _Held | None = None
        self._tasks: TaskGroup | None = None
        self._open = 0

    @property
    def open(self) -> int:
        """Fleets that are open now: one, and those that are still in use after they were replaced."""
        return self._open

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> bool | None:
        tasks, self._tasks, self._current = self._tasks, None, None
        if tasks is None:
            return None
        tasks.cancel_scope.cancel()
        return await tasks.__aexit__(*exception)

    async def replace(self, fleet: Fleet) -> None:
        """Open a fleet and lend it from now on."""
        if self._tasks is None:
            raise RuntimeError("a fleet is lent inside of `async with lender:`")
        held = _Held(fleet)
        # In a task of its own: a fleet is left by the task that entered it, and this caller goes away.
        await self._tasks.start(self._hold, held, name="fleet")
        before, self._current = self._current, held
        if before is not None:
            before.retired = True
            before.give_back()

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Fleet]:
        """The current fleet, for the length of the block."""
        held = self._current
        if held is None:
            raise RuntimeError("there is no fleet yet, or not any more")
        held.users += 1
        try:
            yield held.fleet
        finally:
            held.users -= 1
            held.give_back()

    async def _hold(self, held: _Held, *, task_status: TaskStatus[None]) -> None:
        async with held.fleet:
            self._open += 1
            try:
                task_status.started()
                await held.over.wait()
            finally:
                self._open -= 1
