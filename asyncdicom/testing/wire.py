"""A raw peer: it says exactly the bytes that it is told to, and reads what comes back.

For tests of an acceptor at the level of bytes, and for tests that want a requestor with nothing behind it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from asyncdicom.errors import ConnectionLost, NoPresentationContext, OperationError, OperationTimeout, ProtocolError
from asyncdicom.testing.content import HeldInstance
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.context import VERIFICATION, AcceptedContext, PresentationContext
from asyncdicom.upper_layer.message import Command, CommandField, Message, MessageReader
from asyncdicom.upper_layer.negotiation import AssociateAccept, AssociateRequest
from asyncdicom.upper_layer.pdu import PDU, PDUReader, PDUType

_CHUNK = 65_536
_CLOSE_DEADLINE = 2.0


class Wire:
    """A TCP connection on which the test says every byte itself.

    It is an async context manager that closes the connection; so is :meth:`connect`'s result. Whatever waits for the peer
    has a deadline and raises :class:`~asyncdicom.errors.OperationTimeout` at it.

    :ivar timeout: seconds that each wait for the peer may take
    :ivar accepted: what was agreed by :meth:`associate`
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float = 5.0) -> None:
        self.timeout = timeout
        self.accepted: tuple[AcceptedContext, ...] = ()
        self.max_length = 0
        self._reader = reader
        self._writer = writer
        self._frames = PDUReader(pdu.MAX_ASSOCIATE_LENGTH)
        self._messages = MessageReader(1 << 31)
        self._values: list[pdu.PDV] = []
        self._message_id = 0

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        ssl: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        timeout: float = 5.0,
    ) -> Self:
        """Connect.

        :param ssl: speak TLS
        :param server_hostname: the name to verify instead of the host
        :param timeout: seconds, for this and for each later wait
        :raises OperationTimeout: when there is no answer in time
        :raises OSError: when the connection is refused, or the TLS handshake fails
        """
        if ssl is not None and server_hostname is None:
            server_hostname = host
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_connection(host, port, ssl=ssl, server_hostname=server_hostname)
        except TimeoutError:
            raise OperationTimeout(f"no connection within {timeout} s") from None
        return cls(reader, writer, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # Bytes and PDUs.

    async def send(self, data: bytes | memoryview) -> None:
        """Send bytes.

        :raises ConnectionLost: when the peer has closed or reset the connection
        :raises OperationTimeout: when the peer does not read
        """
        try:
            self._writer.write(data)
            async with asyncio.timeout(self.timeout):
                await self._writer.drain()
        except TimeoutError:
            raise OperationTimeout(f"the peer has not read for {self.timeout} s") from None
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    async def receive_pdu(self, timeout: float | None = None) -> PDU | None:
        """Read one PDU.

        :param timeout: seconds, instead of :attr:`timeout`
        :return: None when the peer has closed the connection
        :raises ConnectionLost: when the peer has reset it
        :raises OperationTimeout: when no whole PDU comes in time
        :raises ProtocolError: when what comes is no PDU
        """
        limit = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                while (found := self._frames.next_pdu()) is None:
                    data = await self._reader.read(_CHUNK)
                    if not data:
                        return None
                    self._frames.feed(data)
        except TimeoutError:
            raise OperationTimeout(f"no whole PDU within {limit} s, {self._frames.pending} bytes of one") from None
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        return found

    async def receive_bytes(self, timeout: float | None = None) -> bytes:
        """Read what comes, whatever it is; empty when the peer has closed the connection.

        Not to be mixed with :meth:`receive_pdu`, which may hold bytes already.

        :raises ConnectionLost: when the peer has reset it
        :raises OperationTimeout: when nothing comes in time
        """
        limit = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                return await self._reader.read(_CHUNK)
        except TimeoutError:
            raise OperationTimeout(f"nothing within {limit} s") from None
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    async def closed(self, timeout: float | None = None) -> float:
        """Wait until the peer closes or resets the connection; what it says before is passed over.

        :return: seconds that it took
        :raises OperationTimeout: when it does not
        """
        start = time.monotonic()
        limit = self.timeout if timeout is None else timeout
        while True:
            try:
                data = await self.receive_bytes(max(0.0, start + limit - time.monotonic()))
            except ConnectionLost:
                data = b""
            if not data:
                return time.monotonic() - start

    # Associations and messages.

    async def associate(
        self,
        contexts: Sequence[PresentationContext] = (PresentationContext(VERIFICATION),),
        *,
        called_ae_title: str = "ANY-SCP",
        calling_ae_title: str = "WIRE",
        **fields: Any,
    ) -> AssociateAccept:
        """Request an association.

        :param fields: further fields of :class:`~asyncdicom.upper_layer.negotiation.AssociateRequest`
        :raises AssociationRejected: when it is rejected
        :raises AssociationAborted: when it is aborted
        :raises ConnectionLost: when the connection ends instead
        :raises OperationTimeout: when no whole answer comes in time
        :raises ProtocolError: when what comes is no answer
        """
        proposed, roles = negotiation.propose(contexts)
        fields.setdefault("roles", roles)
        request = AssociateRequest(called_ae_title, calling_ae_title, proposed, **fields)
        # A peer that sends more than this announces is caught.
        self._frames.max_data_length = request.max_length or pdu.MAX_ASSOCIATE_LENGTH
        await self.send(negotiation.encode_request(request))
        found = self._judge(await self.receive_pdu())
        if found.type != PDUType.ASSOCIATE_AC:
            raise ProtocolError(f"{found.name} in answer to A-ASSOCIATE-RQ")
        accept = negotiation.decode_accept(found.body)
        self.accepted = negotiation.accepted_contexts(request, accept)
        self.max_length = accept.max_length
        return accept

    def context_of(self, sop_class: str, transfer_syntax: str | None = None) -> int:
        """Return the ID of an accepted presentation context.

        :raises NoPresentationContext: when there is none
        """
        for context in self.accepted:
            if context.abstract_syntax == sop_class and transfer_syntax in (None, context.transfer_syntax):
                return context.context_id
        raise NoPresentationContext(f"no presentation context was accepted for {sop_class}")

    async def send_message(
        self, context_id: int, command: Command, dataset: bytes | bytearray | memoryview | None = None
    ) -> None:
        """Send a message, fragmented as the peer's maximum length demands."""
        encoded = dimse.encode_command(command)
        await self.send(pdu.encode_message(context_id, encoded, dataset, max_length=self.max_length))

    async def receive_message(self, timeout: float | None = None) -> Message:
        """Read one message.

        :param timeout: seconds that each of its PDUs may take, instead of :attr:`timeout`
        :raises AssociationAborted: when A-ABORT comes instead
        :raises ConnectionLost: when the connection ends instead
        """
        while True:
            while self._values:
                whole = self._messages.receive(self._values.pop(0))
                if whole is not None:
                    return whole
            found = self._judge(await self.receive_pdu(timeout))
            if found.type != PDUType.DATA_TF:
                raise ProtocolError(f"{found.name} where a message was due")
            self._values = list(pdu.decode_data(found.body))

    def next_message_id(self) -> int:
        """Return the Message ID for the next request."""
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    async def echo(self) -> int:
        """Do a C-ECHO and return its status."""
        context_id = self.context_of(VERIFICATION)
        message_id = self.next_message_id()
        await self.send_message(context_id, dimse.request(CommandField.C_ECHO_RQ, message_id, VERIFICATION, dataset=False))
        return (await self.receive_message()).command.status

    async def store(self, instance: HeldInstance | bytes, **elements: Any) -> int:
        """Do a C-STORE and return its status.

        :param instance: one taken apart, or a whole DICOM file
        :param elements: further elements of the request by keyword
        """
        if isinstance(instance, bytes):
            instance = HeldInstance.read(instance)
        context_id = self.context_of(instance.sop_class_uid, instance.transfer_syntax_uid)
        elements.setdefault("AffectedSOPInstanceUID", instance.sop_instance_uid)
        request = dimse.request(
            CommandField.C_STORE_RQ, self.next_message_id(), instance.sop_class_uid, dataset=True, **elements
        )
        await self.send_message(context_id, request, instance.dataset)
        return (await self.receive_message()).command.status

    async def release(self) -> bool:
        """Ask for release.

        :return: whether the peer answered with A-RELEASE-RP, not by closing the connection
        """
        await self.send(pdu.encode_release_rq())
        found = await self.receive_pdu()
        return found is not None and found.type == PDUType.RELEASE_RP

    async def abort(self, source: int = 0, reason: int = 0) -> None:
        """Send A-ABORT."""
        await self.send(pdu.encode_abort(source, reason))

    def reset(self) -> None:
        """Close the connection with RST, at once."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection, as it is; by force when the peer does not take what is still to be sent."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_DEADLINE):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            # The peer was faster, or does not read.
            self._writer.transport.abort()
        except asyncio.CancelledError:
            self._writer.transport.abort()
            raise

    def _judge(self, found: PDU | None) -> PDU:
        if found is None:
            raise ConnectionLost("the peer closed the connection")
        if found.type == PDUType.ASSOCIATE_RJ:
            raise pdu.decode_reject(found.body)
        if found.type == PDUType.ABORT:
            raise pdu.decode_abort(found.body)
        return found


@dataclass(frozen=True, slots=True)
class Delivery:
    """An instance on its way to where a C-GET or C-MOVE wants it.

    :ivar instance: the instance
    :ivar destination: the move destination's AE title; empty for C-GET
    :ivar originator_ae_title: who asked for it
    :ivar originator_message_id: by which message
    """

    instance: HeldInstance
    destination: str = ""
    originator_ae_title: str = ""
    originator_message_id: int = 0


@asynccontextmanager
async def sender(
    host: str,
    port: int,
    instances: Iterable[HeldInstance],
    *,
    called_ae_title: str = "ANY-SCP",
    calling_ae_title: str = "SENDER",
    timeout: float = 30.0,
) -> AsyncIterator[Callable[[Delivery], Awaitable[int]]]:
    """Open an association for these instances, and yield what sends one of them and returns its status.

    :param timeout: seconds that each wait for the peer may take
    """
    kinds = dict.fromkeys((instance.sop_class_uid, instance.transfer_syntax_uid) for instance in instances)
    contexts = [PresentationContext(sop_class, (transfer_syntax,)) for sop_class, transfer_syntax in kinds]
    async with await Wire.connect(host, port, timeout=timeout) as wire:
        await wire.associate(contexts, called_ae_title=called_ae_title, calling_ae_title=calling_ae_title)

        async def deliver(delivery: Delivery) -> int:
            moved = bool(delivery.originator_ae_title)
            return await wire.store(
                delivery.instance,
                MoveOriginatorApplicationEntityTitle=delivery.originator_ae_title if moved else None,
                MoveOriginatorMessageID=delivery.originator_message_id if moved else None,
            )

        yield deliver
        # Every status is known by now: how the association ends changes none of them.
        with suppress(OperationError):
            await wire.release()


async def send_instances(
    host: str,
    port: int,
    files: Iterable[bytes],
    *,
    called_ae_title: str = "ANY-SCP",
    calling_ae_title: str = "SENDER",
    timeout: float = 30.0,
) -> list[int]:
    """Send DICOM files by C-STORE on one association, and return the statuses.

    :param files: whole DICOM files, such as :func:`~asyncdicom.testing.synthetic_study` gives
    :param timeout: seconds that each wait for the peer may take
    :raises OperationError: when the association fails
    """
    instances = [HeldInstance.read(file) for file in files]
    if not instances:
        return []
    opened = sender(host, port, instances, called_ae_title=called_ae_title, calling_ae_title=calling_ae_title, timeout=timeout)
    async with opened as deliver:
        return [await deliver(Delivery(instance)) for instance in instances]
