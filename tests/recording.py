"""What was on the wire, written down in a form in which two conversations can be compared.

It is read here by hand, from the tables of PS3.7 and PS3.8 alone: the project's own decoders would read away differences such
as padding. What two right implementations may do differently is made the same: Message IDs, the borders of fragments, the order
of presentation contexts and of user-information sub-items, and by which value of Command Data Set Type a dataset is announced.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Words = tuple[Any, ...]

_NAMES = {
    1: "A-ASSOCIATE-RQ",
    2: "A-ASSOCIATE-AC",
    3: "A-ASSOCIATE-RJ",
    4: "P-DATA-TF",
    5: "A-RELEASE-RQ",
    6: "A-RELEASE-RP",
    7: "A-ABORT",
}
_COMMAND_DATA_SET_TYPE = 0x0800
# Message ID, Message ID Being Responded To, Move Originator Message ID (PS3.7 Table E.1-1).
_MESSAGE_IDS = (0x0110, 0x0120, 0x1031)


@dataclass
class Spoken:
    """One side of a conversation.

    :ivar said: PDUs, and messages in place of their P-DATA-TFs, each as a tuple that begins with its name
    :ivar lengths: lengths of the P-DATA-TFs
    :ivar fragments: bytes of each fragment, and whether it is a last one
    """

    said: list[Words] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    fragments: list[tuple[int, bool]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """What was said, by name."""
        return [str(words[0]) for words in self.said]


class MessageIDs:
    """Gives Message IDs numbers in the order in which they are first seen, for both sides of a conversation."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def name(self, number: int) -> str:
        """The name of one."""
        return self._known.setdefault(number, f"#{len(self._known)}")


def spoken(data: bytes, ids: MessageIDs | None = None) -> Spoken:
    """Read what one side said.

    :param ids: the names of Message IDs, when they are to be the same as the other side's
    """
    found = Spoken()
    ids = ids or MessageIDs()
    reader = _Messages(found, ids)
    at = 0
    while len(data) - at >= 6:
        kind, reserved, length = struct.unpack_from(">BBI", data, at)
        if kind not in _NAMES or at + 6 + length > len(data):
            break
        body = data[at + 6 : at + 6 + length]
        at += 6 + length
        if kind == 4:
            found.lengths.append(length)
            reader.feed(body)
        else:
            reader.flush()
            found.said.append((_NAMES[kind], reserved, *(_associate(body) if kind in (1, 2) else (tuple(body),))))
    reader.flush()
    if at < len(data):
        found.said.append(("unfinished", data[at:]))
    return found


def _associate(body: bytes) -> Words:
    """An A-ASSOCIATE-RQ or -AC: the fixed fields, and the items; what is reserved is told too (PS3.8 Tables 9-11 and 9-17)."""
    items = sorted(_items(body[68:]), key=lambda item: (str(item[0]), item[2] if item[0] in (0x20, 0x21) else ()))
    return body[:4], body[4:20], body[20:36], body[36:68], tuple(items)


def _items(data: bytes) -> Iterator[Words]:
    at = 0
    while len(data) - at >= 4:
        kind, reserved, length = struct.unpack_from(">BBH", data, at)
        content = data[at + 4 : at + 4 + length]
        at += 4 + length
        if kind in (0x20, 0x21):
            yield (kind, reserved, tuple(content[:4]), *_items(content[4:]))
        elif kind == 0x50:
            yield (kind, reserved, *sorted(_items(content), key=repr))
        else:
            yield (kind, reserved, content)
    if at != len(data):
        yield ("unfinished", data[at:])


class _Messages:
    """Puts messages together from presentation data values (PS3.8 Annex E)."""

    def __init__(self, found: Spoken, ids: MessageIDs) -> None:
        self._found = found
        self._ids = ids
        self._clear()

    def _clear(self) -> None:
        self._context: int | None = None
        self._command = b""
        self._dataset: bytes | None = None
        self._has_command = False

    def feed(self, body: bytes) -> None:
        """Take a P-DATA-TF."""
        at = 0
        while len(body) - at >= 6:
            length, context, control = struct.unpack_from(">IBB", body, at)
            data = body[at + 6 : at + 4 + length]
            at += 4 + length
            self._found.fragments.append((len(data), bool(control & 2)))
            if self._context not in (None, context):
                self.flush()
            self._context = context
            if control & 1:
                self._command += data
                self._has_command = bool(control & 2)
            else:
                self._dataset = (self._dataset or b"") + data
            if control & 2 and (not control & 1 or not self._announces_dataset()):
                self._whole()
        if at != len(body):
            self._found.said.append(("unfinished", body[at:]))

    def _elements(self) -> list[tuple[int, int, bytes]]:
        found, at = [], 0
        while len(self._command) - at >= 8:
            group, element, length = struct.unpack_from("<HHI", self._command, at)
            found.append((group, element, self._command[at + 8 : at + 8 + length]))
            at += 8 + length
        return found

    def _announces_dataset(self) -> bool:
        return any(
            element == _COMMAND_DATA_SET_TYPE and value != b"\x01\x01"
            for group, element, value in self._elements()
            if group == 0
        )

    def _whole(self) -> None:
        elements: list[tuple[str, bytes | str | bool]] = []
        for group, element, value in self._elements():
            told: bytes | str | bool = value
            if element in _MESSAGE_IDS and len(value) == 2:
                told = self._ids.name(int.from_bytes(value, "little"))
            elif element == _COMMAND_DATA_SET_TYPE:
                told = value != b"\x01\x01"
            elements.append((f"({group:04X},{element:04X})", told))
        self._found.said.append(("message", self._context, tuple(elements), self._dataset))
        self._clear()

    def flush(self) -> None:
        """What has begun will not be completed."""
        if self._context is not None:
            self._found.said.append(("part of a message", self._context))
        self._clear()


@dataclass
class Tape:
    """What went through a recording proxy.

    :ivar port: where the proxy listens
    :ivar requestor: bytes of the side that connected
    :ivar acceptor: bytes of the side that it connected to
    """

    port: int = 0
    requestor: bytearray = field(default_factory=bytearray)
    acceptor: bytearray = field(default_factory=bytearray)
    _open: int = 0
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)

    async def finished(self, seconds: float = 5.0) -> None:
        """Return once the connection is over."""
        async with asyncio.timeout(seconds):
            await self._quiet.wait()

    def both(self) -> tuple[Spoken, Spoken]:
        """What the requestor and the acceptor said."""
        ids = MessageIDs()
        return spoken(bytes(self.requestor), ids), spoken(bytes(self.acceptor), ids)


@asynccontextmanager
async def recording(port: int, host: str = "127.0.0.1") -> AsyncIterator[Tape]:
    """A proxy for one connection that writes down what passes; ends and resets pass, too."""
    tape = Tape()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of ours: one that asyncio's server makes is not to be cancelled.
        task = asyncio.create_task(_relay(tape, reader, writer, host, port))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    tape.port = server.sockets[0].getsockname()[1]
    try:
        yield tape
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        while tasks:
            await asyncio.wait(set(tasks))


async def _relay(tape: Tape, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    there_writer: asyncio.StreamWriter | None = None
    try:
        there_reader, there_writer = await asyncio.open_connection(host, port)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pass(reader, there_writer, tape.requestor))
            tasks.create_task(_pass(there_reader, writer, tape.acceptor))
    finally:
        for end in (writer, there_writer):
            if end is not None:
                end.close()
                with suppress(OSError):
                    await end.wait_closed()
        tape._quiet.set()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray) -> None:
    try:
        while data := await reader.read(65_536):
            record += data
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        # Reset, or closed against what was still being said: the other side is to see the same.
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
