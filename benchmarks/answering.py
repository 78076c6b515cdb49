"""An SCP that answers C-FIND faster than anybody asks: what it says is encoded once, and written as a whole.

The called AE title says what it holds: ``F2000-10000`` has studies 2,000 to 11,999, and answers with all of them whatever the
keys. As a program, it serves: ``python -m benchmarks.answering PORT``.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from asyncdicom.testing.instances import synthetic_uid
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN
from asyncdicom.upper_layer.message import Command, CommandField, MessageReader, encode_command
from asyncdicom.upper_layer.pdu import PDUReader, PDUType
from benchmarks.processes import module, serving
from tests.peers.running import free_port

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
# What each match has: keyword, tag, VR and a value in which {0} is the study's number, in the order of the tags.
_ATTRIBUTES = (
    ("StudyDate", 0x00080020, "DA", "20000101"),
    ("StudyTime", 0x00080030, "TM", "120000"),
    ("AccessionNumber", 0x00080050, "SH", "TEST{0:06}"),
    ("QueryRetrieveLevel", 0x00080052, "CS", "STUDY"),
    ("ModalitiesInStudy", 0x00080061, "CS", "CT\\SR"),
    ("ReferringPhysicianName", 0x00080090, "PN", "Synthetic^Physician"),
    ("StudyDescription", 0x00081030, "LO", "Synthetic test data"),
    ("PatientName", 0x00100010, "PN", "Synthetic^Test{0:06}"),
    ("PatientID", 0x00100020, "LO", "SIM-{0:06}"),
    ("PatientBirthDate", 0x00100030, "DA", "19700101"),
    ("PatientSex", 0x00100040, "CS", "O"),
    ("StudyInstanceUID", 0x0020000D, "UI", ""),
    ("StudyID", 0x00200010, "SH", "{0:06}"),
    ("NumberOfStudyRelatedSeries", 0x00201206, "IS", "3"),
    ("NumberOfStudyRelatedInstances", 0x00201208, "IS", "250"),
)
KEYWORDS = tuple(keyword for keyword, *_ in _ATTRIBUTES)

_HEADER = struct.Struct("<HH2sH")
_PENDING, _SUCCESS = 0xFF00, 0x0000
_MAX_QUERY = 1 << 20
_READY_STREAMS = 256


def ae_title(first: int, count: int) -> str:
    """Whom to call for these studies."""
    return f"F{first}-{count}"


@contextmanager
def answering() -> Iterator[int]:
    """Have it listen on 127.0.0.1 while the block runs.

    :return: its port
    """
    port = free_port()
    with serving(module("benchmarks.answering", port), port):
        yield port


def _match(number: int) -> bytes:
    encoded = []
    for keyword, tag, vr, form in _ATTRIBUTES:
        text = synthetic_uid("answering", number) if keyword == "StudyInstanceUID" else form.format(number)
        value = text.encode("ascii")
        value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
        encoded.append(_HEADER.pack(tag >> 16, tag & 0xFFFF, vr.encode("ascii"), len(value)) + value)
    return b"".join(encoded)


@lru_cache(maxsize=_READY_STREAMS)
def answer(called: str, context_id: int, message_id: int) -> bytes:
    """Every P-DATA-TF of an answer; each is far below any maximum length."""
    first, _, count = called.removeprefix("F").partition("-")

    def command(status: int, *, dataset: bool) -> bytes:
        fields = Command(
            AffectedSOPClassUID=STUDY_ROOT_FIND,
            CommandField=int(CommandField.C_FIND_RSP),
            MessageIDBeingRespondedTo=message_id,
            CommandDataSetType=0x0001 if dataset else 0x0101,
            Status=status,
        )
        return pdu.encode_message(context_id, encode_command(fields), max_length=0)

    pending = command(_PENDING, dataset=True)
    parts = []
    for number in range(int(first), int(first) + int(count)):
        match = _match(number)
        parts += [pending, pdu.data_header(context_id, len(match), command=False, last=True), match]
    return b"".join((*parts, command(_SUCCESS, dataset=False)))


class _Served(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._frames = PDUReader(pdu.MAX_ASSOCIATE_LENGTH)
        self._messages = MessageReader(_MAX_QUERY)
        self._called = ""

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        for found in self._frames:
            match found.type:
                case PDUType.ASSOCIATE_RQ:
                    self._accept(negotiation.decode_request(found.body))
                case PDUType.DATA_TF:
                    for value in pdu.decode_data(found.body):
                        message = self._messages.receive(value)
                        if message is not None:
                            self._transport.write(answer(self._called, message.context_id, message.command.message_id))
                case PDUType.RELEASE_RQ:
                    self._transport.write(pdu.encode_release_rp())
                    self._transport.close()
                case _:
                    self._transport.abort()

    def _accept(self, request: negotiation.AssociateRequest) -> None:
        self._called = request.called_ae_title
        taken = {STUDY_ROOT_FIND: {EXPLICIT_VR_LITTLE_ENDIAN}}
        contexts = negotiation.negotiate(request.contexts, taken.get)
        accept = negotiation.AssociateAccept(request.called_ae_title, request.calling_ae_title, contexts)
        self._transport.write(negotiation.encode_accept(accept))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Served, "127.0.0.1", port, backlog=128)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
