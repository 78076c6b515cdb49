"""An acceptor that says exactly what its script tells it to: for peers that no simulated modality stands for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from asyncdicom import Modality, Timeouts
from asyncdicom.errors import OperationError
from asyncdicom.testing import Wire
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.message import Command
from asyncdicom.upper_layer.negotiation import AssociateAccept, AssociateRequest, ContextResult
from asyncdicom.upper_layer.pdu import PDUType

TIMEOUTS = Timeouts(resolve=1.0, connect=1.0, associate=1.0, operation=1.0, release=0.5, move=1.0)

Script = Callable[[Wire], Awaitable[None]]


@dataclass
class Scripted:
    """A listening peer.

    :ivar connections: connections that came
    :ivar errors: what went wrong in the scripts, other than that the other side was gone
    """

    port: int
    host: str = "127.0.0.1"
    connections: int = 0
    errors: list[Exception] = field(default_factory=list)

    def modality(self, **fields: Any) -> Modality:
        """The peer as a modality with short timeouts."""
        fields.setdefault("timeouts", TIMEOUTS)
        return Modality("scripted", "SCRIPTED", self.host, self.port, **fields)


@asynccontextmanager
async def scripted(script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Scripted]:
    """Listen, and play the script to every connection; it is closed when the script is over."""
    peer = Scripted(0, host)
    playing: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of ours: one that asyncio's server makes is not to be cancelled.
        task = asyncio.create_task(play(Wire(reader, writer)))
        playing.add(task)
        task.add_done_callback(playing.discard)
        peer.connections += 1

    async def play(wire: Wire) -> None:
        try:
            await script(wire)
        except OperationError:
            pass  # The other side is gone, which is its right.
        except Exception as error:
            peer.errors.append(error)
        finally:
            await wire.close()

    server = await asyncio.start_server(connected, host, 0, ssl=tls)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        server.close()
        for task in list(playing):
            task.cancel()
        while playing:
            await asyncio.wait(set(playing))
    if peer.errors:
        raise ExceptionGroup("the script failed", peer.errors)


async def accept(
    wire: Wire, *, edit: Callable[[AssociateAccept], AssociateAccept] | None = None, **fields: Any
) -> AssociateRequest:
    """Take the request for association, and accept all that it proposes.

    :param edit: changes the answer before it is sent
    :param fields: further fields of the answer
    """
    found = await wire.receive_pdu()
    assert found is not None
    assert found.type == PDUType.ASSOCIATE_RQ
    request = negotiation.decode_request(found.body)
    answer = AssociateAccept(
        request.called_ae_title,
        request.calling_ae_title,
        tuple(ContextResult(context.context_id, 0, context.transfer_syntaxes[0]) for context in request.contexts),
        roles=request.roles,
        **fields,
    )
    wire.max_length = request.max_length
    await wire.send(negotiation.encode_accept(edit(answer) if edit else answer))
    return request


async def answer(wire: Wire, status: int = 0x0000) -> Command:
    """Take one request and answer it without a dataset."""
    found = await wire.receive_message()
    await wire.send_message(found.context_id, dimse.response(found.command, status))
    return found.command


async def release(wire: Wire) -> None:
    """Take the request for release, and answer it."""
    found = await wire.receive_pdu()
    assert found is not None
    assert found.type == PDUType.RELEASE_RQ, found.name
    await wire.send(pdu.encode_release_rp())
