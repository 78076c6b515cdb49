"""The service as a process: what it answers to signals, what it tells the service manager, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asyncdicom import AssociationRejected, HashedPasscode, UserIdentity
from asyncdicom.testing import Wire, synthetic_instance
from asyncdicom.testing.content import HeldInstance
from asyncdicom.upper_layer.context import VERIFICATION, PresentationContext
from tests.peers.certificates import Certificates, Identity

MAIN = "import sys; from pathlib import Path; from asyncdicom.service.run import serve"
SERVE = f"{MAIN}; sys.exit(serve(Path(sys.argv[1]), log_format='json'))"
SCP = '[scp]\nport = 0\ndrain_timeout = {drain}\n[archive]\nmin_free = "0 B"\ndurability = "none"\n'
WEB = "[web]\nport = 0\n"


class Process:
    """A running service and its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.records: list[dict[str, Any]] = []
        self.other: list[str] = []

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.records.append(json.loads(line))
            except ValueError:
                self.other.append(line.decode())

    async def logged(self, message: str, count: int = 1) -> dict[str, Any]:
        with anyio.fail_after(20):
            while True:
                found = [record for record in self.records if record["message"] == message]
                if len(found) >= count:
                    return found[-1]
                assert self.process.returncode is None, f"it ended: {self.records} {self.other}"
                await anyio.sleep(0.01)

    async def ended(self, seconds: float = 10) -> int:
        with anyio.fail_after(seconds):
            return await self.process.wait()

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def running(path: Path, text: str, *, program: str = SERVE, env: dict[str, str] | None = None) -> AsyncIterator[Process]:
    await anyio.Path(path).write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(path), stderr=subprocess.PIPE, env={**os.environ, **(env or {})}
    )
    service = Process(process)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.read)
            await service.logged("the service is ready")
            yield service
            tasks.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()


async def associated(service: Process, *contexts: PresentationContext) -> Wire:
    address = await service.logged("the storage SCP listens")
    wire = await Wire.connect(address["host"], address["port"])
    await wire.associate(list(contexts) or [PresentationContext(VERIFICATION)])
    return wire


async def test_sigterm_ends_it_with_exit_status_0(tmp_path: Path) -> None:
    async with running(tmp_path / "a.toml", SCP.format(drain=5) + WEB) as service:
        assert (await service.logged("the web side listens"))["port"] > 0
        started = time.monotonic()
        service.tell(signal.SIGTERM)
        assert await service.ended() == 0
        assert time.monotonic() - started < 5
        assert service.other == []


async def test_what_is_under_way_is_finished_and_new_ones_are_turned_away_while_draining(tmp_path: Path) -> None:
    data = await anyio.to_thread.run_sync(synthetic_instance, 16, 16)
    held = HeldInstance.read(data)
    storage = PresentationContext(held.sop_class_uid, (held.transfer_syntax_uid,))
    async with running(tmp_path / "a.toml", SCP.format(drain=10) + WEB) as service:
        web = await service.logged("the web side listens")
        address = await service.logged("the storage SCP listens")
        async with await associated(service, storage) as wire:
            service.tell(signal.SIGTERM)
            await service.logged("draining")
            async with httpx.AsyncClient(base_url=f"http://{web['host']}:{web['port']}", trust_env=False) as client:
                answer = await client.get("/-/ready")
                assert (answer.status_code, answer.text) == (503, "draining: the service ends\n")
            async with await Wire.connect(address["host"], address["port"]) as late:
                with pytest.raises(Exception, match="rejected transiently"):
                    await late.associate([PresentationContext(VERIFICATION)])
            assert await wire.store(data) == 0
            await wire.release()
        assert await service.ended() == 0


async def test_past_the_drain_timeout_it_aborts_and_ends_within_5_seconds(tmp_path: Path) -> None:
    async with running(tmp_path / "a.toml", SCP.format(drain=0.5)) as service, await associated(service) as wire:
        # Half a message: an association with something under way that never ends.
        await wire.send(b"\x04\x00\x00\x00\x01\x00half")
        await anyio.sleep(0.2)
        started = time.monotonic()
        service.tell(signal.SIGTERM)
        assert await service.ended() == 0
        assert time.monotonic() - started < 5.5


async def test_a_second_signal_ends_the_drain(tmp_path: Path) -> None:
    async with running(tmp_path / "a.toml", SCP.format(drain=60)) as service, await associated(service) as wire:
        await wire.send(b"\x04\x00\x00\x00\x01\x00half")
        await anyio.sleep(0.2)
        service.tell(signal.SIGINT)
        await service.logged("draining")
        service.tell(signal.SIGINT)
        assert await service.ended(6) == 0


async def test_sighup_reloads_and_a_bad_configuration_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    one = '[[modality]]\nname = "one"\nae_title = "ONE"\nhost = "127.0.0.1"\n'
    async with running(path, WEB + one) as service:
        web = await service.logged("the web side listens")
        async with httpx.AsyncClient(base_url=f"http://{web['host']}:{web['port']}", trust_env=False) as client:
            await anyio.Path(path).write_text(WEB + one + one.replace('"one"', '"two"'))
            service.tell(signal.SIGHUP)
            assert (await service.logged("reloaded"))["modalities"] == 2
            assert [item["targets"] for item in (await client.get("/sd")).json()] == [["one"], ["two"]]
            await anyio.Path(path).write_text("[web]\nprot = 1\n")
            service.tell(signal.SIGHUP)
            record = await service.logged("the new configuration has a mistake, and the old one stays")
            assert record["mistake"] == "web.prot = 1: unknown key; did you mean port?"
            assert len((await client.get("/sd")).json()) == 2
        service.tell(signal.SIGTERM)
        assert await service.ended() == 0


@pytest.mark.parametrize("abstract", [False, True])
async def test_the_service_manager_is_told(abstract: bool, tmp_path: Path) -> None:
    name = f"@asyncdicom-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind("\0" + name[1:] if abstract else name)

        async def told(condition: Callable[[dict[str, str]], bool]) -> dict[str, str]:
            with anyio.fail_after(10):
                while True:
                    await anyio.wait_readable(manager)
                    message = dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())
                    if condition(message):
                        return message

        env = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}
        async with running(tmp_path / "a.toml", WEB, env=env) as service:
            assert (await told(lambda message: "READY" in message))["STATUS"] == "0 modalities, 0 sweeps"
            for _ in range(2):
                await told(lambda message: message.get("WATCHDOG") == "1")
            before = time.monotonic_ns() // 1000
            service.tell(signal.SIGHUP)
            reloading = await told(lambda message: message.get("RELOADING") == "1")
            assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            await told(lambda message: message.get("READY") == "1")
            service.tell(signal.SIGTERM)
            await told(lambda message: message.get("STOPPING") == "1")
            assert await service.ended() == 0


def run(path: Path, program: str = SERVE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=20)


def test_mistakes_end_it_with_exit_status_2_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[scp]\nhost = "0.0.0.0"\nport = -1\n')
    result = run(tmp_path / "a.toml")
    assert result.returncode == 2
    assert [line.partition(" = ")[0] for line in result.stderr.splitlines()] == ["scp.port", "scp.host"]
    assert not (tmp_path / "data").exists()


def test_a_port_that_is_taken_ends_it_with_exit_status_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "a.toml").write_text(SCP.format(drain=1).replace("port = 0", f"port = {taken.getsockname()[1]}"))
        result = run(tmp_path / "a.toml")
    assert result.returncode == 2
    (record,) = [one for one in map(json.loads, result.stderr.splitlines()) if one["level"] == "critical"]
    assert record["message"] == "the service cannot start"
    assert "scp.port" in record["mistake"]


def test_a_part_that_fails_ends_it_loudly_with_exit_status_1(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(WEB)
    program = f"""
{MAIN}
from asyncdicom.monitor.metrics import Metrics
async def fail(self):
    raise RuntimeError("CANARY")
Metrics.sample_loop_lag = fail
sys.exit(serve(Path(sys.argv[1]), log_format='json'))
"""
    result = run(tmp_path / "a.toml", program)
    assert result.returncode == 1
    record = json.loads(result.stderr.splitlines()[-1])
    assert (record["level"], record["exceptions"]) == ("critical", "RuntimeError")
    assert "CANARY" not in result.stderr


def test_a_thread_that_hangs_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(WEB)
    program = f"""
{MAIN}
import os, signal, threading
from asyncdicom.service import run
run._END_WITHIN = 1.0
threading.Thread(target=threading.Event().wait).start()
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
sys.exit(serve(Path(sys.argv[1]), log_format='json'))
"""
    started = time.monotonic()
    result = run(tmp_path / "a.toml", program)
    assert time.monotonic() - started < 10
    assert "Timeout" in result.stderr


async def test_sighup_reads_the_users_again_and_a_wrong_line_keeps_the_old_ones(tmp_path: Path) -> None:
    users = anyio.Path(tmp_path / "users")
    old, new = await anyio.to_thread.run_sync(lambda: [HashedPasscode.make(passcode) for passcode in (b"old", b"new")])
    await users.write_text(f"ct1:{old}\n")
    text = SCP.format(drain=1).replace("[archive]", 'user_identity = { users_file = "users" }\n[archive]')
    async with running(tmp_path / "a.toml", text) as service:
        address = await service.logged("the storage SCP listens")

        async def is_in(passcode: bytes) -> bool:
            async with await Wire.connect(address["host"], address["port"]) as wire:
                try:
                    await wire.associate(user_identity=UserIdentity("username+passcode", b"ct1", passcode))
                except AssociationRejected:
                    return False
                return await wire.release()

        assert [await is_in(b"old"), await is_in(b"new")] == [True, False]
        await users.write_text(f"ct1:{new}\n")
        service.tell(signal.SIGHUP)
        await service.logged("reloaded")
        assert [await is_in(b"old"), await is_in(b"new")] == [False, True]
        await users.write_text("ct1:hunter2\n")
        service.tell(signal.SIGHUP)
        record = await service.logged("the new configuration has a mistake, and the old one stays")
        assert record["mistake"].startswith("scp.user_identity.users_file")
        assert await is_in(b"new")
    assert "hunter2" not in json.dumps(service.records)


async def test_sighup_takes_a_certificate_that_was_replaced(tmp_path: Path, certificates: Certificates) -> None:
    def put(identity: Identity) -> None:
        shutil.copy(identity.key, tmp_path / "key.pem")
        shutil.copy(identity.certificate, tmp_path / "cert.pem")

    def trusting() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=certificates.ca)

    await anyio.to_thread.run_sync(put, certificates.expired)
    text = SCP.format(drain=1).replace("[archive]", 'tls = { certificate = "cert.pem", key = "key.pem" }\n[archive]')
    async with running(tmp_path / "a.toml", text) as service:
        address = await service.logged("the storage SCP listens")
        context = await anyio.to_thread.run_sync(trusting)
        with pytest.raises(ssl.SSLCertVerificationError):
            await Wire.connect(address["host"], address["port"], ssl=context)
        await anyio.to_thread.run_sync(put, certificates.server)
        service.tell(signal.SIGHUP)
        await service.logged("reloaded")
        async with await Wire.connect(address["host"], address["port"], ssl=context) as wire:
            await wire.associate()
            assert await wire.release()
        assert any(record["message"].startswith("the certificate has changed") for record in service.records)
