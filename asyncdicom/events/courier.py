"""One target and what it still has to be told: who goes next, how many at once, and when after a failure.

Events of one subject - a study, a modality - go one after the other, first attempts in the order in which they happened. One
that failed is tried again later and holds nobody up. A target that takes nothing at all is left alone for a while, and then
asked with a single event.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from asyncdicom.archive.deliveries import Deliveries, Delivery
from asyncdicom.errors import ArchiveError, DeliveryFailed
from asyncdicom.events.contract import Message, Target, subject_of
from asyncdicom.observe import Observer

logger = logging.getLogger(__name__)

# Events that are looked through for one that may go; beyond them one study's could hold up another's.
_AHEAD = 256
# So many events in a row that a target did not take: it is the target, and not the events.
_TROUBLE = 3
# After so many pauses in a row the target was gone, and what failed is not to blame for it.
_GONE = 3
# Seconds between attempts to write into an index that does not take it.
_INDEX_PAUSE = 1.0
# How often somebody whom nobody wakes looks for himself, in seconds: the wall clock may be set.
_LOOK = 30.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after a failure: twice as long each time, and never all at the same moment.

    :ivar first: seconds after the first failure
    :ivar longest: seconds at most, for one event
    :ivar longest_pause: seconds at most that a target is left alone
    """

    first: float = 1.0
    longest: float = 300.0
    longest_pause: float = 30.0

    def after(self, failures: int) -> float:
        """Seconds until the next attempt with an event."""
        return self._jittered(failures, self.longest)

    def pause(self, failures: int) -> float:
        """Seconds to leave a target alone."""
        return self._jittered(failures, self.longest_pause)

    def _jittered(self, failures: int, longest: float) -> float:
        whole = min(longest, self.first * 2.0 ** min(failures - 1, 30))
        return whole * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret


class Courier:
    """Delivers to one target what waits for it, for as long as :meth:`run` runs.

    :param target: entered already
    :param identity: which index the events are from
    :param closed: called after an event has left the index for good
    """

    def __init__(
        self,
        target: Target,
        deliveries: Deliveries,
        identity: str,
        *,
        observer: Observer,
        backoff: Backoff,
        closed: Callable[[], None],
    ) -> None:
        self.target = target
        self._deliveries = deliveries
        self._identity = identity
        self._observer = observer
        self._backoff = backoff
        self._closed = closed
        self._woken = anyio.Event()
        # Due, and read from the index already.
        self._waiting: list[Delivery] = []
        self._maybe_more = True
        # When something is due again that had to wait, by the monotonic clock.
        self._look_at = 0.0
        # What is under way: the subject of each event.
        self._under_way: dict[int, str] = {}
        # Events that failed since one was taken last; how often it was left alone for them, and until when.
        self._failed: set[int] = set()
        self._pauses = 0
        self._pause_until = 0.0
        # Set when nothing is under way any more, by which time nothing more is begun.
        self._drained: anyio.Event | None = None

    def wake(self) -> None:
        """There may be more for it."""
        self._maybe_more = True
        self._woken.set()

    async def drain(self) -> None:
        """Begin no more, and return once what is under way has ended."""
        self._drained = anyio.Event()
        if self._under_way:
            await self._drained.wait()

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._woken = anyio.Event()
                try:
                    seconds = await self._start_some(tasks)
                except ArchiveError as error:
                    logger.error("events wait for the index: %s", error)
                    seconds = _INDEX_PAUSE
                with anyio.move_on_after(seconds):
                    await self._woken.wait()

    async def _start_some(self, tasks: TaskGroup) -> float:
        """Start what may go now.

        :return: seconds after which to look again
        """
        if time.monotonic() >= self._look_at:
            self._maybe_more = True
            due = await self._deliveries.next_due(self.target.name)
            seconds = _LOOK if due is None else min(_LOOK, max(0.0, due - time.time()))
            self._look_at = time.monotonic() + seconds
        while len(self._under_way) < self._slots():
            delivery = self._choose()
            if delivery is not None:
                self._under_way[delivery.event.id] = subject_of(delivery.event)
                tasks.start_soon(self._deliver, delivery)
            elif self._maybe_more and len(self._waiting) < _AHEAD:
                await self._read_ahead()
            else:
                break
        until = self._look_at
        if self._is_troubled and not self._under_way:
            until = min(until, self._pause_until)
        return max(0.0, until - time.monotonic())

    @property
    def _is_troubled(self) -> bool:
        return len(self._failed) >= _TROUBLE

    def _slots(self) -> int:
        if self._drained is not None:
            return 0
        if not self._is_troubled:
            return self.target.concurrency
        return 1 if time.monotonic() >= self._pause_until else 0

    def _choose(self) -> Delivery | None:
        subjects = set(self._under_way.values())
        free = [delivery for delivery in self._waiting if subject_of(delivery.event) not in subjects]
        if not free:
            return None
        # A target in trouble is asked with an event that may not be the cause of it.
        chosen = min(free, key=lambda delivery: delivery.attempts > 0) if self._is_troubled else free[0]
        self._waiting.remove(chosen)
        return chosen

    async def _read_ahead(self) -> None:
        # Nothing starts meanwhile, so whatever is neither waiting nor under way now is not read twice.
        held = {delivery.event.id for delivery in self._waiting} | self._under_way.keys()
        limit = _AHEAD + len(held)
        self._maybe_more = False
        try:
            found = await self._deliveries.due(self.target.name, limit=limit)
        except BaseException:
            self._maybe_more = True
            raise
        self._waiting += [delivery for delivery in found if delivery.event.id not in held]
        # Somebody may have said so while we were reading.
        self._maybe_more = self._maybe_more or len(found) == limit

    async def _deliver(self, delivery: Delivery) -> None:
        event_id, message = delivery.event.id, Message.of(delivery.event, self._identity)
        fields = {"target": self.target.name, "event": message.id, "kind": message.kind, "attempt": delivery.attempts + 1}
        try:
            await self.target.deliver(message)
        except DeliveryFailed as failure:
            self._note_failure(event_id)
            self._observer.event_failed(self.target.name)
            if failure.final:
                logger.error("an event is not delivered, and not tried again: %s", failure, extra=fields)
                await self._record(lambda: self._deliveries.over(self.target.name, event_id))
            else:
                seconds = self._backoff.after(delivery.attempts + 1)
                logger.warning("an event is delivered later: %s", failure, extra={**fields, "seconds": round(seconds, 1)})
                due_at = time.time() + seconds
                await self._record(lambda: self._deliveries.later(self.target.name, event_id, due_at))
                self._look_at = min(self._look_at, time.monotonic() + max(0.0, due_at - time.time()))
        else:
            was_gone = self._pauses >= _GONE
            self._failed.clear()
            self._pauses = 0
            self._observer.event_delivered(self.target.name)
            logger.debug("an event is delivered", extra=fields)
            await self._record(lambda: self._deliveries.over(self.target.name, event_id))
            if was_gone:
                logger.info("a target takes events again", extra={"target": self.target.name})
                await self._record(lambda: self._deliveries.hasten(self.target.name))
                self._look_at = 0.0
        del self._under_way[event_id]
        if self._drained is not None and not self._under_way:
            self._drained.set()
        self._woken.set()
        self._closed()

    def _note_failure(self, event_id: int) -> None:
        self._failed.add(event_id)
        now = time.monotonic()
        if self._is_troubled and now >= self._pause_until:
            # Those that failed together are one reason to pause.
            self._pauses += 1
            self._pause_until = now + self._backoff.pause(self._pauses)
            if self._pauses == 1:
                logger.warning("a target takes nothing: it is asked less often", extra={"target": self.target.name})

    async def _record(self, write: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await write()
            except ArchiveError as error:
                # Until this is written, the event stays under way: else it would go out again and again.
                logger.error("what became of an event is not written: %s", error, extra={"target": self.target.name})
                await anyio.sleep(_INDEX_PAUSE)
