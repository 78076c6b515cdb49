"""Command sets against pynetdicom's codec, and messages from fragments."""

from __future__ import annotations

import contextlib
import struct
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import dimse_messages, dimse_primitives
from pynetdicom.dsutils import decode as pynetdicom_decode
from pynetdicom.dsutils import encode as pynetdicom_encode

from asyncdicom.errors import ProtocolError
from asyncdicom.upper_layer import message
from asyncdicom.upper_layer.message import Command, CommandField, MessageReader
from asyncdicom.upper_layer.pdu import PDUReader, decode_data, encode_message

UID = "1.2.840.10008.5.1.4.1.1.2"
INSTANCE = "1.2.826.0.1.3680043.8.498.1"


def with_pynetdicom(command: dict[str, Any]) -> bytes:
    """Encode a command set by pynetdicom's encoder, the group length included."""
    dataset = Dataset()
    for keyword, value in command.items():
        setattr(dataset, keyword, list(value) if isinstance(value, tuple) else value)
    dataset.CommandGroupLength = 0
    dataset.CommandGroupLength = len(pynetdicom_encode(dataset, True, True)) - 12
    return bytes(pynetdicom_encode(dataset, True, True))


def primitive_bytes(name: str, message_name: str, **fields: Any) -> bytes:
    """The command set that pynetdicom sends for a primitive."""
    primitive = getattr(dimse_primitives, name)()
    for field, value in fields.items():
        setattr(primitive, field, value)
    encoder = getattr(dimse_messages, message_name)()
    encoder.primitive_to_message(primitive)
    (value,) = next(encoder.encode_msg(1, 16_384)).presentation_data_value_list
    return bytes(value[1][1:])


def test_requests_are_the_bytes_that_pynetdicom_sends() -> None:
    echo = message.request(CommandField.C_ECHO_RQ, 7, "1.2.840.10008.1.1", dataset=False)
    assert message.encode_command(echo) == primitive_bytes(
        "C_ECHO", "C_ECHO_RQ", MessageID=7, AffectedSOPClassUID="1.2.840.10008.1.1"
    )
    store = message.request(
        CommandField.C_STORE_RQ,
        65_535,
        UID,
        dataset=True,
        AffectedSOPInstanceUID=INSTANCE,
        MoveOriginatorApplicationEntityTitle="MOVER",
        MoveOriginatorMessageID=3,
        Priority=2,
    )
    assert message.encode_command(store) == primitive_bytes(
        "C_STORE",
        "C_STORE_RQ",
        MessageID=65_535,
        AffectedSOPClassUID=UID,
        AffectedSOPInstanceUID=INSTANCE,
        Priority=2,
        DataSet=BytesIO(b"ab"),
        MoveOriginatorApplicationEntityTitle="MOVER",
        MoveOriginatorMessageID=3,
    )
    move = message.request(CommandField.C_MOVE_RQ, 1, UID, dataset=True, MoveDestination="ELSEWHERE", Priority=2)
    assert message.encode_command(move) == primitive_bytes(
        "C_MOVE",
        "C_MOVE_RQ",
        MessageID=1,
        AffectedSOPClassUID=UID,
        Priority=2,
        MoveDestination="ELSEWHERE",
        Identifier=BytesIO(b"ab"),
    )
    assert message.encode_command(message.cancel(9)) == primitive_bytes("C_CANCEL", "C_CANCEL_RQ", MessageIDBeingRespondedTo=9)


def test_responses_are_the_bytes_that_pynetdicom_sends() -> None:
    store = message.request(CommandField.C_STORE_RQ, 5, UID, dataset=True, AffectedSOPInstanceUID=INSTANCE)
    assert message.encode_command(message.response(store, 0xA700, ErrorComment="full")) == primitive_bytes(
        "C_STORE",
        "C_STORE_RSP",
        MessageIDBeingRespondedTo=5,
        AffectedSOPClassUID=UID,
        AffectedSOPInstanceUID=INSTANCE,
        Status=0xA700,
        ErrorComment="full",
    )
    get = message.request(CommandField.C_GET_RQ, 5, UID, dataset=True)
    counts = {
        "NumberOfRemainingSuboperations": 4,
        "NumberOfCompletedSuboperations": 3,
        "NumberOfFailedSuboperations": 2,
        "NumberOfWarningSuboperations": 1,
    }
    assert message.encode_command(message.response(get, 0xFF00, **counts)) == primitive_bytes(
        "C_GET", "C_GET_RSP", MessageIDBeingRespondedTo=5, AffectedSOPClassUID=UID, Status=0xFF00, **counts
    )


def test_a_response_to_a_normalized_request_names_what_was_requested_as_affected() -> None:
    action = message.request(CommandField.N_ACTION_RQ, 2, UID, dataset=True, RequestedSOPInstanceUID=INSTANCE, ActionTypeID=1)
    assert (action.sop_class_uid, action.sop_instance_uid) == (UID, INSTANCE)
    answer = message.response(action, 0, ActionTypeID=1)
    assert (answer.sop_class_uid, answer.sop_instance_uid) == (UID, INSTANCE)
    assert message.encode_command(answer) == primitive_bytes(
        "N_ACTION",
        "N_ACTION_RSP",
        MessageIDBeingRespondedTo=2,
        AffectedSOPClassUID=UID,
        AffectedSOPInstanceUID=INSTANCE,
        Status=0,
        ActionTypeID=1,
    )


uids = st.from_regex(r"[12](\.(0|[1-9][0-9]{0,8})){1,6}", fullmatch=True)
titles = st.from_regex(r"[A-Z0-9_]([A-Z0-9_ ]{0,14}[A-Z0-9_])?", fullmatch=True)
numbers = st.integers(0, 0xFFFF)
# pydicom writes one tag as a plain value and several as a list; either way they read back as a tuple here.
tags = st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=4).map(tuple)
VALUES = {"UI": uids, "US": numbers, "AE": titles, "LO": titles, "AT": tags}
commands = st.fixed_dictionaries(
    {"CommandField": numbers, "CommandDataSetType": numbers},
    optional={
        keyword: VALUES[vr]
        for keyword, (_, vr) in message._ELEMENTS.items()
        if keyword not in ("CommandField", "CommandDataSetType")
    },
)


@settings(max_examples=80, deadline=None)
@given(commands)
def test_every_command_set_is_encoded_and_decoded_as_pynetdicom_does(command: dict[str, Any]) -> None:
    encoded = message.encode_command(command)
    assert encoded == with_pynetdicom(command)
    assert message.decode_command(encoded) == command
    theirs = pynetdicom_decode(BytesIO(encoded), True, True)
    assert {element.keyword for element in theirs} == {*command, "CommandGroupLength"}


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120))
def test_bytes_of_any_kind_are_a_command_set_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        message.decode_command(data)


@settings(max_examples=80, deadline=None)
@given(commands, st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_gives_a_command_set_or_a_protocol_error(command: dict[str, Any], at: int, value: int) -> None:
    encoded = bytearray(message.encode_command(command))
    encoded[at % len(encoded)] = value
    try:
        found = message.decode_command(encoded)
        repr(found)
        encoded_again = message.encode_command(found)
        assert message.decode_command(encoded_again) == found
    except ProtocolError:
        pass


def test_unknown_and_empty_elements_and_a_wrong_group_length_are_passed_over() -> None:
    encoded = (
        struct.pack("<HHII", 0, 0, 4, 99)
        + struct.pack("<HHI4s", 0, 1, 4, b"old ")
        + struct.pack("<HHIH", 0, 0x0100, 2, 0x8030)
        + struct.pack("<HHIH", 0, 0x0800, 2, 0x0101)
        + struct.pack("<HHI", 0, 0x0902, 0)
    )
    assert message.decode_command(encoded) == {"CommandField": 0x8030, "CommandDataSetType": 0x0101}


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\0\0\0\1\2\0\0",
        struct.pack("<HHIH", 8, 0x0100, 2, 1),
        struct.pack("<HHIH", 0, 0x0100, 0xFFFFFFFF, 1),
        struct.pack("<HHII", 0, 0x0100, 4, 1),
        struct.pack("<HHIH", 0, 0x0100, 2, 1),
        struct.pack("<HHIHHHIHH", 0, 0x0100, 2, 1, 0, 0x0901, 2, 1, 0),
    ],
    ids=["empty", "cut", "other group", "lying length", "wide number", "no data set type", "short tag"],
)
def test_a_malformed_command_set_is_a_protocol_error(encoded: bytes) -> None:
    with pytest.raises(ProtocolError):
        message.decode_command(encoded)


@pytest.mark.parametrize(
    "command", [{"PatientName": "x"}, {"Status": 70_000}, {"Status": "0"}, {"ErrorComment": "€"}, {"MessageID": None}]
)
def test_what_does_not_fit_a_command_set_is_a_value_error(command: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(command))):
        message.encode_command(command)


@pytest.mark.parametrize("name", ["message_id", "responded_to", "status", "sop_class_uid", "sop_instance_uid"])
def test_asking_for_an_element_that_the_peer_left_out_is_a_protocol_error(name: str) -> None:
    command = Command(CommandField=0x8001, CommandDataSetType=0x0101)
    with pytest.raises(ProtocolError, match="C-STORE-RSP without"):
        getattr(command, name)


def test_a_command_sets_repr_holds_none_of_the_peers_words() -> None:
    command = Command(CommandField=0x8001, MessageIDBeingRespondedTo=4, Status=0xA700, ErrorComment="DOE^JANE")
    assert repr(command) == "<C-STORE-RSP MessageIDBeingRespondedTo=4 Status=0xA700>"


def read(reader: MessageReader, stream: bytes) -> list[message.Message]:
    """Give a stream of P-DATA-TF to a message reader and return the messages."""
    frames = PDUReader(1 << 20)
    frames.feed(stream)
    values = [value for found in frames for value in decode_data(found.body)]
    return [whole for value in values if (whole := reader.receive(value)) is not None]


STORE = message.request(CommandField.C_STORE_RQ, 1, UID, dataset=True, AffectedSOPInstanceUID=INSTANCE)
ECHO = message.request(CommandField.C_ECHO_RQ, 2, "1.2.840.10008.1.1", dataset=False)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=2_000), st.integers(8, 700))
def test_a_message_survives_any_fragmentation(data: bytes, max_length: int) -> None:
    stream = encode_message(3, message.encode_command(STORE), data, max_length=max_length)
    stream += encode_message(5, message.encode_command(ECHO), max_length=max_length)
    reader = MessageReader(2_000)
    first, second = read(reader, stream)
    assert (first.context_id, first.command, bytes(first.data or b"")) == (3, STORE, data)
    assert (second.context_id, second.command, second.data) == (5, ECHO, None)
    assert not reader.inside_message


def test_a_dataset_in_one_fragment_is_not_copied() -> None:
    data = bytes(10_000)
    stream = encode_message(1, message.encode_command(STORE), data, max_length=0)
    frames = PDUReader(1 << 20)
    frames.feed(stream)
    reader = MessageReader(1 << 20)
    (whole,) = [m for found in frames for v in decode_data(found.body) if (m := reader.receive(v)) is not None]
    assert isinstance(whole.data, memoryview)
    assert whole.data.obj is stream


def test_a_small_dataset_does_not_keep_a_large_chunk_alive() -> None:
    stream = encode_message(1, message.encode_command(STORE), b"small", max_length=0)
    reader = MessageReader(1 << 20)
    first, *_ = read(reader, stream + encode_message(1, message.encode_command(STORE), bytes(50_000), max_length=0))
    assert isinstance(first.data, bytearray)
    assert first.data == b"small"


def test_a_dataset_can_be_taken_as_it_comes_and_still_counts_towards_the_cap() -> None:
    stream = encode_message(1, message.encode_command(STORE), bytes(range(250)) * 4, max_length=106)
    frames = PDUReader(106)
    frames.feed(stream)
    reader = MessageReader(1_000)
    taken, whole = bytearray(), None
    for found in frames:
        for value in decode_data(found.body):
            whole = reader.receive(value)
            if reader.command is not None and reader.held >= 300:
                assert reader.command.sop_instance_uid == INSTANCE
                taken += b"".join(reader.take())
    assert whole is not None
    assert len(taken) == 900
    assert taken + bytes(whole.data or b"") == bytes(range(250)) * 4
    with pytest.raises(ProtocolError, match="larger than 999 bytes"):
        read(MessageReader(999), stream)


def test_a_command_set_without_end_is_cut_at_its_cap() -> None:
    endless = (b"\x04\0\0\0\x10\x06\0\0\x10\x02\x01\x01" + bytes(4_096)) * 100
    with pytest.raises(ProtocolError, match="command set of more than 65536 bytes"):
        read(MessageReader(1 << 30), endless)


def test_fragments_out_of_turn_are_protocol_errors() -> None:
    command = encode_message(1, message.encode_command(STORE), max_length=0)
    with pytest.raises(ProtocolError, match="without a command set"):
        read(MessageReader(100), b"\x04\0\0\0\0\x08\0\0\0\x04\x01\x02ab")
    with pytest.raises(ProtocolError, match="on context 3 inside a message on context 1"):
        read(MessageReader(100), command + b"\x04\0\0\0\0\x08\0\0\0\x04\x03\x02ab")
    with pytest.raises(ProtocolError, match="where the dataset of C-STORE-RQ is due"):
        read(MessageReader(100), command + command)


def test_reprs_of_messages_hold_no_content() -> None:
    reader = MessageReader(1 << 20)
    (whole,) = read(reader, encode_message(1, message.encode_command(STORE), b"DOE^JANE", max_length=0))
    assert repr(whole) == "<Message <C-STORE-RQ MessageID=1>, dataset of 8 bytes, context 1>"
    assert repr(reader) == "<MessageReader, between messages>"
