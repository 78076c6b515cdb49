"""The relay: what happened goes from the outbox to every target that wants it, at least once, through restarts.

It also notices what happens by itself - a study has received nothing for a while - and takes what others notice: a modality
went down or came up, fell silent or was heard again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio

from asyncdicom.archive.deliveries import Deliveries
from asyncdicom.archive.sqlite import SQLiteIndex
from asyncdicom.background import BackgroundTasks
from asyncdicom.errors import ArchiveError
from asyncdicom.events.contract import Target
from asyncdicom.events.courier import Backoff, Courier
from asyncdicom.observe import NULL_OBSERVER, Observer

logger = logging.getLogger(__name__)

# Events that become deliveries in one transaction, which every store waits for that comes meanwhile.
_AT_ONCE = 500
# Seconds to let more come together, after those that were there.
_GATHER = 0.02
# How often the outbox is looked at although nobody said that anything happened, in seconds.
_LOOK = 5.0
# Seconds between attempts to use an index that does not answer.
_INDEX_PAUSE = 1.0
# A quiet study is noticed within a tenth of what it has to be quiet for, and within this, in seconds.
_LATEST_NOTICE = 5.0
# Studies that are told of in one transaction.
_STUDIES = 100
# Seconds between measurements of the outbox, and between removals of what was delivered long ago.
_MEASURE = 1.0
_FORGET = 60.0


class Bell(Observer):
    """Rings when an instance was answered: there may be an event for it by then."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Something may be in the outbox."""
        self._rung.set()

    def store_ended(self, calling_ae_title: str, status: int, size: int, seconds: float) -> None:
        """An instance was answered."""
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        """Return when it has rung since the last time, or after some seconds."""
        with anyio.move_on_after(seconds):
            await self._rung.wait()
        self._rung = anyio.Event()


class Relay:
    """Tells targets of events. An async context manager: it works once entered, inside of the index's life.

    :param index: open while this is entered
    :param targets: who is told, each with a name of its own
    :param bell: rung by whoever adds to the outbox; without it the outbox is looked at every few seconds
    :param study_complete_after: seconds without a new instance after which a study is complete
    :param backoff: how long to wait after failures
    """

    def __init__(
        self,
        index: SQLiteIndex,
        targets: Sequence[Target],
        *,
        bell: Bell | None = None,
        observer: Observer = NULL_OBSERVER,
        study_complete_after: float = 60.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._index = index
        self._deliveries = Deliveries(index)
        self._targets = tuple(targets)
        self._bell = bell or Bell()
        self._observer = observer
        self._quiet = study_complete_after
        self._backoff = backoff or Backoff()
        self._couriers: list[Courier] = []
        # Changes of modalities that are still to be written, and whether there are any.
        self._changes: deque[tuple[str, Callable[[], Awaitable[bool]]]] = deque()
        self._changed = anyio.Event()
        # Set whenever the number of events that wait may have changed.
        self._moved = anyio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            identity = await self._deliveries.identity()
            names = [target.name for target in self._targets]
            dropped = await self._deliveries.configure(names, time.time() - self._quiet)
            if dropped:
                logger.warning("events waited for targets that are configured no more: dropped", extra={"events": dropped})
            self._couriers = [
                Courier(
                    await stack.enter_async_context(target),
                    self._deliveries,
                    identity,
                    observer=self._observer,
                    backoff=self._backoff,
                    closed=self._move,
                )
                for target in self._targets
            ]
            tasks = await stack.enter_async_context(BackgroundTasks())
            for courier in self._couriers:
                tasks.start(courier.run)
            for work in (self._spread, self._complete_studies, self._write_changes, self._measure, self._forget):
                tasks.start(work)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is under way is cancelled, and tried again by the next life.
        await self._stack.__aexit__(kind, error, trace)

    async def drain(self) -> None:
        """Begin no more deliveries, and return once those under way have ended. What is left waits for the next life."""
        async with anyio.create_task_group() as tasks:
            for courier in self._couriers:
                tasks.start_soon(courier.drain)

    def sign_with(self, keys: Mapping[str, bytes | None]) -> None:
        """Sign with other keys from now on.

        :param keys: by the name of the target
        """
        for target in self._targets:
            target.key = keys.get(target.name)

    def tell_condition(self, modality: str, *, is_up: bool, payload: dict[str, Any]) -> None:
        """A modality went down, or answers (again). What was told of it last is not told twice.

        :param payload: what receivers are told, with the keys of :data:`asyncdicom.events.kinds.FIELDS`
        """
        self._change(modality, partial(self._deliveries.tell_condition, modality, is_up=is_up, payload=payload))

    def tell_silence(self, modality: str, *, is_quiet: bool, payload: dict[str, Any]) -> None:
        """A modality sends less than expected, or is heard again. What was told of it last is not told twice.

        :param payload: what receivers are told, with the keys of :data:`asyncdicom.events.kinds.FIELDS`
        """
        self._change(modality, partial(self._deliveries.tell_silence, modality, is_quiet=is_quiet, payload=payload))

    def _change(self, modality: str, write: Callable[[], Awaitable[bool]]) -> None:
        self._changes.append((modality, write))
        self._changed.set()

    def _move(self) -> None:
        self._moved.set()

    # -- what runs until the end ----------------------------------------------------------------------------------------

    async def _spread(self) -> None:
        wanted = {target.name: target.on for target in self._targets}
        while True:
            try:
                count = await self._deliveries.spread(wanted, limit=_AT_ONCE)
            except ArchiveError as error:
                logger.error("events wait for the index: %s", error)
                await anyio.sleep(_INDEX_PAUSE)
                continue
            if count:
                self._moved.set()
                for courier in self._couriers:
                    courier.wake()
            if count < _AT_ONCE:
                await anyio.sleep(_GATHER)
                await self._bell.wait(_LOOK)

    async def _complete_studies(self) -> None:
        every = min(_LATEST_NOTICE, self._quiet / 10)
        while True:
            told = None
            try:
                told = await self._index.complete_studies(time.time() - self._quiet, limit=_STUDIES)
            except ArchiveError as error:
                logger.error("studies wait for the index to become complete: %s", error)
            for _ in told or ():
                self._observer.study_completed()
                self._bell.ring()
            if told is None or len(told) < _STUDIES:
                await anyio.sleep(every)

    async def _write_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            while self._changes:
                name, write = self._changes[0]
                try:
                    is_news = await write()
                except ArchiveError as error:
                    logger.error("a change of a modality waits for the index: %s", error, extra={"modality": name})
                    await anyio.sleep(_INDEX_PAUSE)
                    continue
                self._changes.popleft()
                if is_news:
                    self._bell.ring()

    async def _measure(self) -> None:
        while True:
            self._moved = anyio.Event()
            try:
                self._observer.outbox(*await self._index.outbox_pending())
            except ArchiveError as error:
                logger.error("the outbox cannot be measured: %s", error)
            await anyio.sleep(_MEASURE)
            with anyio.move_on_after(_LOOK):
                await self._moved.wait()

    async def _forget(self) -> None:
        while True:
            count = 0
            try:
                count = await self._deliveries.forget(limit=_AT_ONCE)
            except ArchiveError as error:
                logger.error("what was delivered long ago stays for now: %s", error)
            await anyio.sleep(_GATHER if count == _AT_ONCE else _FORGET)

    def __repr__(self) -> str:
        return f"<Relay {', '.join(target.name for target in self._targets)}>"
