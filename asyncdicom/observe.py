"""The seam between doing and measuring.

association, fleet, scp, archive and events call an :class:`Observer`; ``monitor`` implements it on Prometheus, tests implement
it on lists. Every method does nothing by default, so an implementation overrides what it wants. They are called on the event
loop, must not block, and must not raise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncdicom.outcome import Outcome


class Observer:
    """What happens, as it happens. AE titles are as the peer wrote them: map them before using them as labels."""

    # We call them.
    def scu_association_opened(self, modality: str) -> None:
        """An association that we asked for is about to be requested."""

    def scu_association_closed(self, modality: str) -> None:
        """It is gone, by whatever way."""

    def operation_ended(self, outcome: Outcome) -> None:
        """One target of a fleet's run has its outcome."""

    def breaker_changed(self, modality: str, is_open: bool) -> None:
        """A modality's circuit breaker opened or closed."""

    # They call us.
    def scp_association_opened(self, calling_ae_title: str, peer_address: str) -> None:
        """An association was accepted."""

    def scp_association_closed(self, calling_ae_title: str, peer_address: str) -> None:
        """An accepted association is gone, by whatever way."""

    def scp_association_rejected(self, reason: str, calling_ae_title: str, peer_address: str) -> None:
        """A request for association was rejected, or a connection turned away.

        :param reason: ``calling_ae_title``, ``called_ae_title``, ``network``, ``limit``, ``draining``, ``user_identity``,
            ``tls``, ``protocol_version`` or ``artim``
        """

    def scp_association_aborted(self, reason: str, calling_ae_title: str, peer_address: str) -> None:
        """An accepted association ended by an abort or a lost connection.

        :param reason: ``peer``, ``connection_lost``, ``idle``, ``stalled``, ``protocol_error``, ``too_large``, ``drain``
        """

    def store_ended(self, calling_ae_title: str, status: int, size: int, seconds: float) -> None:
        """A C-STORE was answered.

        :param size: bytes of the dataset
        :param seconds: from its last fragment to the status on its way
        """

    def ingest_in_flight(self, size: int, budget: int) -> None:
        """Bytes of datasets now held in memory, and how many may be."""

    def commitment_reported(self, calling_ae_title: str, committed: int, failed: int) -> None:
        """A request for storage commitment was reported on.

        :param committed: instances that are safe
        :param failed: instances that are not
        """

    # We keep it.
    def write_step(self, step: str, seconds: float) -> None:
        """One step of keeping an object took so long.

        :param step: ``write``, ``sync``, ``name``, ``sync_folder``, ``index``
        """

    def nonconformant(self, doubts: tuple[str, ...], *, quarantined: bool) -> None:
        """An instance is not what the standard says, and is kept all the same.

        :param doubts: ``sop_instance_uid``, ``sop_class_uid``, ``no_study``, ``foreign_group``, ``odd_length``
        :param quarantined: whether it lies apart
        """

    def duplicate(self, outcome: str) -> None:
        """An instance that is already there arrived again.

        :param outcome: ``identical``, ``kept``, ``replaced``, ``added``, ``rejected``
        """

    # We tell of it.
    def event_delivered(self, target: str) -> None:
        """A target took an event."""

    def event_failed(self, target: str) -> None:
        """An attempt to deliver an event to a target failed."""

    def study_completed(self) -> None:
        """A study received no instance for the settling time."""

    def outbox(self, pending: int, oldest: float | None) -> None:
        """So many events wait to be delivered.

        :param oldest: when the oldest of them happened, in seconds since the epoch; None when none waits
        """


NULL_OBSERVER = Observer()
