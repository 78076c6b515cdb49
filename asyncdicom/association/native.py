"""Engine ``native``, the requestor: an association on the event loop, without a thread of its own."""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import anyio

from asyncdicom.association import transport
from asyncdicom.association.contract import Stopwatch
from asyncdicom.association.dialogue import Dataset_, Dialogue
from asyncdicom.association.handshake import Refusal, telling
from asyncdicom.association.instance import Instance
from asyncdicom.association.link import Link
from asyncdicom.association.plain import PlainTransport
from asyncdicom.association.proposal import extended_of, request_to
from asyncdicom.association.query import Query
from asyncdicom.association.workers import workers
from asyncdicom.errors import (
    AssociateTimeout,
    ConnectionLost,
    DatasetError,
    NoPresentationContext,
    OperationError,
    OperationTimeout,
    TLSFailed,
)
from asyncdicom.modality import TLS, Modality
from asyncdicom.outcome import Peer, Phases
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.context import AcceptedContext, PresentationContext
from asyncdicom.upper_layer.message import Command, Message
from asyncdicom.upper_layer.negotiation import AssociateRequest, ExtendedNegotiation

T = TypeVar("T")

# A file up to this size is read in one hop to a thread; a larger one in parts, as the peer takes them.
_PART = 4 << 20
# What is in memory and not larger is copied into one write.
_COPIED = 1 << 20
# Proposals remembered for each modality, and answers for each of them, and how long one may be: who varies them must not fill
# the memory.
_REMEMBERED = 4
_REMEMBERED_LENGTH = 4096
# How long the connection may take to go away, in seconds, before it is cut.
_GOODBYE = 1.0


async def request(
    modality: Modality,
    calling_ae_title: str,
    contexts: Sequence[PresentationContext],
    phases: Phases,
    query: Query | None = None,
) -> NativeAssociation:
    """Request an association.

    :raises OperationError: when it cannot be had
    """
    proposal = _propose(modality, calling_ae_title, tuple(contexts), extended_of(query))
    link = await _connect(modality, phases, proposal)
    association = NativeAssociation(modality, phases, link)
    association.certificate_expires = transport.expiry_of(link.certificate)
    try:
        with Stopwatch(phases, "associate"):
            await association.establish(proposal)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await association.abort()
        raise
    return association


# What both sides agreed on: the contexts, who the peer is, and the maximum length of its PDUs.
_Agreed = tuple[tuple[AcceptedContext, ...], Peer, int]


class _Proposal:
    """A request for association, encoded once, and what was answered to it.

    A sweep asks every modality the same thing every time, and gets the same answer.
    """

    def __init__(self, asked: AssociateRequest) -> None:
        self._asked = asked
        self._answers: dict[bytes, _Agreed] = {}
        self.encoded = negotiation.encode_request(asked)

    def check(self, answer: bytes) -> None:
        """Look at an A-ASSOCIATE-AC.

        :raises ProtocolError: when it is none
        """
        if answer not in self._answers:
            negotiation.decode_accept(memoryview(answer))

    def agreed(self, answer: bytes) -> _Agreed:
        """What an A-ASSOCIATE-AC says.

        :raises ProtocolError: when it is none, or no answer to this
        """
        known = self._answers.get(answer)
        if known is None:
            accept = negotiation.decode_accept(memoryview(answer))
            contexts = tuple(negotiation.accepted_contexts(self._asked, accept))
            peer = Peer(accept.implementation_class_uid or None, accept.implementation_version or None)
            pdu.fragment_length(accept.max_length)
            known = contexts, peer, accept.max_length
            if len(self._answers) < _REMEMBERED and len(answer) <= _REMEMBERED_LENGTH:
                self._answers[answer] = known
        return known


# What each modality is asked for, as long as somebody has the modality: who asks ever new ones leaves nothing in the memory.
_proposals: WeakKeyDictionary[Modality, dict[Hashable, _Proposal]] = WeakKeyDictionary()


def _propose(
    modality: Modality,
    calling_ae_title: str,
    contexts: tuple[PresentationContext, ...],
    extended: tuple[ExtendedNegotiation, ...],
) -> _Proposal:
    known = _proposals.get(modality)
    if known is None:
        known = _proposals[modality] = {}
    kind = calling_ae_title, contexts, extended
    proposal = known.get(kind)
    if proposal is None:
        if len(known) >= _REMEMBERED:
            known.clear()
        proposal = known[kind] = _Proposal(request_to(modality, calling_ae_title, contexts, extended))
    return proposal


async def _connect(modality: Modality, phases: Phases, proposal: _Proposal) -> Link:
    sock = await transport.dial(modality, phases)
    limits = modality.limits
    link = functools.partial(Link, str(modality), limits.max_pdu, limits.max_object_size, proposal.check)
    if modality.tls is None:
        connected = link()
        PlainTransport(sock, connected)
        return connected
    refusal = Refusal(sock)
    with telling(refusal):
        return await _secure(modality, modality.tls, sock, link, refusal, phases)


async def _secure(
    modality: Modality, tls: TLS, sock: socket.socket, link: Callable[[], Link], refusal: Refusal, phases: Phases
) -> Link:
    started = time.monotonic()
    limit = modality.timeouts.connect
    loop = asyncio.get_running_loop()
    try:
        context = await loop.run_in_executor(workers(), transport.client_context, tls)
        with anyio.fail_after(limit):
            name = tls.server_name or modality.host
            return (
                await loop.create_connection(link, sock=sock, ssl=context, server_hostname=name, ssl_shutdown_timeout=_GOODBYE)
            )[1]
    except OSError as error:
        sock.close()
        if isinstance(error, TimeoutError) and refusal.error is None:
            raise TLSFailed(f"{modality}: no TLS handshake in {limit:g} s; does the peer speak TLS?") from None
        raise transport.tls_failure(modality, refusal.error or error) from error
    except BaseException:
        sock.close()
        raise
    finally:
        phases.tls = time.monotonic() - started


class NativeAssociation(Dialogue):
    """An association on the event loop."""

    def __init__(self, modality: Modality, phases: Phases, link: Link) -> None:
        super().__init__(modality, phases)
        self._link = link
        self._max_length = 0
        # A message that is encoded already, by its command set.
        self._prepared: tuple[Command, bytes] | None = None

    async def establish(self, proposal: _Proposal) -> None:
        """Send the request for association, and take the answer (PS3.8 section 9.3.2).

        :raises OperationError: when it is not accepted
        """
        timeout = self.modality.timeouts.associate
        self._link.write(proposal.encoded)
        answer = await self._link.wait(lambda: self._link.answer, timeout, self._unanswered, in_all=True)
        self.accepted, self.peer, self._max_length = proposal.agreed(answer)
        if not self.accepted:
            raise NoPresentationContext(f"{self.modality}: accepted none of the presentation contexts")

    def _unanswered(self) -> OperationError:
        return AssociateTimeout(f"{self.modality}: no answer in {self.modality.timeouts.associate:g} s")

    @property
    def is_established(self) -> bool:
        """Whether operations can be asked for."""
        return self._link.ended is None and self._link.answer is not None

    def ending(self) -> OperationError:
        """Why the association is over."""
        ended = self._link.ended
        return ConnectionLost(f"{self.modality}: the association is over") if ended is None else self._link.why(ended)

    async def run_blocking(self, function: Callable[..., T], *args: Any) -> T:
        """Run what blocks on a thread."""
        return await asyncio.get_running_loop().run_in_executor(workers(), function, *args)

    async def send(self, context: AcceptedContext, command: Command, dataset: Dataset_ = None) -> None:
        """Send a message."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] is command:
            self._link.write(prepared[1])
            await self._drained()
            return
        encoded = dimse.encode_command(command)
        if isinstance(dataset, Instance) and _is_copied(dataset):
            dataset = dataset.data
        if isinstance(dataset, Instance):
            parts = self._parts(dataset)
            first = await self._next_part(parts, dataset)
            self._link.write(pdu.encode_message(context.context_id, encoded, None, max_length=self._max_length))
            await self._send_parts(context.context_id, first, parts, dataset)
            return
        self._link.write(pdu.encode_message(context.context_id, encoded, dataset, max_length=self._max_length))
        await self._drained()

    def prepare(self, context: AcceptedContext, command: Command, dataset: Dataset_) -> None:
        """Encode the message that is sent next."""
        if isinstance(dataset, Instance) and _is_copied(dataset):
            encoded = dimse.encode_command(command)
            message = pdu.encode_message(context.context_id, encoded, dataset.data, max_length=self._max_length)
            self._prepared = command, message

    def _parts(self, instance: Instance) -> Iterator[tuple[bytes, bool]]:
        """The dataset of an instance in parts, each with whether it is the last; blocks."""
        if instance.data is not None or instance.path is None:
            yield instance.data or b"", True
            return
        # All parts but the last are a whole number of fragments, so that no fragment is cut short by the way we read.
        size = max(1, _PART // pdu.fragment_length(self._max_length)) * pdu.fragment_length(self._max_length)
        with Path(instance.path).open("rb") as file:
            file.seek(instance.offset)
            part = file.read(size)
            while True:
                following = file.read(size) if len(part) == size else b""
                yield part, not following
                if not following:
                    return
                part = following

    async def _next_part(self, parts: Iterator[tuple[bytes, bool]], instance: Instance) -> tuple[bytes, bool]:
        try:
            if instance.data is not None:
                return next(parts)
            return await self.run_blocking(next, parts)
        except OSError as error:
            raise DatasetError(f"{instance.path}: cannot be read: {error.strerror or error}") from error

    async def _send_parts(
        self, context_id: int, part: tuple[bytes, bool], parts: Iterator[tuple[bytes, bool]], instance: Instance
    ) -> None:
        while True:
            data, is_last = part
            self._link.write(b"".join(_fragments(context_id, data, self._max_length, is_last)))
            await self._drained()
            if is_last:
                return
            try:
                part = await self._next_part(parts, instance)
            except DatasetError:
                # Half a message is on its way: nothing can follow it but the end.
                await self.abort()
                raise

    async def _drained(self) -> None:
        timeout = self.modality.timeouts.operation
        try:
            await self._link.drained(timeout, lambda: OperationTimeout(f"{self.modality}: read nothing for {timeout:g} s"))
        except OperationTimeout:
            await self.abort()
            raise

    @property
    def waiting(self) -> int:
        """Messages that are here, and not yet received."""
        return self._link.waiting

    async def receive(self, seconds: float) -> Message:
        """The peer's next message."""
        message = self._link.take()
        if message is not None:
            return message
        try:
            return await self._link.wait(
                self._link.take, seconds, lambda: OperationTimeout(f"{self.modality}: no answer in {seconds:g} s")
            )
        except OperationTimeout:
            await self.abort()
            raise

    async def release(self) -> None:
        """Release the association."""
        try:
            if self.outstanding is not None:
                await self.outstanding.stop()
            if self.is_established:
                timeout = self.modality.timeouts.release
                with Stopwatch(self.phases, "release"):
                    self._link.is_released = True
                    self._link.write(pdu.encode_release_rq())
                    await self._link.over(timeout)
        finally:
            await self.abort()

    async def abort(self) -> None:
        """Abort the association, and give back its descriptor."""
        # Its answer will not come.
        self.outstanding = None
        self._link.abort()
        if not self._link.is_gone:
            with anyio.CancelScope(shield=True):
                await self._link.closed(_GOODBYE)


def _is_copied(instance: Instance) -> bool:
    return instance.data is not None and instance.size <= _COPIED


def _fragments(context_id: int, data: bytes, max_length: int, is_last: bool) -> Iterator[bytes | memoryview]:
    if is_last:
        yield from pdu.encode_data(context_id, data, command=False, max_length=max_length)
        return
    size = pdu.fragment_length(max_length)
    view = memoryview(data)
    for at in range(0, len(view), size):
        fragment = view[at : at + size]
        yield pdu.data_header(context_id, len(fragment), command=False, last=False)
        yield fragment
