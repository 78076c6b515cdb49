"""What an association is served with, whichever engine serves it: who is there, who decides, and who takes the instances."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from asyncdicom.modality import UserIdentity
from asyncdicom.observe import Observer
from asyncdicom.scp import access as access_module
from asyncdicom.scp.access import EVERY_OPERATION, Access, OperationName
from asyncdicom.scp.contexts import results_of
from asyncdicom.scp.identity import Identities, IdentityVerification, Refusal
from asyncdicom.scp.ingest import Ingest
from asyncdicom.scp.refusals import Refusals
from asyncdicom.scp.services import Service
from asyncdicom.upper_layer.context import PresentationContext
from asyncdicom.upper_layer.negotiation import ContextResult, ProposedContext, Result


@dataclass(slots=True)
class ServedPeer:
    """Who is there.

    :ivar address: its address
    :ivar names: in its certificate, when it showed one
    :ivar calling_ae_title: as it calls itself
    :ivar called_ae_title: as it calls us
    :ivar operations: what it may do, once its request was answered
    """

    address: str
    names: frozenset[str] = frozenset()
    calling_ae_title: str = ""
    called_ae_title: str = ""
    operations: frozenset[OperationName] = EVERY_OPERATION


class Serving(Protocol):
    """An association that is being served."""

    @property
    def is_busy(self) -> bool:
        """Whether a message is arriving, waiting or being handled."""
        ...

    def give_up(self) -> None:
        """Abort it, whatever is under way. Called on the loop."""


@dataclass
class Door:
    """The decisions and limits that all associations of one storage SCP share.

    ``decide`` and ``leave`` are called from any thread; the others on the loop.

    :ivar serving: the connections that are being served, also before they are associations
    :ivar count: established associations
    """

    ae_title: str
    access: Access
    ingest: Ingest
    observer: Observer
    max_associations: int
    max_pdu: int
    max_object_size: int
    require_called_ae_title: bool
    idle_timeout: float
    min_rate: int
    promiscuous: bool
    bind: dict[str, frozenset[str]]
    contexts: Sequence[PresentationContext] | None = None
    services: Mapping[tuple[str, int], Service] = field(default_factory=dict)
    identities: Identities | None = None
    verification: IdentityVerification = field(default_factory=IdentityVerification, repr=False)
    draining: bool = False
    count: int = 0
    serving: set[Serving] = field(default_factory=set)
    _admitted: int = 0
    _refusals: Refusals = field(default_factory=Refusals, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @functools.cached_property
    def sop_classes(self) -> frozenset[str]:
        """The SOP classes of the services."""
        return frozenset(sop_class for sop_class, _ in self.services)

    def decide(self, peer: ServedPeer) -> tuple[str, tuple[int, int, int]] | None:
        """Whether a request for association is rejected.

        :return: None to accept, else the reason for :class:`asyncdicom.observe.Observer` and the A-ASSOCIATE-RJ
        """
        if self.draining:
            return "draining", access_module.TEMPORARY_CONGESTION
        if self.require_called_ae_title and peer.called_ae_title != self.ae_title:
            return "called_ae_title", access_module.CALLED_AE_TITLE_NOT_RECOGNIZED
        if not self.access.admits(peer.calling_ae_title, peer.address):
            return "calling_ae_title", access_module.CALLING_AE_TITLE_NOT_RECOGNIZED
        if self.bind and not any(peer.calling_ae_title in self.bind.get(name, ()) for name in peer.names):
            return "calling_ae_title", access_module.CALLING_AE_TITLE_NOT_RECOGNIZED
        with self._lock:
            if self._admitted >= self.max_associations:
                return "limit", access_module.LOCAL_LIMIT_EXCEEDED
            self._admitted += 1
        return None

    async def identify(self, identity: UserIdentity | None, peer: ServedPeer) -> Refusal | None:
        """Whether a request for association that was let in is rejected for its user identity (PS3.7 D.3.3.7).

        :return: None to accept; who is rejected has to leave
        """
        return None if self.identities is None else await self.verification.judge(self.identities, identity, peer.address)

    def results_of(self, proposed: Iterable[ProposedContext], peer: ServedPeer) -> tuple[ContextResult, ...]:
        """What becomes of each presentation context of a peer that is let in; from now on it is held to what it may do."""
        peer.operations = self.access.operations(peer.calling_ae_title, peer.address)
        results = results_of(proposed, self.contexts, self.promiscuous, self.sop_classes, peer.operations)
        if any(result.result == Result.USER_REJECTION for result in results):
            self._refusals.tell("operations", peer.calling_ae_title, peer.address)
        return results

    def leave(self) -> None:
        """One that was let in is gone. Called from any thread."""
        with self._lock:
            self._admitted -= 1

    def refused(self, reason: str, peer: ServedPeer, detail: str = "") -> None:
        """A peer was turned away.

        :param detail: what is known besides the reason
        """
        self._refusals.tell(reason, peer.calling_ae_title, peer.address, detail)
        self.observer.scp_association_rejected(reason, peer.calling_ae_title, peer.address)

    def store_refused(self, peer: ServedPeer, status: int) -> None:
        """A peer that may not store tried to, and was answered so."""
        self._refusals.tell("operations", peer.calling_ae_title, peer.address, "it may not store, and does: see [[scp.allow]]")
        self.observer.store_ended(peer.calling_ae_title, status, 0, 0.0)

    def established(self, peer: ServedPeer) -> None:
        """An association stands."""
        self.count += 1
        self.observer.scp_association_opened(peer.calling_ae_title, peer.address)

    def closed(self, peer: ServedPeer, ending: str | None) -> None:
        """An association is over.

        :param ending: why it was aborted; None after a release
        """
        self.count -= 1
        if ending is not None:
            self.observer.scp_association_aborted(ending, peer.calling_ae_title, peer.address)
        self.observer.scp_association_closed(peer.calling_ae_title, peer.address)
