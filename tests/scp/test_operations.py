"""What a peer that is let in may do: presentation contexts for anything else are refused, and the association stands."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from asyncdicom import Access, AllowRule, Archive, ConfigurationError, PresentationContext, Received, StorageSCP
from asyncdicom.association.commitment import AS_SCU, PUSH_MODEL
from asyncdicom.modality import Engine
from asyncdicom.scp.access import OperationName
from asyncdicom.scp.commitment import StorageCommitment
from asyncdicom.testing import HeldInstance, Wire, synthetic_instance
from asyncdicom.upper_layer import message as dimse
from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.context import VERIFICATION
from asyncdicom.upper_layer.message import CommandField
from asyncdicom.upper_layer.negotiation import AssociateAccept, Role
from tests.peers import dcmtk
from tests.peers.peer import Address
from tests.scp.conftest import Seen

HELD = HeldInstance.read(synthetic_instance())
ECHO = PresentationContext(VERIFICATION)
STORE = PresentationContext(HELD.sop_class_uid, (HELD.transfer_syntax_uid,))
OTHER_STORE = PresentationContext(HELD.sop_class_uid, ("1.2.3.4",))
UNKNOWN = PresentationContext("1.2.840.10008.5.1.4.31")
COMMIT = PresentationContext(PUSH_MODEL)


def may(*operations: OperationName, ae_title: str = "CT1") -> AllowRule:
    return AllowRule.parse(ae_title, operations=operations)


def results(accepted: AssociateAccept) -> list[int]:
    """What became of each context, in the order in which they were proposed."""
    return [context.result for context in sorted(accepted.contexts, key=lambda context: context.context_id)]


class Kept:
    """A handler that remembers."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, received: Received) -> int:
        self.count += 1
        return 0x0000


@pytest.fixture
def kept() -> Kept:
    return Kept()


async def test_contexts_for_what_a_peer_may_not_do_are_refused_as_user_rejection(
    no_leaks: object, engine: Engine, kept: Kept
) -> None:
    async with StorageSCP(kept, port=0, engine=engine, promiscuous=False, access=Access([may("echo")])) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            accepted = await wire.associate([ECHO, STORE, UNKNOWN, OTHER_STORE], calling_ae_title="CT1")
            assert results(accepted) == [0, 1, 3, 4]
            assert await wire.echo() == 0x0000
            assert await wire.release()


async def test_who_may_only_store_gets_no_context_for_echo(no_leaks: object, engine: Engine, kept: Kept) -> None:
    async with StorageSCP(kept, port=0, engine=engine, access=Access([may("store")])) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            accepted = await wire.associate([ECHO, STORE], calling_ae_title="CT1")
            assert results(accepted) == [1, 0]
            assert await wire.store(HELD) == 0x0000
            assert await wire.release()
    assert kept.count == 1


async def test_a_store_on_the_context_of_something_else_is_not_authorized(
    no_leaks: object, engine: Engine, kept: Kept, seen: Seen
) -> None:
    async with StorageSCP(kept, port=0, engine=engine, access=Access([may("echo")]), observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            await wire.associate([ECHO], calling_ae_title="CT1")
            command = dimse.request(
                CommandField.C_STORE_RQ, 1, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID=HELD.sop_instance_uid
            )
            # A small one, and one that would be written as it comes.
            for data in (bytes(HELD.dataset), bytes(3 << 20)):
                await wire.send(pdu.encode_message(1, dimse.encode_command(command), data, max_length=16_384))
                assert (await wire.receive_message()).command.status == 0x0124
            assert await wire.echo() == 0x0000
            assert await wire.release()
        await seen.settled()
    assert kept.count == 0
    assert seen.statuses == {0x0124: 2}


async def test_nothing_of_a_store_that_is_not_authorized_reaches_the_archive(
    no_leaks: object, engine: Engine, tmp_path: Path
) -> None:
    async with Archive(tmp_path / "archive", durability="none") as archive:
        async with StorageSCP(archive, port=0, engine=engine, access=Access([may("echo")])) as scp:
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                await wire.associate([ECHO], calling_ae_title="CT1")
                command = dimse.request(
                    CommandField.C_STORE_RQ, 1, HELD.sop_class_uid, dataset=True, AffectedSOPInstanceUID=HELD.sop_instance_uid
                )
                message = pdu.encode_message(1, dimse.encode_command(command), bytes(3 << 20), max_length=16_384)
                await wire.send(message)
                assert (await wire.receive_message()).command.status == 0x0124
                await wire.release()
    assert not await anyio.to_thread.run_sync(lambda: list((tmp_path / "archive").rglob("*.dcm")))


@pytest.mark.parametrize(("operations", "result"), [(("store", "commit"), 0), (("store", "echo"), 1)])
async def test_storage_commitment_is_an_operation_of_its_own(
    no_leaks: object, engine: Engine, tmp_path: Path, operations: tuple[OperationName, ...], result: int
) -> None:
    access = Access([may(*operations)])
    async with Archive(tmp_path / "archive", index=f"sqlite:{tmp_path / 'index.db'}") as archive:
        async with (
            StorageCommitment(archive, lambda ae_title: None, ae_title="HERE") as commitment,
            StorageSCP(archive, port=0, engine=engine, access=access, services=[commitment]) as scp,
            await Wire.connect("127.0.0.1", scp.port) as wire,
        ):
            role = Role(PUSH_MODEL, True, False)
            accepted = await wire.associate([STORE, COMMIT], calling_ae_title="CT1", roles=(role,))
            assert results(accepted) == [0, result]
            # The role of a context that is refused is not spoken of.
            assert len(accepted.roles) == (1 if result == 0 else 0)
            assert await wire.release()
    assert AS_SCU.abstract_syntax == PUSH_MODEL


async def test_what_several_rules_say_adds_up(no_leaks: object, engine: Engine, kept: Kept) -> None:
    access = Access([may("echo"), may("store", ae_title="CT2"), AllowRule.parse("CT1", ["127.0.0.0/8"], ["store"])])
    async with StorageSCP(kept, port=0, engine=engine, access=access) as scp:
        for title, expected in (("CT1", [0, 0]), ("CT2", [1, 0])):
            async with await Wire.connect("127.0.0.1", scp.port) as wire:
                accepted = await wire.associate([ECHO, STORE], calling_ae_title=title)
                assert results(accepted) == expected
                await wire.release()


@pytest.mark.parametrize("operations", [[], ["query"]])
def test_a_rule_with_operations_that_are_none_is_refused(operations: list[OperationName]) -> None:
    with pytest.raises(ConfigurationError, match="commit, echo, store"):
        AllowRule.parse("CT1", operations=operations)


@pytest.mark.blocking
@pytest.mark.peer("storescu")
async def test_a_dcmtk_host_that_may_only_echo_echoes_and_does_not_store(
    no_leaks: object, engine: Engine, kept: Kept, study: list[Path]
) -> None:
    async with StorageSCP(kept, port=0, engine=engine, access=Access([may("echo", ae_title="MONITOR")])) as scp:
        to = Address("ANY-SCP", scp.port)
        echoed = await dcmtk.echoscu(to, extra=["-aet", "MONITOR"]).run_async()
        assert echoed.returncode == 0, echoed
        sent = await dcmtk.storescu(to, study[:1], extra=["-aet", "MONITOR"]).run_async()
        assert sent.returncode != 0, sent
        assert "No Acceptable Presentation Contexts" in sent.stdout + sent.stderr
    assert kept.count == 0
