"""A simulated modality: a device on the event loop that behaves as it is told, and remembers what it saw."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydicom.dataset import Dataset

from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import TLS, Modality, check_ae_title
from asyncdicom.outcome import SubOperations
from asyncdicom.testing.behaviour import Behaviour, Fault
from asyncdicom.testing.certificates import Certificates
from asyncdicom.testing.content import HeldInstance, Keep, Matches, Stored, as_dataset, encode_dataset
from asyncdicom.testing.served import Negotiated, Served
from asyncdicom.testing.sockets import BlackHole, Listener, listening_socket, refusing_socket
from asyncdicom.testing.wire import Delivery
from asyncdicom.upper_layer.message import CommandField, Message
from asyncdicom.upper_layer.negotiation import AssociateRequest

# What the last of many is kept of: enough for a test to look at, nothing that grows for ever.
_REMEMBERED = 1_000
_CLOSE_DEADLINE = 5.0
_TLS_FAULTS = frozenset({Fault.TLS, Fault.SILENT_TLS})


class _Everything(Collection[str]):
    """Every transfer syntax."""

    def __contains__(self, item: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class SimulatedModality:
    """A device that listens once entered; an async context manager.

    Counters are plain attributes, current at every moment. Exceptions of callables that the test gave are raised when the
    context is left.

    :param behaviour: what is wrong with it: a :class:`Fault`, a :class:`Behaviour`, or text such as ``slow:0.5``
    :param host: a loopback address
    :param port: 0 for a free one
    :param ae_title: its AE title
    :param matches: what it answers to C-FIND: datasets or mappings of keyword to value, the same for every query; or a
        function that is given the identifier and returns them
    :param instances: DICOM files that it gives away by C-GET and C-MOVE, those that the identifier's UIDs and Patient ID name
    :param sub_operations: what it reports of every C-MOVE, without sending anything; None to count its instances
    :param deliver: called for each instance of a C-MOVE; returns the status of the sub-operation
    :param destinations: AE title to host and port: where C-MOVE really sends to. With neither ``deliver`` nor
        ``destinations`` it claims to have sent, and sends nothing
    :param keep: what it remembers of each instance that it is sent: bytes and hash, the hash, or neither
    :param store_status: what it answers to C-STORE
    :param transfer_syntaxes: those that it accepts; None for all
    :param sop_classes: those that it accepts; None for all
    :param max_length: the maximum PDU length that it announces, in bytes
    :param max_object_size: the largest dataset that it takes, in bytes
    :param max_associations: associations at once; more are rejected: local limit exceeded
    :param require_called_ae_title: reject requests for another AE title
    :param tls: certificates or a server's context; with it, it speaks TLS
    :param sub_operation_timeout: seconds that a peer may take to answer a C-STORE sub-operation

    :ivar associations: associations accepted so far
    :ivar current: associations at this moment
    :ivar peak: the most that there ever were at once
    :ivar connections: connections accepted so far
    :ivar requests_received: requests for association so far; :attr:`requests` holds the last of them
    :ivar rejections: requests rejected so far
    :ivar aborts_received: A-ABORTs received so far
    :ivar releases_received: A-RELEASE-RQs received so far
    :ivar cancels_received: C-CANCELs received so far
    :ivar lost: associations whose connection ended without release or abort
    :ivar echoes: C-ECHOs so far; so are :attr:`finds`, :attr:`gets`, :attr:`moves`, :attr:`stores`
    :ivar stored: the instances that it was sent, in order
    :ivar queries: the last identifiers that it was asked
    :ivar move_destinations: the last move destinations
    :ivar normalized: the last DIMSE-N requests
    :ivar protocol_errors: the last things that peers did wrong
    :ivar errors: exceptions of the test's own callables
    """

    def __init__(
        self,
        behaviour: Behaviour | Fault | str = Fault.HEALTHY,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ae_title: str = "SIM",
        matches: Matches = (),
        instances: Iterable[bytes | HeldInstance] = (),
        sub_operations: SubOperations | None = None,
        deliver: Callable[[Delivery], Awaitable[int]] | None = None,
        destinations: Mapping[str, tuple[str, int]] | None = None,
        keep: Keep = "bytes",
        store_status: int = 0x0000,
        transfer_syntaxes: Collection[str] | None = None,
        sop_classes: Collection[str] | None = None,
        max_length: int = 131_072,
        max_object_size: int = 1 << 31,
        max_associations: int | None = None,
        require_called_ae_title: bool = False,
        tls: Certificates | ssl.SSLContext | None = None,
        sub_operation_timeout: float = 30.0,
    ) -> None:
        self.behaviour = Behaviour.of(behaviour)
        self.host = host
        self.ae_title = check_ae_title(ae_title)
        self.matches = matches
        self.instances = [one if isinstance(one, HeldInstance) else HeldInstance.read(one) for one in instances]
        self.sub_operations = sub_operations
        self.deliver = deliver
        self.destinations = destinations
        self.keep = keep
        self.store_status = store_status
        self.transfer_syntaxes: Collection[str] = _Everything() if transfer_syntaxes is None else transfer_syntaxes
        self.sop_classes = sop_classes
        self.max_length = max_length
        self.max_object_size = max_object_size
        self.max_associations = max_associations
        self.require_called_ae_title = require_called_ae_title
        self.tls = tls
        self.sub_operation_timeout = sub_operation_timeout
        if self.behaviour.fault is Fault.TLS and tls is None:
            raise ConfigurationError("tls", "", "a modality that speaks TLS needs certificates: tls=certificates(folder)")

        self.connections = 0
        self.associations = 0
        self.current = 0
        self.peak = 0
        self.requests_received = 0
        self.rejections = 0
        self.aborts_received = 0
        self.releases_received = 0
        self.cancels_received = 0
        self.lost = 0
        self.echoes = 0
        self.finds = 0
        self.gets = 0
        self.moves = 0
        self.stores = 0
        self.stored: list[Stored] = []
        self.requests: deque[AssociateRequest] = deque(maxlen=_REMEMBERED)
        self.queries: deque[Dataset] = deque(maxlen=_REMEMBERED)
        self.move_destinations: deque[str] = deque(maxlen=_REMEMBERED)
        self.normalized: deque[Message] = deque(maxlen=_REMEMBERED)
        self.protocol_errors: deque[str] = deque(maxlen=_REMEMBERED)
        self.errors: list[BaseException] = []

        #: Operations under way, of all connections.
        self.tasks: set[asyncio.Task[None]] = set()
        #: Requests for association with their answers, for those that come again.
        self.negotiated: dict[tuple[Fault, bytes], Negotiated] = {}
        self._port = port
        self._listener: Listener | None = None
        self._reserved: Callable[[], None] | None = None
        self._served: set[Served] = set()
        self._all_gone = asyncio.Event()
        self._encoded: dict[tuple[str, str], list[bytes]] = {}

    @property
    def port(self) -> int:
        """The port; 0 before it listens when none was asked for."""
        return self._port

    def listen_on(self, port: int) -> None:
        """Take another port, before it listens."""
        self._port = port

    async def __aenter__(self) -> Self:
        fault = self.behaviour.fault
        if fault is Fault.REFUSING:
            reserved = refusing_socket(self.host, self._port)
            self._port, self._reserved = reserved.getsockname()[1], reserved.close
        elif fault is Fault.BLACK_HOLE:
            hole = BlackHole(self.host, self._port)
            self._port, self._reserved = hole.port, hole.close
        else:
            context = None if fault is Fault.SILENT_TLS else self._tls_context()
            listener = listening_socket(self.host, self._port)
            self._port = listener.getsockname()[1]
            self._listener = Listener(listener, lambda: Served(self), context)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
        if self.errors and kind is None:
            raise BaseExceptionGroup(f"callables of simulated modality {self.ae_title} failed", self.errors)

    async def close(self) -> None:
        """Stop listening, drop every connection, and return when nothing is left of it."""
        if self._reserved is not None:
            self._reserved()
            self._reserved = None
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
        for served in tuple(self._served):
            served.drop()
        async with asyncio.timeout(_CLOSE_DEADLINE):
            if listener is not None:
                await listener.stopped()
            while self._served:
                self._all_gone.clear()
                await self._all_gone.wait()
            if self.tasks:
                await asyncio.wait(self.tasks)

    def modality(self, name: str | None = None, **fields: Any) -> Modality:
        """Return it as what we know of a peer.

        :param name: its name; the AE title when None
        :param fields: further fields of :class:`~asyncdicom.modality.Modality`
        """
        if self.speaks_tls and "tls" not in fields:
            ca: Path | None = self.tls.ca if isinstance(self.tls, Certificates) else None
            # Certificates are made out to this name, whatever loopback address it listens on.
            fields["tls"] = TLS(ca=ca, server_name="localhost")
        fields.setdefault("ae_title", self.ae_title)
        return Modality(name or self.ae_title, host=self.host, port=self.port, **fields)

    @property
    def speaks_tls(self) -> bool:
        """Whether a peer must use TLS to reach it."""
        return self.tls is not None or self.behaviour.fault in _TLS_FAULTS

    def _tls_context(self) -> ssl.SSLContext | None:
        return self.tls.server_context() if isinstance(self.tls, Certificates) else self.tls

    # What connections ask and tell.

    def behaviour_of_request(self, number: int) -> Behaviour:
        """Return how the request for association with this number, counted from 1, is treated."""
        first = self.behaviour.first
        return self.behaviour if first is None or number <= first else Behaviour()

    def transfer_syntaxes_of(self, abstract_syntax: str) -> Collection[str] | None:
        """Return what is accepted for an abstract syntax; None when it is not supported."""
        return self.transfer_syntaxes if self.sop_classes is None or abstract_syntax in self.sop_classes else None

    def encoded_matches(self, identifier: Dataset, transfer_syntax: str) -> Iterator[bytes]:
        """Yield the matches for an identifier, encoded."""
        if callable(self.matches):
            for match in self.matches(identifier):
                yield self._encode_match(as_dataset(match), identifier, transfer_syntax)
            return
        # Those that do not depend on the query are encoded once.
        key = (transfer_syntax, str(identifier.get("QueryRetrieveLevel", "")))
        if key not in self._encoded:
            self._encoded[key] = [self._encode_match(as_dataset(match), identifier, transfer_syntax) for match in self.matches]
        yield from self._encoded[key]

    def _encode_match(self, match: Dataset, identifier: Dataset, transfer_syntax: str) -> bytes:
        level = identifier.get("QueryRetrieveLevel")
        if level and "QueryRetrieveLevel" not in match:
            # PS3.4 C.4.1.1.3.2: every match names its level.
            copy = Dataset(match)
            copy.QueryRetrieveLevel = level
            match = copy
        return encode_dataset(match, transfer_syntax)

    def held(self, identifier: Dataset) -> list[HeldInstance]:
        """Return the instances that an identifier names."""
        return [instance for instance in self.instances if instance.matches(identifier)]

    def count(self, field: int) -> None:
        """Count an operation."""
        if field == CommandField.C_ECHO_RQ:
            self.echoes += 1
        elif field == CommandField.C_STORE_RQ:
            self.stores += 1
        elif field == CommandField.C_FIND_RQ:
            self.finds += 1
        elif field == CommandField.C_GET_RQ:
            self.gets += 1
        elif field == CommandField.C_MOVE_RQ:
            self.moves += 1

    def connected(self, served: Served) -> None:
        """A connection was accepted."""
        self.connections += 1
        self._served.add(served)
        if self._listener is None:
            # It came while this was being closed.
            served.drop()

    def disconnected(self, served: Served) -> None:
        """A connection is gone."""
        self._served.discard(served)
        if not self._served:
            self._all_gone.set()

    def association_opened(self) -> None:
        """An association was accepted."""
        self.associations += 1
        self.current += 1
        self.peak = max(self.peak, self.current)

    def association_closed(self) -> None:
        """An association is over, by whatever way."""
        self.current -= 1

    @property
    def open_connections(self) -> int:
        """Connections at this moment."""
        return len(self._served)

    def __repr__(self) -> str:
        return (
            f"<SimulatedModality {self.ae_title}@{self.host}:{self.port} {self.behaviour.fault}, "
            f"{self.associations} associations, {self.current} now, {self.peak} at most>"
        )
