"""What is counted of who sends to us, by calling AE title.

An AE title that no configured modality has is counted as ``other``: no peer can make new series.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from asyncdicom.monitor.families import CounterMetricFamily, Family

OTHER = "other"
# Out of resources, cannot understand, and the answer to an exception in a handler: there from the start, so that the
# first failure of a sender is seen as an increase. Other statuses appear with their first occurrence.
EXPECTED_STATUSES = (0xA700, 0xA900, 0xC000, 0xC211)


@dataclass(slots=True)
class _Received:
    """What is counted for one calling AE title."""

    requests: int = 0
    octets: int = 0
    failures: dict[int, int] = field(default_factory=dict)


class Senders:
    """Counts for each configured calling AE title, and for all others together."""

    def __init__(self) -> None:
        self._counts = {OTHER: _Received()}

    def configure(self, titles: Iterable[str], *, in_advance: bool) -> None:
        """Take another inventory: those that are gone vanish, the others keep what was counted.

        :param titles: the AE titles of its modalities
        :param in_advance: whether each has its expected failures from the start
        """
        counts: dict[str, _Received] = {}
        for title in (*dict.fromkeys(titles), OTHER):
            received = counts[title] = self._counts.get(title) or _Received()
            for status in EXPECTED_STATUSES if in_advance or title == OTHER else ():
                received.failures.setdefault(status, 0)
        self._counts = counts

    def store_ended(self, calling_ae_title: str, status: int, size: int) -> None:
        """Count an instance.

        :param status: what it was answered with (PS3.4 B.2.3); warnings are no failures
        :param size: bytes of its dataset
        """
        received = self._counts.get(calling_ae_title.strip()) or self._counts[OTHER]
        received.requests += 1
        received.octets += size
        if status != 0x0000 and not 0xB000 <= status <= 0xBFFF:
            received.failures[status] = received.failures.get(status, 0) + 1

    def collect(self) -> Iterator[Family]:
        """Yield the families. Copies are taken at once: the loop goes on counting meanwhile."""
        labels = ["calling_ae"]
        requests = CounterMetricFamily("asyncdicom_store_requests", "C-STORE requests that were answered.", labels)
        octets = CounterMetricFamily("asyncdicom_store_received_bytes", "Bytes of the datasets that came by C-STORE.", labels)
        failures = CounterMetricFamily(
            "asyncdicom_store_failures", "C-STORE requests answered with a status of failure.", [*labels, "status"]
        )
        for title, received in self._counts.copy().items():
            requests.add_metric([title], received.requests)
            octets.add_metric([title], received.octets)
            for status, value in list(received.failures.items()):
                failures.add_metric([title, f"0x{status:04X}"], value)
        yield from (requests, octets, failures)
