"""What a hostile peer can make the requestor keep in memory: next to nothing (bars S2, S4 and C2)."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from asyncdicom import DatasetError, OperationError, PresentationContext, Query, associate
from asyncdicom.cli.dicom_json import JSONModel
from asyncdicom.modality import Engine, Limits, Modality
from asyncdicom.testing import Wire
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.context import STUDY_ROOT_FIND, VERIFICATION
from asyncdicom.upper_layer.pdu import PDUType
from tests.association.scripted import accept, release, scripted
from tests.bombs import DEFLATED, bomb
from tests.measuring import allocations
from tests.mutation import values

ECHO = [PresentationContext(VERIFICATION)]
FIND = [PresentationContext(STUDY_ROOT_FIND)]
MAX_PDU = 16_384
MEBIBYTE = 1 << 20


# -- lying lengths (S2) -----------------------------------------------------------------------------------------------

LIES = {
    "acceptance": ("request", PDUType.ASSOCIATE_AC, 0xFFFFFFF0),
    "acceptance-just-over": ("request", PDUType.ASSOCIATE_AC, pdu.MAX_ASSOCIATE_LENGTH + 1),
    "rejection": ("request", PDUType.ASSOCIATE_RJ, 0x10000000),
    "data": ("operation", PDUType.DATA_TF, 0xFFFFFFF0),
    "data-signed": ("operation", PDUType.DATA_TF, 0x7FFFFFFF),
    "data-just-over": ("operation", PDUType.DATA_TF, MAX_PDU + 1),
    "abort": ("operation", PDUType.ABORT, 0xFFFFFFFF),
    "unknown": ("operation", 0x99, 0xFFFFFFFF),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_length_is_refused_before_the_body_and_costs_less_than_a_mebibyte(
    no_leaks: object, engine: Engine, lie: str
) -> None:
    """Bar S2: the body never comes, and is not waited for."""
    when, kind, length = LIES[lie]
    aborts = 0

    async def script(wire: Wire) -> None:
        nonlocal aborts
        if when == "request":
            assert await wire.receive_pdu() is not None
        else:
            await accept(wire)
            await wire.receive_message()
        await wire.send(struct.pack(">BxL", kind, length))
        found = await wire.receive_pdu()
        aborts += found is not None and found.type == PDUType.ABORT

    async with scripted(script) as peer:
        modality = peer.modality(limits=Limits(max_pdu=MAX_PDU))

        async def ask() -> None:
            async with associate(modality, contexts=ECHO, engine=engine) as association:
                await association.echo()

        # What is imported and made once is not to be counted.
        with pytest.raises(OperationError):
            await ask()
        with allocations() as allocated:
            started = time.monotonic()
            with pytest.raises(OperationError) as caught:
                await ask()
            assert time.monotonic() - started < 0.9, "earlier than any deadline"
        assert caught.value.reason in ("protocol_error", "aborted" if engine == "pynetdicom" else "protocol_error")
        assert allocated.peak < MEBIBYTE
    assert aborts == 2


@pytest.mark.parametrize("excess", [0, 1])
async def test_our_announced_maximum_is_enforced_to_the_byte(no_leaks: object, engine: Engine, excess: int) -> None:
    async def script(wire: Wire) -> None:
        request = await accept(wire)
        assert request.max_length == MAX_PDU
        asked = await wire.receive_message()
        await wire.send_message(asked.context_id, dimse.response(asked.command, 0xFF00, dataset=True))
        # A value of zeros, which is as good as any: nobody decodes it here.
        await wire.send(values((asked.context_id, 2, bytes(MAX_PDU - 6 + excess))))
        if not excess:
            await wire.send_message(asked.context_id, dimse.response(asked.command, 0x0000))
            await release(wire)

    async def find(modality: Modality) -> list[int]:
        async with associate(modality, contexts=FIND, engine=engine) as association:
            return [len(match.encoded) async for match in association.find(Query())]

    async with scripted(script) as peer:
        modality = peer.modality(limits=Limits(max_pdu=MAX_PDU))
        if not excess:
            assert await find(modality) == [MAX_PDU - 6]
            return
        with pytest.raises(OperationError) as caught:
            await find(modality)
        assert caught.value.reason in ("protocol_error", "aborted")


# -- endless answers (C2) ---------------------------------------------------------------------------------------------


async def test_an_endless_find_costs_no_more_than_what_may_wait(no_leaks: object, engine: Engine) -> None:
    """Bar C2: the peer sends large matches as fast as it can, we are slow; then we stop, and it ignores our C-CANCEL."""
    size = MEBIBYTE
    sent = 0

    async def script(wire: Wire) -> None:
        nonlocal sent
        await accept(wire)
        asked = await wire.receive_message()
        pending = dimse.encode_command(dimse.response(asked.command, 0xFF00, dataset=True))
        element = struct.pack("<HHL", 0x0010, 0x0010, size) + bytes(size)
        match = bytes(pdu.encode_message(asked.context_id, pending, element, max_length=wire.max_length))
        wire.timeout = 20
        while True:
            await wire.send(match)
            sent += len(match)
            await anyio.lowlevel.checkpoint()

    async with scripted(script) as peer:
        with allocations() as allocated:
            with anyio.fail_after(6 if engine == "native" else 10):
                async with associate(peer.modality(), contexts=FIND, engine=engine) as association:
                    matches = association.find(Query(), limit=20)
                    count = 0
                    async for match in matches:
                        assert len(match.encoded) == size + 8
                        count += 1
                        sent_by_then = sent
                        await anyio.sleep(0.03)
                    stopped = time.monotonic()
                # A grace of 2 s, and a moment to end.
                assert time.monotonic() - stopped < 3.0
            most = allocated.peak
    assert count == 20
    assert most < 48 * MEBIBYTE
    # Until then the peer has to wait; during the grace, what it says is read and forgotten.
    assert sent_by_then < 96 * MEBIBYTE


async def test_an_answer_without_a_last_fragment_is_cut_at_the_cap(no_leaks: object, engine: Engine) -> None:
    """Bar S3 at the requestor."""
    cap = 2 * MEBIBYTE

    async def script(wire: Wire) -> None:
        await accept(wire)
        asked = await wire.receive_message()
        await wire.send_message(asked.context_id, dimse.response(asked.command, 0xFF00, dataset=True))
        fragment = values((asked.context_id, 0, bytes(MAX_PDU - 6)))
        while True:
            await wire.send(fragment)

    async with scripted(script) as peer:
        modality = peer.modality(limits=Limits(max_pdu=MAX_PDU, max_object_size=cap))
        with allocations() as allocated, anyio.fail_after(5), pytest.raises(OperationError) as caught:
            async with associate(modality, contexts=FIND, engine=engine) as association:
                async for _ in association.find(Query()):
                    pass
    assert caught.value.reason in ("protocol_error", "aborted")
    assert allocated.peak < 2 * cap + 2 * MEBIBYTE


# -- deflate bombs (S4) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 8, 16, 1_024])
@pytest.mark.parametrize("read", ["dataset", "json"])
async def test_a_deflate_bomb_in_a_match_costs_no_more_than_32_mebibytes(
    no_leaks: object, engine: Engine, read: str, size: int
) -> None:
    """Bar S4, for who decodes a match, and for who writes it as JSON."""
    dataset = bomb(size, (0x00080052, b"CS", b"STUDY "))

    async def script(wire: Wire) -> None:
        await accept(wire)
        asked = await wire.receive_message()
        await wire.send_message(asked.context_id, dimse.response(asked.command, 0xFF00, dataset=True), dataset)
        await wire.send_message(asked.context_id, dimse.response(asked.command, 0x0000))
        await release(wire)

    contexts = [PresentationContext(STUDY_ROOT_FIND, (DEFLATED,))]
    async with scripted(script) as peer, associate(peer.modality(), contexts=contexts, engine=engine) as association:
        with allocations() as allocated:
            [match] = [match async for match in association.find(Query())]
            assert match.transfer_syntax == DEFLATED
            ways: dict[str, Callable[[], object]] = {
                "dataset": lambda: match.dataset.QueryRetrieveLevel,
                "json": lambda: JSONModel(DEFLATED).members(match.encoded),
            }
            is_decoded = await anyio.to_thread.run_sync(decodes, ways[read])
        assert allocated.peak < 32 * MEBIBYTE
    if size in (1, 1_024):
        assert is_decoded == (size == 1)


def decodes(read: Callable[[], object]) -> bool:
    """Whether what reads a dataset can."""
    try:
        read()
    except DatasetError:
        return False
    return True
