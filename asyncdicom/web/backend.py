"""What the web side needs of the service that it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from asyncdicom.monitor.arrivals import Arrived
from asyncdicom.monitor.changes import Changes
from asyncdicom.monitor.metrics import Metrics
from asyncdicom.monitor.probe import Probed
from asyncdicom.monitor.space import Forecast
from asyncdicom.monitor.state import States, StorageState
from asyncdicom.outcome import Outcome


@dataclass(frozen=True, slots=True)
class StorageSummary:
    """The storage SCP in a few numbers.

    :ivar address: where it listens, as ``AET@host:port``
    :ivar associations: open now
    :ivar instances: kept since the start
    :ivar failed: refused since the start
    :ivar received_bytes: bytes of datasets since the start
    :ivar rejected: associations turned away since the start
    :ivar last_received: when the last instance came, in seconds since the epoch
    :ivar free_bytes: on the file system of the archive; None where there is none
    :ivar arrivals: what came, by who sent it
    :ivar duplicates: instances that arrived again since the start, by what became of them
    :ivar quarantined: instances put apart since the start
    :ivar pending: events that wait to be delivered; None while nobody is told of any
    :ivar oldest_pending: when the oldest of them happened, in seconds since the epoch
    :ivar forecast: when the file system of the archive will be full; None while too little is known
    :ivar settling: seconds without a new instance after which a study is complete
    """

    address: str
    associations: int
    instances: int
    failed: int
    received_bytes: int
    rejected: int
    last_received: float | None
    free_bytes: int | None
    arrivals: Sequence[Arrived] = ()
    duplicates: Mapping[str, int] = field(default_factory=dict)
    quarantined: int = 0
    pending: int | None = None
    oldest_pending: float | None = None
    forecast: Forecast | None = None
    settling: float = 60.0


class Backend(Protocol):
    """The service as the web side sees it."""

    @property
    def title(self) -> str:
        """Our AE title."""

    @property
    def states(self) -> States:
        """What is known of the modalities."""

    @property
    def metrics(self) -> Metrics:
        """What is counted."""

    @property
    def token(self) -> str | None:
        """What requests must carry; None when they need not."""

    @property
    def storage_state(self) -> StorageState:
        """What the storage SCP did since it was started."""

    @property
    def changes(self) -> Changes:
        """Who is told that something changed."""

    async def studies(self, limit: int) -> list[dict[str, Any]]:
        """The studies that received something last, latest first, without patients; none without an index.

        :raises ArchiveError: when the index does not answer in time
        """

    async def senders(self) -> dict[str, float]:
        """For every calling AE title, when its last instance arrived (seconds since the epoch, UTC).

        :raises ArchiveError: when the index does not answer in time
        """

    def storage(self) -> StorageSummary | None:
        """The storage SCP, None without one. It may look at the disk: called in a thread."""

    async def not_ready(self) -> list[str]:
        """Why the service cannot work now; nothing when it can."""

    async def reload(self) -> list[str]:
        """Read the configuration again.

        :return: its mistakes; with any, nothing was changed
        """

    async def probe(self, name: str, module: str, timeout: float | None) -> Probed:
        """Probe a modality of the inventory.

        :param timeout: seconds; None for the fleet's own
        :raises ConfigurationError: when the inventory has no such name, there is no such module, or it is not allowed
        """

    async def echo(self, name: str) -> Outcome:
        """Ask a modality of the inventory for an echo, now."""
