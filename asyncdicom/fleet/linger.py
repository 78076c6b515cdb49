"""Associations that outlive their operation for a moment, so that the next one with the same modality need not ask again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio

from asyncdicom.association.contract import Association, associate
from asyncdicom.association.query import Query
from asyncdicom.errors import OperationError
from asyncdicom.modality import Modality
from asyncdicom.outcome import Phases
from asyncdicom.upper_layer.context import PresentationContext


@dataclass(eq=False, slots=True)
class _Idle:
    """An association that nobody uses.

    :ivar asked: what was proposed for it
    :ivar manager: what ends it
    """

    asked: object
    association: Association
    manager: AbstractAsyncContextManager[Association]
    timer: asyncio.TimerHandle | None = None


class Linger:
    """Keeps one association for each modality for a while after its operation.

    A modality never has more associations than without: one that was asked for other presentation contexts is released before
    another is requested.

    :param seconds: how long; 0 for not at all
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._idle: dict[str, _Idle] = {}
        self._ending: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def associate(
        self,
        modality: Modality,
        *,
        contexts: Sequence[PresentationContext],
        query: Query | None,
        phases: Phases,
        fresh: bool = False,
        **how: Any,
    ) -> AbstractAsyncContextManager[Association]:
        """As :func:`asyncdicom.associate`, over an association that is there already if there is one.

        Its phases up to the association are then None: nothing was done for them.

        :param fresh: request a new one in any case, and end it with the block
        """
        if not self._seconds:
            return associate(modality, contexts=contexts, query=query, phases=phases, **how)
        return self._associate(modality, contexts, query, phases, fresh, how)

    @asynccontextmanager
    async def _associate(
        self,
        modality: Modality,
        contexts: Sequence[PresentationContext],
        query: Query | None,
        phases: Phases,
        fresh: bool,
        how: dict[str, Any],
    ) -> AsyncIterator[Association]:
        asked = (modality, tuple(contexts), None if query is None else query.extended_negotiation)
        idle = self._idle.pop(modality.name, None)
        if idle is not None:
            _silence(idle)
            if fresh or idle.asked != asked or not idle.association.is_established:
                await self._end(idle)
                idle = None
        if idle is None:
            manager = associate(modality, contexts=contexts, query=query, phases=phases, **how)
            idle = _Idle(asked, await manager.__aenter__(), manager)
        idle.association.phases = phases
        try:
            yield idle.association
        except BaseException:
            if not await idle.manager.__aexit__(*sys.exc_info()):
                raise
        else:
            if not fresh and self._may_keep(idle, modality):
                self._keep(idle, modality.name)
            else:
                await idle.manager.__aexit__(None, None, None)

    def _may_keep(self, idle: _Idle, modality: Modality) -> bool:
        return (
            not self._is_closed
            and modality.name not in self._idle
            and idle.association.is_established
            and not modality.one_operation_per_association
        )

    def _keep(self, idle: _Idle, name: str) -> None:
        self._idle[name] = idle
        idle.timer = asyncio.get_running_loop().call_later(self._seconds, self._expire, name)

    def _expire(self, name: str) -> None:
        idle = self._idle.pop(name)
        task = asyncio.get_running_loop().create_task(self._end(idle))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, idle: _Idle) -> None:
        # How it ends is nobody's concern any more, only that it does; a release has its own deadline.
        idle.association.phases = Phases()
        with suppress(OperationError):
            await idle.manager.__aexit__(None, None, None)

    async def close(self) -> None:
        """End all of them."""
        self._is_closed = True
        with anyio.CancelScope(shield=True):
            for name in list(self._idle):
                _silence(self._idle[name])
                self._expire(name)
            if self._ending:
                await asyncio.wait(list(self._ending))


def _silence(idle: _Idle) -> None:
    if idle.timer is not None:
        idle.timer.cancel()
        idle.timer = None
