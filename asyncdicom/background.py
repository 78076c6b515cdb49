"""Tasks that an object owns between its ``__aenter__`` and its ``__aexit__``, and work that must not be left halfway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

_log = logging.getLogger(__name__)

T = TypeVar("T")


class BackgroundTasks:
    """A task group for objects that are asynchronous context managers themselves.

    Their users write ``async with Fleet(...)`` and expect their own exceptions to come out as they are; a bare task group
    would wrap them into an ExceptionGroup. A task of ours that crashes still cancels the block, and its exception comes out.
    """

    def __init__(self) -> None:
        self._group: TaskGroup | None = None

    @property
    def is_open(self) -> bool:
        """Whether tasks can be started."""
        return self._group is not None

    def start(self, function: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
        """Start a task.

        :raises RuntimeError: when the owner has not been entered, or has been left
        """
        if self._group is None:
            raise RuntimeError("this works inside of its `async with` block only")
        self._group.start_soon(function, *args)

    async def __aenter__(self) -> Self:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        group, self._group = self._group, None
        if group is None:
            return
        group.cancel_scope.cancel()
        try:
            await group.__aexit__(None, None, None)
        except BaseExceptionGroup as crashed:
            if len(crashed.exceptions) == 1:
                raise crashed.exceptions[0] from error
            raise


async def to_its_end(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Await what must not be left halfway: when the caller is cancelled, that is raised after the end.

    A shielded scope is not enough: it stops anyio's cancellation, and not that of asyncio.
    """
    task = work if isinstance(work, asyncio.Future) else asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError:
                    # Cancelled again; it is raised below.
                    continue
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("what a cancelled caller began has failed: %s", type(error).__name__)
        raise
