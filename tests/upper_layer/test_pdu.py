"""Framing and the PDUs without negotiation, byte for byte against pynetdicom where it speaks."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RJ, A_RELEASE_RP, A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_ABORT, A_ASSOCIATE, A_P_ABORT, A_RELEASE, P_DATA

from asyncdicom.errors import ProtocolError
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.pdu import PDU, PDUReader, PDUType


def pdus_of(stream: bytes, sizes: list[int], max_length: int = 65_536) -> list[tuple[int, bytes]]:
    """Feed a stream in pieces of the given sizes, the last one repeated, and return what comes out."""
    reader = PDUReader(max_length)
    found, at, index = [], 0, 0
    while at < len(stream):
        size = sizes[min(index, len(sizes) - 1)]
        reader.feed(stream[at : at + size])
        found += [(kind, bytes(body)) for kind, body in reader]
        at, index = at + size, index + 1
    assert reader.pending == 0
    return found


bodies = st.one_of(
    st.tuples(st.sampled_from([1, 2, 4]), st.binary(max_size=300)),
    st.tuples(st.sampled_from([3, 5, 6, 7]), st.binary(min_size=4, max_size=4)),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(bodies, max_size=8), st.lists(st.integers(1, 400), min_size=1, max_size=10))
def test_pdus_come_out_whole_however_the_bytes_arrive(sent: list[tuple[int, bytes]], sizes: list[int]) -> None:
    stream = b"".join(pdu.encode_pdu(kind, body) for kind, body in sent)
    assert pdus_of(stream, sizes) == sent


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_bytes_of_any_kind_give_pdus_or_a_protocol_error_and_are_never_all_kept(stream: bytes, size: int) -> None:
    reader = PDUReader(64)
    try:
        for at in range(0, len(stream), size):
            reader.feed(stream[at : at + size])
            for found in reader:
                for _ in pdu.decode_data(found.body) if found.type == PDUType.DATA_TF else ():
                    pass
    except ProtocolError:
        pass


def test_a_pdu_that_arrives_whole_is_not_copied() -> None:
    chunk = pdu.encode_pdu(4, b"x" * 1000) + pdu.encode_release_rq()
    reader = PDUReader(4096)
    reader.feed(chunk)
    first, second = reader
    assert first.body.obj is chunk
    assert second.body.obj is chunk
    assert (first.type, second.type) == (4, 5)


def test_a_buffer_that_its_owner_reuses_is_copied() -> None:
    scratch = bytearray(pdu.encode_pdu(4, b"a" * 100))
    reader = PDUReader(4096)
    reader.feed(memoryview(scratch))
    found = reader.next_pdu()
    scratch[:] = bytes(len(scratch))
    assert found is not None
    assert bytes(found.body) == b"a" * 100


def test_bodies_are_read_only() -> None:
    reader = PDUReader(4096)
    stream = pdu.encode_pdu(4, b"a" * 100)
    reader.feed(stream[:50])
    assert reader.next_pdu() is None
    reader.feed(stream[50:])
    found = reader.next_pdu()
    assert found is not None
    assert found.body.readonly


def test_feeding_more_before_everything_was_taken_loses_nothing() -> None:
    reader = PDUReader(4096)
    stream = b"".join(pdu.encode_pdu(4, bytes([n]) * 10) for n in range(5))
    for at in range(0, len(stream), 20):
        reader.feed(stream[at : at + 20])
    assert [bytes(found.body)[0] for found in reader] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("first", [b"G", b"\x00", b"\x08", b"\xff", b"H" * 100])
def test_a_type_that_does_not_exist_is_refused_at_its_first_byte(first: bytes) -> None:
    reader = PDUReader(4096)
    reader.feed(first)
    with pytest.raises(ProtocolError, match="does not speak DICOM"):
        reader.next_pdu()


@pytest.mark.parametrize(
    ("kind", "length"),
    [(4, 4097), (4, 0xFFFFFFF0), (1, (1 << 20) + 1), (2, 0xFFFFFFFF), (3, 5), (3, 3), (5, 0), (6, 0xFFFFFFF0), (7, 8)],
)
def test_a_lying_length_is_refused_on_its_header(kind: int, length: int) -> None:
    reader = PDUReader(4096)
    header = struct.pack(">BxI", kind, length)
    reader.feed(header[:4])
    assert reader.next_pdu() is None
    reader.feed(header[4:] + b"\0" * 50)
    with pytest.raises(ProtocolError):
        reader.next_pdu()


@pytest.mark.parametrize(("kind", "length"), [(4, 4096), (1, 1 << 20), (2, 1 << 20), (3, 4), (5, 4), (6, 4), (7, 4)])
def test_a_length_at_the_cap_is_taken(kind: int, length: int) -> None:
    reader = PDUReader(4096)
    reader.feed(pdu.encode_pdu(kind, bytes(length)))
    assert reader.next_pdu() == (kind, bytes(length))


def test_a_header_allocates_nothing_for_the_body_that_it_announces() -> None:
    readers = [PDUReader(4 << 20) for _ in range(100)]
    tracemalloc.start()
    for reader in readers:
        reader.feed(struct.pack(">BxI", 4, 4 << 20) + b"\0" * 10)
        assert reader.next_pdu() is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert all(reader.inside_pdu for reader in readers)


def test_what_is_left_of_a_chunk_does_not_keep_the_chunk_alive() -> None:
    reader = PDUReader(1 << 20)
    reader.feed(pdu.encode_pdu(4, bytes(500_000)) + b"\x04\0\0")
    assert reader.next_pdu() is not None
    assert reader.next_pdu() is None
    assert reader.pending == 3
    assert len(reader._view) == 0


def test_pdvs_are_read_as_pynetdicom_writes_them() -> None:
    primitive = P_DATA()
    primitive.presentation_data_value_list = [[1, b"\x01abc"], [1, b"\x03def"], [3, b"\x00"], [255, b"\x02x"]]
    encoded = P_DATA_TF(primitive).encode()
    reader = PDUReader(4096)
    reader.feed(encoded)
    found = reader.next_pdu()
    assert found is not None
    assert [(v.context_id, v.is_command, v.is_last, bytes(v.data)) for v in pdu.decode_data(found.body)] == [
        (1, True, False, b"abc"),
        (1, True, True, b"def"),
        (3, False, False, b""),
        (255, False, True, b"x"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\x02\x01",
        b"\0\0\0\x01\x01\x03",
        b"\0\0\0\x05\x01\x03ab",
        b"\xff\xff\xff\xff\x01\x03ab",
        b"\0\0\0\x02\x02\x03",
        b"\0\0\0\x02\x01\x03\0",
    ],
    ids=["empty", "short", "no control", "below 2", "beyond", "far beyond", "even context", "trailing byte"],
)
def test_a_malformed_pdv_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(pdu.decode_data(memoryview(body)))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=500), st.integers(8, 300).map(lambda n: n & ~1), st.booleans())
def test_fragments_fit_the_peers_maximum_and_give_back_the_message(data: bytes, max_length: int, command: bool) -> None:
    stream = b"".join(pdu.encode_data(5, data, command=command, max_length=max_length))
    reader = PDUReader(max_length)
    reader.feed(stream)
    values = [value for found in reader for value in pdu.decode_data(found.body)]
    assert b"".join(value.data for value in values) == data
    assert [value.is_last for value in values] == [False] * (len(values) - 1) + [True]
    assert {value.is_command for value in values} == {command}
    assert all(len(value.data) % 2 == 0 for value in values[:-1])


def test_fragments_are_what_pynetdicom_sends() -> None:
    data = bytes(range(256)) * 5
    expected = b""
    for at in range(0, len(data), 122):
        primitive = P_DATA()
        control = b"\x02" if at + 122 >= len(data) else b"\x00"
        primitive.presentation_data_value_list = [[7, control + data[at : at + 122]]]
        expected += P_DATA_TF(primitive).encode()
    assert b"".join(pdu.encode_data(7, data, command=False, max_length=128)) == expected


def test_a_dataset_is_sent_without_copying_it() -> None:
    data = bytes(1000)
    views = [part for part in pdu.encode_data(1, data, command=False, max_length=0) if isinstance(part, memoryview)]
    assert [view.obj is data for view in views] == [True]


def test_a_promised_dataset_that_is_empty_still_gets_its_last_fragment() -> None:
    assert b"".join(pdu.encode_data(1, b"", command=False, max_length=0)) == b"\x04\0\0\0\0\x06\0\0\0\x02\x01\x02"


def test_a_peer_that_sets_no_maximum_gets_fragments_of_ours() -> None:
    assert pdu.fragment_length(0) == pdu.UNLIMITED_FRAGMENT_LENGTH - 6


@pytest.mark.parametrize("max_length", [1, 6, 7])
def test_a_maximum_without_room_for_a_fragment_is_a_protocol_error(max_length: int) -> None:
    with pytest.raises(ProtocolError, match="too short"):
        list(pdu.encode_data(1, b"ab", command=True, max_length=max_length))


@pytest.mark.parametrize(
    ("result", "source", "diagnostic"), [(1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 7), (1, 2, 2), (2, 3, 1), (2, 3, 2)]
)
def test_a_rejection_is_encoded_and_decoded_as_pynetdicom_does(result: int, source: int, diagnostic: int) -> None:
    primitive = A_ASSOCIATE()
    primitive.result, primitive.result_source, primitive.diagnostic = result, source, diagnostic
    expected = A_ASSOCIATE_RJ(primitive).encode()
    assert pdu.encode_reject(result, source, diagnostic) == expected
    error = pdu.decode_reject(memoryview(expected)[6:])
    assert (error.result, error.source, error.diagnostic) == (result, source, diagnostic)
    assert error.transient is (result == 2)


def test_release_is_encoded_as_pynetdicom_does() -> None:
    request, response = A_RELEASE(), A_RELEASE()
    response.result = "affirmative"
    assert pdu.encode_release_rq() == A_RELEASE_RQ(request).encode()
    assert pdu.encode_release_rp() == A_RELEASE_RP(response).encode()


@pytest.mark.parametrize("reason", [0, 1, 2, 4, 5, 6])
def test_a_providers_abort_is_encoded_and_decoded_as_pynetdicom_does(reason: int) -> None:
    primitive = A_P_ABORT()
    primitive.provider_reason = reason
    expected = A_ABORT_RQ(primitive).encode()
    assert pdu.encode_abort(pdu.AbortSource.SERVICE_PROVIDER, reason) == expected
    error = pdu.decode_abort(memoryview(expected)[6:])
    assert (error.source, error.diagnostic) == (2, reason)


def test_a_users_abort_is_encoded_and_decoded_as_pynetdicom_does() -> None:
    primitive = A_ABORT()
    primitive.abort_source = 0
    expected = A_ABORT_RQ(primitive).encode()
    assert pdu.encode_abort() == expected
    assert pdu.decode_abort(memoryview(expected)[6:]).source == 0


def test_reprs_hold_no_content() -> None:
    value = pdu.PDV(1, True, True, memoryview(b"DOE^JANE"))
    assert repr(PDU(4, memoryview(b"DOE^JANE"))) == "<P-DATA-TF of 8 bytes>"
    assert repr(value) == "<PDV last command of 8 bytes, context 1>"
    assert "4096" in repr(PDUReader(4096))


# -- fragments as they arrive -----------------------------------------------------------------------------------------


def items_of(stream: bytes, sizes: list[int], max_length: int = 65_536) -> list[tuple[object, ...]]:
    """What next_item gives for a stream that comes in pieces, the parts of a fragment put together again."""
    reader = PDUReader(max_length)
    items: list[tuple[object, ...]] = []
    whole = bytearray()
    at = turn = 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
        while (found := reader.next_item()) is not None:
            if isinstance(found, PDU):
                items.append((found.type, bytes(found.body)))
                continue
            whole += found.data
            if found.is_last:
                items.append((found.context_id, found.is_command, bytes(whole)))
                whole.clear()
    assert not reader.inside_pdu
    return items


messages = st.tuples(st.integers(0, 127).map(lambda n: 2 * n + 1), st.binary(max_size=600), st.integers(8, 300))


@settings(max_examples=100, deadline=None)
@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 400), min_size=1, max_size=10))
def test_fragments_come_out_as_they_arrive_and_lose_nothing(sent: list[tuple[int, bytes, int]], sizes: list[int]) -> None:
    stream, wanted = b"", list[tuple[object, ...]]()
    for context_id, data, max_length in sent:
        stream += pdu.encode_release_rq() + pdu.encode_message(context_id, b"command!", data, max_length=max_length)
        wanted += [(5, bytes(4)), (context_id, True, b"command!"), (context_id, False, data)]
    assert items_of(stream, sizes) == wanted


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_what_is_no_fragment_is_a_protocol_error_however_it_arrives(body: bytes, size: int) -> None:
    stream = struct.pack(">BBL", 4, 0, len(body)) + body + pdu.encode_release_rq()
    try:
        wanted = [(v.context_id, v.is_command, bytes(v.data)) for v in pdu.decode_data(memoryview(body))]
    except ProtocolError:
        with pytest.raises(ProtocolError):
            items_of(stream, [size])
        return
    # Fragments that are not the last are put together by items_of; without a last one they do not come out.
    assert b"".join(bytes(item[2]) for item in items_of(stream, [size])[:-1]) in b"".join(data for _, _, data in wanted)  # type: ignore[arg-type]


def test_an_idle_reader_holds_nothing_of_what_it_gave_out() -> None:
    reader = PDUReader(1 << 20)
    reader.feed(pdu.encode_message(1, b"command!", bytes(500_000), max_length=0) + b"\x04\0\0")
    while reader.next_item() is not None:
        pass
    assert (reader.pending, reader.inside_pdu) == (3, True)
    assert reader._view.nbytes == 3
