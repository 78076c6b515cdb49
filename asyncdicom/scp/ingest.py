"""From the last fragment to the status: one instance's way through the storage SCP, and the bytes that may be on it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable

from asyncdicom.archive import Arriving
from asyncdicom.association.received import Received
from asyncdicom.observe import Observer
from asyncdicom.scp.handler import UNHANDLED_EXCEPTION, IntoArchive, Sink

logger = logging.getLogger(__name__)


class ByteBudget:
    """The bytes of datasets that may be in memory at once, over all associations. Thread-safe.

    Who wants more than there is waits, and does not read its socket meanwhile, so that the peer waits too. Of those that hold
    bytes and wait, one may go on all the same, the one that has held them for the longest, until it gives some back: otherwise
    as many halves as fill the budget would wait for each other. One that does not wait, because its peer is slow or its handler
    is, is no reason for the others to.

    A thread waits in :meth:`take`; the loop asks :meth:`may_read` before it reads, and has itself called by :meth:`notify`.

    :param limit: bytes
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._held: OrderedDict[object, int] = OrderedDict()
        # Who waits, and what to call when it may go on; None for a thread, which looks for itself.
        self._waiting: dict[object, Callable[[], None] | None] = {}
        self._ahead: object | None = None
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._used

    def take(self, owner: object, size: int, *, gone: Callable[[], bool]) -> bool:
        """Take bytes, waiting for them as long as the owner lives.

        :param owner: who holds them; it takes from one thread at a time
        :param size: bytes, 0 or more
        :param gone: asked now and then whether waiting still makes sense
        :return: False when the owner went away while waiting
        """
        with self._changed:
            self._waiting[owner] = None
            try:
                while self._used and self._used + size > self.limit and self._elect() is not owner:
                    if gone():
                        return False
                    self._changed.wait(0.25)
            finally:
                del self._waiting[owner]
            self._charge(owner, size)
            return True

    def charge(self, owner: object, size: int) -> None:
        """Take bytes that are here already, without waiting."""
        with self._changed:
            self._charge(owner, size)

    def may_read(self, owner: object) -> bool:
        """Whether an owner may read more of what it will have to :meth:`charge`."""
        with self._changed:
            return self._used < self.limit or self._ahead is owner

    def notify(self, owner: object, room: Callable[[], None]) -> None:
        """Have an owner called once, when it may read again.

        :param room: called from any thread, also from within this call
        """
        with self._changed:
            self._waiting[owner] = room
            called = self._admit()
        for call in called:
            call()

    def give_back(self, owner: object, size: int | None = None) -> None:
        """Give bytes back: so many, or all that the owner holds."""
        with self._changed:
            held = self._held.get(owner, 0)
            size = held if size is None else min(size, held)
            self._used -= size
            if held == size:
                self._held.pop(owner, None)
            else:
                self._held[owner] = held - size
                self._held.move_to_end(owner)
            if self._ahead is owner:
                self._ahead = None
            self._changed.notify_all()
            called = self._admit()
        for call in called:
            call()

    def forget(self, owner: object) -> None:
        """Give back all that an owner holds; it is called no more."""
        with self._changed:
            self._waiting.pop(owner, None)
        self.give_back(owner)

    def _charge(self, owner: object, size: int) -> None:
        self._held[owner] = self._held.get(owner, 0) + size
        self._used += size

    def _elect(self) -> object | None:
        """Who may go beyond the limit."""
        if self._ahead is None:
            self._ahead = next((holder for holder in self._held if holder in self._waiting), None)
        return self._ahead

    def _admit(self) -> list[Callable[[], None]]:
        """Whom to call: everybody who waits when there is room, else the one that may go beyond the limit."""
        admitted = list(self._waiting) if self._used < self.limit else [self._elect()]
        called = []
        for owner in admitted:
            room = self._waiting.get(owner)
            if room is not None:
                del self._waiting[owner]
                called.append(room)
        return called


class Ingest:
    """Takes instances from associations of either engine to their status.

    :param sink: what keeps them
    :param observer: told of each
    :param budget: the bytes in flight
    """

    def __init__(self, sink: Sink, observer: Observer, budget: ByteBudget) -> None:
        self.sink = sink
        self.budget = budget
        self._observer = observer

    @property
    def streams(self) -> bool:
        """Whether an instance can be taken as it arrives."""
        return isinstance(self.sink, IntoArchive)

    def begin(self, received: Received) -> Arriving:
        """Begin an instance whose dataset is still arriving.

        :param received: all but its data
        """
        if not isinstance(self.sink, IntoArchive):
            raise TypeError("the handler wants instances whole")
        return self.sink.begin(received)

    async def take(self, received: Received, started: float, arriving: Arriving | None = None) -> int:
        """Take one instance.

        :param started: monotonic time at which its last fragment came
        :param arriving: what has taken its dataset, where that is not in `received`
        :return: the status to answer; 0xC211 when the handler failed
        """
        self._observer.ingest_in_flight(self.budget.used, self.budget.limit)
        try:
            status = await self.sink(received) if arriving is None else int((await arriving.keep()).status)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                # It is we who are cancelled, not the handler that raised this of its own accord.
                raise
            # The handler is the user's: whatever it raises must neither end the association nor be taken for success.
            # Its message and its locals may hold patient data, so above DEBUG the log names the type and the place alone.
            where = traceback.extract_tb(error.__traceback__)[-1]
            logger.error(
                "the handler failed: %s in %s, line %d: answered 0x%04X",
                type(error).__name__,
                where.name,
                where.lineno or 0,
                UNHANDLED_EXCEPTION,
            )
            logger.debug("the handler's traceback", exc_info=True)
            status = UNHANDLED_EXCEPTION
        size = received.size if arriving is None else arriving.size
        self._observer.store_ended(received.calling_ae_title, status, size, time.monotonic() - started)
        return status

    def answered(self) -> None:
        """An instance's bytes have been given back."""
        self._observer.ingest_in_flight(self.budget.used, self.budget.limit)
