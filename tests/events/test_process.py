"""Events of the service as a process: what is under way when it is told to end, and what is left when it is killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import anyio
import anyio.to_thread

from asyncdicom.testing import send_instances, synthetic_study
from tests.events.conftest import eventually
from tests.events.receiving import TAKE, lines_of
from tests.events.test_command import running as processes
from tests.service.test_run import running

HEAD = '[scp]\nport = 0\ndrain_timeout = {drain}\n[archive]\nmin_free = "0 B"\n'


def command(*run: str, more: str = "") -> str:
    words = ", ".join(f"'{word}'" for word in run)
    return f'[[events.target]]\nkind = "command"\non = ["instance.stored"]\nrun = [{words}]\n{more}'


async def instances(count: int) -> list[bytes]:
    return await anyio.to_thread.run_sync(lambda: [data for _, data in synthetic_study(count, 16, 16)])


async def test_a_command_under_way_is_waited_for_while_draining(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    text = HEAD.format(drain=10) + command("sh", "-c", f"echo >> {tmp_path}/begun; sleep 1; {TAKE}", str(kept))
    async with running(tmp_path / "a.toml", text) as service:
        address = await service.logged("the storage SCP listens")
        await send_instances("127.0.0.1", address["port"], await instances(1))
        await eventually((tmp_path / "begun").exists)
        service.tell(signal.SIGTERM)
        assert await service.ended() == 0
        assert len(await anyio.to_thread.run_sync(lines_of, kept)) == 1
        assert service.other == []


async def test_a_command_that_does_not_end_is_ended_after_the_drain_and_told_again(tmp_path: Path) -> None:
    marker = str(7_000_000_000 + time.monotonic_ns() % 1_000_000_000)
    text = HEAD.format(drain=0.2) + command("sleep", marker, more="timeout = 3600.0\n")
    async with running(tmp_path / "a.toml", text) as service:
        address = await service.logged("the storage SCP listens")
        await send_instances("127.0.0.1", address["port"], await instances(1))
        await eventually(lambda: processes(marker))
        started = time.monotonic()
        service.tell(signal.SIGTERM)
        assert await service.ended() == 0
        assert time.monotonic() - started < 5
        assert await anyio.to_thread.run_sync(processes, marker) == []
    kept = tmp_path / "kept"
    async with running(tmp_path / "a.toml", HEAD.format(drain=0.2) + command("sh", "-c", TAKE, str(kept))):
        await eventually(lambda: len(lines_of(kept)) == 1)


async def test_every_acknowledged_instance_is_told_although_the_service_is_killed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    text = HEAD.format(drain=1) + command("sh", "-c", TAKE, str(kept))
    study = await instances(20)
    async with running(tmp_path / "a.toml", text) as service:
        address = await service.logged("the storage SCP listens")
        await send_instances("127.0.0.1", address["port"], study)
        service.tell(signal.SIGKILL)
        await service.ended()
    async with running(tmp_path / "a.toml", text):
        await eventually(lambda: len({event["data"]["SOPInstanceUID"] for event in lines_of(kept)}) == 20)
    events = await anyio.to_thread.run_sync(lines_of, kept)
    assert len({event["id"] for event in events}) == 20


async def test_a_modality_that_is_quiet_is_told_once_although_the_service_is_killed_again_and_again(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    wanted = command("sh", "-c", TAKE, str(kept)).replace('"instance.stored"', '"modality.quiet", "modality.heard"')
    entry = '[[modality]]\nname = "ct1"\nae_title = "CT1"\nhost = "127.0.0.1"\narrivals = { within = 0.3 }\n'
    text = HEAD.format(drain=1) + wanted + entry
    for _ in range(3):
        async with running(tmp_path / "a.toml", text) as service:
            await service.logged("a modality is quiet: nothing came from it for longer than expected")
            service.tell(signal.SIGKILL)
            await service.ended()
    async with running(tmp_path / "a.toml", text) as service:
        address = await service.logged("the storage SCP listens")
        await eventually(lambda: len(lines_of(kept)) >= 1)
        await send_instances("127.0.0.1", address["port"], await instances(1), calling_ae_title="CT1")
        await service.logged("a modality is quiet no more")
        await eventually(lambda: len({event["id"] for event in lines_of(kept)}) == 3)
    events = {event["id"]: event["kind"] for event in await anyio.to_thread.run_sync(lines_of, kept)}
    assert list(events.values()) == ["modality.quiet", "modality.heard", "modality.quiet"]
