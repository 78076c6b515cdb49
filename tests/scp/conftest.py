"""What the tests of the storage SCP share: each engine in turn, and an observer that remembers."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest

from asyncdicom import Observer
from asyncdicom.modality import Engine


@pytest.fixture(params=["native", "pynetdicom"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    engine: Engine = request.param
    return engine


class Seen(Observer):
    """Remembers what happened."""

    def __init__(self) -> None:
        self.open = 0
        self.accepted = 0
        self.rejected: Counter[str] = Counter()
        self.aborted: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.in_flight = 0

    def scp_association_opened(self, calling_ae_title: str, peer_address: str) -> None:
        self.open += 1
        self.accepted += 1

    def scp_association_closed(self, calling_ae_title: str, peer_address: str) -> None:
        self.open -= 1

    def scp_association_rejected(self, reason: str, calling_ae_title: str, peer_address: str) -> None:
        self.rejected[reason] += 1

    def scp_association_aborted(self, reason: str, calling_ae_title: str, peer_address: str) -> None:
        self.aborted[reason] += 1

    def store_ended(self, calling_ae_title: str, status: int, size: int, seconds: float) -> None:
        self.statuses[status] += 1

    def ingest_in_flight(self, size: int, budget: int) -> None:
        self.in_flight = size

    async def turned_away(self, reason: str) -> None:
        """Return once somebody was: the server may learn of it after the client."""
        with anyio.fail_after(5):
            while not self.rejected[reason]:
                await anyio.sleep(0.01)

    async def settled(self, seconds: float = 5.0) -> None:
        """Wait until nothing is open and nothing is in flight."""
        with anyio.fail_after(seconds):
            while self.open or self.in_flight:
                await anyio.sleep(0.01)


@pytest.fixture
def seen() -> Seen:
    """An observer that remembers."""
    return Seen()
