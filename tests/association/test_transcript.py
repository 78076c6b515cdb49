"""What was said on the wire is told in words, whatever it was, and costs no association anything."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from asyncdicom import OperationError, PresentationContext, associate
from asyncdicom.association.transcript import Overheard, Transcript
from asyncdicom.testing import SimulatedModality
from asyncdicom.upper_layer import negotiation, pdu
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.negotiation import AssociateRequest


async def test_only_associations_that_begin_while_it_listens_are_written_down(no_leaks: object) -> None:
    transcript = Transcript()
    async with SimulatedModality() as sim:
        async with associate(sim.modality()) as association:
            await association.echo()
        assert transcript.lines == ()
        with transcript.listening():
            async with associate(sim.modality()) as association:
                await association.echo()
        heard = transcript.lines
        async with associate(sim.modality()) as association:
            await association.echo()
    assert transcript.lines == heard
    said = [line.partition(" s  ")[2][3:] for line in heard]
    assert [line.split()[0] for line in said if not line.startswith(" ")] == [
        "A-ASSOCIATE-RQ",
        "A-ASSOCIATE-AC",
        "C-ECHO-RQ",
        "C-ECHO-RSP",
        "A-RELEASE-RQ",
        "A-RELEASE-RP",
    ]
    assert any("Verification SOP Class" in line for line in said)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("reject", "A-ASSOCIATE-RJ result 1, source 1, reason 3"),
        ("abort", "A-ABORT by the service"),
        ("garbage", "bytes that are no DICOM"),
    ],
)
async def test_what_goes_wrong_is_told_in_words(no_leaks: object, behaviour: str, said: str) -> None:
    transcript = Transcript()
    async with SimulatedModality(behaviour) as sim:
        with transcript.listening(), pytest.raises(OperationError):
            async with associate(sim.modality()) as association:
                await association.echo()
    assert any(said in line for line in transcript.lines)


async def test_our_own_abort_is_written_down(no_leaks: object) -> None:
    transcript = Transcript()
    async with SimulatedModality() as sim:
        with transcript.listening():
            async with associate(sim.modality()) as association:
                await association.abort()
    assert transcript.lines[-1].endswith("-> A-ABORT by the service user: no reason given")


def _mutations(count: int) -> list[bytes]:
    contexts = negotiation.propose([PresentationContext(VERIFICATION)])[0]
    whole = [
        negotiation.encode_request(AssociateRequest("ANY-SCP", "X\x1b[31m", contexts)),
        pdu.encode_message(1, b"\0\0\0\0\4\0\0\0\0\0\0\0", b"CANARY", max_length=100),
        pdu.encode_reject(1, 1, 3),
        pdu.encode_abort(),
    ]
    chance = random.Random(7)
    mutated = []
    for number in range(count):
        data = bytearray(whole[number % len(whole)] + whole[chance.randrange(len(whole))])
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        mutated.append(bytes(data[: chance.randrange(1, len(data) + 1)]))
    return mutated


@pytest.mark.parametrize("side", [Overheard.sent, Overheard.received], ids=["ours", "theirs"])
def test_nothing_that_is_said_makes_it_fail_or_shows_a_dataset(side: Callable[[Overheard, bytes], None]) -> None:
    for said in _mutations(3_000):
        transcript = Transcript()
        overheard = Overheard(transcript)
        for at in range(0, len(said), 50):
            side(overheard, said[at : at + 50])
        text = "\n".join(transcript.lines)
        assert "CANARY" not in text
        assert "\x1b" not in text


def test_a_transcript_has_an_end() -> None:
    transcript = Transcript()
    overheard = Overheard(transcript)
    for _ in range(2_000):
        overheard.received(pdu.encode_release_rp())
    assert len(transcript.lines) == 501
    assert transcript.lines[-1] == "what follows is left out"
