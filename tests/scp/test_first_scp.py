"""The first storage SCP of every tutorial, step by step, each with DCMTK and pynetdicom as the sender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from asyncdicom import PresentationContext, Received, StorageSCP
from asyncdicom.modality import Engine
from tests.peers import dcmtk, pynetdicom_apps
from tests.peers.peer import Address
from tests.peers.running import Command

CT = "1.2.840.10008.5.1.4.1.1.2"

pytestmark = [pytest.mark.peer("storescu"), pytest.mark.blocking]


@pytest.fixture(params=["dcmtk", "pynetdicom"])
def sender(request: pytest.FixtureRequest) -> Any:
    """Makes the command that sends a file to a port."""

    def command(port: int, path: Path) -> Command:
        to = Address("ASYNCDICOM", port)
        return dcmtk.storescu(to, [path], extra=["-d"]) if request.param == "dcmtk" else pynetdicom_apps.storescu(to, path)

    return command


async def send(command: Command) -> Any:
    return await command.run_async()


async def test_a_class_or_syntax_that_is_not_supported_is_rejected_by_its_context(
    no_leaks: object, engine: Engine, study: list[Path]
) -> None:
    came: list[str] = []

    def handle(received: Received) -> int:
        came.append(received.transfer_syntax_uid)
        return 0x0000

    only = [PresentationContext(CT, (ExplicitVRLittleEndian,))]
    async with StorageSCP(handle, port=0, contexts=only, engine=engine) as scp:
        to = Address("ASYNCDICOM", scp.port)
        accepted = await dcmtk.storescu(to, study[:1]).run_async()
        assert accepted.returncode == 0, accepted
        rejected = await dcmtk.storescu(to, study[:1], extra=["-xi"]).run_async()
        assert rejected.returncode != 0
        echo = await dcmtk.echoscu(to).run_async()
        assert echo.returncode != 0
    assert came == [str(ExplicitVRLittleEndian)]


async def test_without_a_handler_the_answer_is_0xc211(no_leaks: object, engine: Engine, sender: Any, study: list[Path]) -> None:
    async with StorageSCP(port=0, engine=engine) as scp:
        ended = await send(sender(scp.port, study[0]))
    assert "C211" in (ended.stdout + ended.stderr).upper()


async def test_a_handler_that_raises_answers_0xc211(no_leaks: object, engine: Engine, sender: Any, study: list[Path]) -> None:
    async def handle(received: Received) -> int:
        raise ZeroDivisionError

    async with StorageSCP(handle, port=0, engine=engine) as scp:
        ended = await send(sender(scp.port, study[0]))
    assert "C211" in (ended.stdout + ended.stderr).upper()


async def test_the_status_that_a_handler_returns_is_the_status_sent(
    no_leaks: object, engine: Engine, sender: Any, study: list[Path]
) -> None:
    async with StorageSCP(lambda received: 0x0000, port=0, engine=engine) as scp:
        ended = await send(sender(scp.port, study[0]))
        assert ended.returncode == 0, ended
    async with StorageSCP(lambda received: 0xA700, port=0, engine=engine) as scp:
        ended = await send(sender(scp.port, study[0]))
    assert "A700" in (ended.stdout + ended.stderr).upper()


async def test_a_handler_can_write_the_decoded_dataset(
    no_leaks: object, engine: Engine, sender: Any, study: list[Path], tmp_path: Path
) -> None:
    def handle(received: Received) -> int:
        received.dataset.save_as(tmp_path / "decoded.dcm", enforce_file_format=True)
        return 0x0000

    async with StorageSCP(handle, port=0, engine=engine) as scp:
        ended = await send(sender(scp.port, study[0]))
        assert ended.returncode == 0, ended
    kept, sent = dcmread(tmp_path / "decoded.dcm"), dcmread(study[0])
    assert kept.PixelData == sent.PixelData
    assert kept.file_meta.MediaStorageSOPInstanceUID == sent.SOPInstanceUID


async def test_a_handler_can_write_the_encoded_dataset_to_a_folder_given_as_argument(
    no_leaks: object, engine: Engine, sender: Any, study: list[Path], tmp_path: Path
) -> None:
    async with StorageSCP(write_encoded, port=0, args=(tmp_path / "kept",), engine=engine) as scp:
        ended = await send(sender(scp.port, study[0]))
        assert ended.returncode == 0, ended
    [kept] = (tmp_path / "kept").iterdir()
    assert dcmread(kept).PixelData == dcmread(study[0]).PixelData
    assert dcmread(kept).file_meta.SourceApplicationEntityTitle == "STORESCU"


async def test_a_folder_that_cannot_be_made_is_answered_with_the_handler_s_0xc001(
    no_leaks: object, engine: Engine, sender: Any, study: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with StorageSCP(write_encoded, port=0, args=(tmp_path / "file" / "kept",), engine=engine) as scp:
        ended = await send(sender(scp.port, study[0]))
    assert "C001" in (ended.stdout + ended.stderr).upper()


def write_encoded(received: Received, folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return 0xC001
    # A UID is the peer's text: it never becomes a path unchecked.
    name = "".join(character if character in "0123456789." else "_" for character in received.sop_instance_uid)
    (folder / f"{name}.dcm").write_bytes(received.encoded)
    return 0x0000


async def test_every_class_and_every_transfer_syntax_is_taken(no_leaks: object, engine: Engine, study: list[Path]) -> None:
    came: list[str] = []

    async def handle(received: Received) -> int:
        came.append(received.transfer_syntax_uid)
        return 0x0000

    async with StorageSCP(handle, port=0, engine=engine) as scp:
        to = Address("ASYNCDICOM", scp.port)
        for option in ("-xe", "-xi", "-xd"):
            ended = await dcmtk.storescu(to, study[:1], extra=[option]).run_async()
            assert ended.returncode == 0, ended
    assert came == [
        str(ExplicitVRLittleEndian),
        str(ImplicitVRLittleEndian),
        "1.2.840.10008.1.2.1.99",
    ]


async def test_an_echo_is_answered_on_the_same_port(no_leaks: object, engine: Engine) -> None:
    async with StorageSCP(port=0, engine=engine) as scp:
        to = Address("ASYNCDICOM", scp.port)
        for command in (dcmtk.echoscu(to), pynetdicom_apps.echoscu(to)):
            ended = await command.run_async()
            assert ended.returncode == 0, ended


async def test_instances_can_be_received_by_iteration(no_leaks: object, engine: Engine, sender: Any, study: list[Path]) -> None:
    import anyio

    ended: list[Any] = []

    async def deliver(port: int) -> None:
        ended.append(await send(sender(port, study[0])))

    async with StorageSCP(port=0, engine=engine) as scp, anyio.create_task_group() as tasks:
        instances = scp.received()
        tasks.start_soon(deliver, scp.port)
        received = await anext(instances)
        assert received.sop_instance_uid == str(dcmread(study[0]).SOPInstanceUID)
        assert not ended, "it is acknowledged when the next one is asked for"
        with anyio.move_on_after(1.0):
            await anext(instances)
        await instances.aclose()
    assert ended[0].returncode == 0
