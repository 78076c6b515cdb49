"""From the last fragment to the status: one instance's way through the storage SCP, and the bytes that may be on it."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable

from asyncdicom.association.received import Received
from asyncdicom.observe import Observer
from asyncdicom.scp.handler import UNHANDLED_EXCEPTION, Sink

logger = logging.getLogger(__name__)


class ByteBudget:
    """The bytes of datasets that may be in memory at once, over all associations. Thread-safe.

    Who wants more than there is waits, and does not read its socket meanwhile, so that the peer waits too. The one that holds
    bytes for the longest may always go on: otherwise as many halves as fill the budget would wait for each other.

    :param limit: bytes
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._held: OrderedDict[object, int] = OrderedDict()
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._used

    def take(self, owner: object, size: int, *, gone: Callable[[], bool]) -> bool:
        """Take bytes, waiting for them as long as the owner lives.

        :param owner: who holds them
        :param gone: asked now and then whether waiting still makes sense
        :return: False when the owner went away while waiting
        """
        with self._changed:
            while self._used and self._used + size > self.limit and next(iter(self._held)) is not owner:
                if gone():
                    return False
                self._changed.wait(0.25)
            self._held[owner] = self._held.get(owner, 0) + size
            self._used += size
            return True

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
            self._changed.notify_all()


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

    async def take(self, received: Received, started: float) -> int:
        """Take one instance.

        :param started: monotonic time at which its last fragment came
        :return: the status to answer; 0xC211 when the handler failed
        """
        self._observer.ingest_in_flight(self.budget.used, self.budget.limit)
        try:
            status = await self.sink(received)
        except Exception as error:
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
        self._observer.store_ended(received.calling_ae_title, status, received.size, time.monotonic() - started)
        return status

    def answered(self) -> None:
        """An instance's bytes have been given back."""
        self._observer.ingest_in_flight(self.budget.used, self.budget.limit)
