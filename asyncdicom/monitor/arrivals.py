"""What arrives by C-STORE, by who sends it, and what became of it: for people; Prometheus has its own counters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from asyncdicom.observe import Observer

# Whoever may send may call itself anything: beyond so many AE titles they are counted together.
_MOST = 1_000
OTHERS = "(others)"


@dataclass(slots=True)
class Arrived:
    """What came from one calling AE title since the start.

    :ivar instances: answered with success or a warning
    :ivar failed: answered with a failure
    :ivar received_bytes: bytes of the datasets that were kept
    :ivar last: when the last one was kept, in seconds since the epoch; 0 when none was
    """

    calling_ae_title: str
    instances: int = 0
    failed: int = 0
    received_bytes: int = 0
    last: float = 0.0


class Arrivals(Observer):
    """Counts what arrives.

    :param clock: seconds since the epoch
    :ivar duplicates: instances that arrived again, by what became of them
    :ivar quarantined: instances that lie apart
    :ivar pending: events that wait to be delivered; None while nobody is told of any
    :ivar oldest_pending: when the oldest of them happened, in seconds since the epoch
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._by_title: dict[str, Arrived] = {}
        self.duplicates: dict[str, int] = {}
        self.quarantined = 0
        self.pending: int | None = None
        self.oldest_pending: float | None = None

    def all(self) -> list[Arrived]:
        """What came, by who sent it; in any thread."""
        return [replace(arrived) for arrived in list(self._by_title.values())]

    def store_ended(self, calling_ae_title: str, status: int, size: int, seconds: float) -> None:
        """Count the instance."""
        title = calling_ae_title.strip()
        arrived = self._by_title.get(title)
        if arrived is None:
            title = title if len(self._by_title) < _MOST else OTHERS
            arrived = self._by_title.setdefault(title, Arrived(title))
        if status == 0x0000 or 0xB000 <= status <= 0xBFFF:
            arrived.instances += 1
            arrived.received_bytes += size
            arrived.last = self._clock()
        else:
            arrived.failed += 1

    def duplicate(self, outcome: str) -> None:
        """Count it."""
        self.duplicates[outcome] = self.duplicates.get(outcome, 0) + 1

    def nonconformant(self, doubts: tuple[str, ...], *, quarantined: bool) -> None:
        """Count what lies apart."""
        self.quarantined += quarantined

    def outbox(self, pending: int, oldest: float | None) -> None:
        """Note what waits."""
        self.pending, self.oldest_pending = pending, oldest
