"""Bar R14: the wall clock steps by an hour, forwards and back, and nothing that waits for a peer notices."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from asyncdicom.modality import Engine
from tests.peers.programs import program
from tests.peers.running import run_program

# The timeouts are half a minute: against an hour that is nothing, and libfaketime holds up programs with threads for a second
# or two now and then, whatever the clock does.
HOUR = 3_600

# libfaketime takes the absolute end of a sleep on the monotonic clock for one on the wall clock: pynetdicom sleeps otherwise.
SLEEP = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds)
"""

SERVE = f"""{SLEEP}
import sys
from pathlib import Path
from asyncdicom.service.run import serve
sys.exit(serve(Path(sys.argv[1]), log_format="json"))
"""

SERVED = """
[scp]
port = 0
engine = "{engine}"
artim_timeout = 30.0
idle_timeout = 60.0
[archive]
min_free = "0 B"
durability = "none"
index = "sqlite:index.db"
[fleet]
timeouts = {{ resolve = 30.0, connect = 30.0, associate = 30.0, operation = 30.0, release = 30.0 }}
[[sweep]]
operation = "echo"
every = 0.2
[web]
port = 0
[[modality]]
name = "itself"
ae_title = "ITSELF"
host = "127.0.0.1"
port = {port}
engine = "{engine}"
"""

# Asks again and again, on an association that it keeps and on new ones, and tells what came of it and what time it is.
ASK = f"""{SLEEP}
import asyncio, json, sys, time
from asyncdicom import Instance, Modality, PresentationContext, Timeouts, associate
from asyncdicom.testing import HeldInstance, synthetic_instance

held = HeldInstance.read(synthetic_instance())
instance = Instance(
    held.sop_class_uid, held.sop_instance_uid, held.transfer_syntax_uid, size=len(held.dataset), data=bytes(held.dataset)
)
verification = PresentationContext("1.2.840.10008.1.1")
timeouts = Timeouts(resolve=30, connect=30, associate=30, operation=30, release=30)

async def main(port, engine):
    service = Modality("service", "SERVICE", "127.0.0.1", port, timeouts=timeouts)
    async with associate(service, engine=engine, contexts=[verification, instance.context]) as kept:
        async with associate(service, engine=engine, contexts=[verification]) as idle:
            while not stop.is_set():
                try:
                    statuses = [await kept.store(instance)]
                    async with associate(service, engine=engine, contexts=[verification]) as new:
                        statuses.append(await new.echo())
                    told = dict(statuses=statuses)
                except Exception as error:
                    told = dict(error=repr(error))
                print(json.dumps(dict(told, wall=time.time())), flush=True)
                await asyncio.sleep(0.02)
            print(json.dumps(dict(statuses=[await idle.echo(), await kept.echo()], wall=time.time())), flush=True)

async def watched(*arguments):
    global stop
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, stop.set)
    await main(*arguments)

asyncio.run(watched(int(sys.argv[1]), sys.argv[2]))
"""


class Clock:
    """The wall clock of programs that are started with its environment; their monotonic clock is the real one.

    :ivar env: what they are started with
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        preload = run_program([program("faketime"), "-m", "-f", "+0", "env"]).stdout
        [library] = [line.partition("=")[2] for line in preload.splitlines() if line.startswith("LD_PRELOAD=")]
        self.env: Mapping[str, str] = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            # Asked for every time, so that a step is seen at once.
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.step(0)

    def step(self, seconds: int) -> None:
        """Set it to so many seconds beside the real one."""
        following = self._file.with_suffix(".new")
        following.write_text(f"{seconds:+d}\n")
        following.rename(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


class Lines:
    """A program that tells JSON objects, one a line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.told: list[dict[str, Any]] = []
        self.other: list[str] = []

    async def read(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        async for line in stream:
            try:
                self.told.append(json.loads(line))
            except ValueError:
                self.other.append(line.decode())

    async def message(self, text: str) -> dict[str, Any]:
        with anyio.fail_after(20):
            while True:
                for record in self.told:
                    if record.get("message") == text:
                        return record
                assert self.process.returncode is None, f"it ended: {self.told} {self.other}"
                await anyio.sleep(0.01)


@asynccontextmanager
async def running(program: str, *arguments: object, env: Mapping[str, str]) -> AsyncIterator[Lines]:
    """A Python program, ended on the way out."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        *map(str, arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
    )
    lines = Lines(process)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lines.read, process.stdout)
            tasks.start_soon(lines.read, process.stderr)
            yield lines
            tasks.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()


@pytest.mark.peer("faketime")
@pytest.mark.blocking  # the clock is a file
@pytest.mark.timeout(180)
@pytest.mark.parametrize("engine", ["native", "pynetdicom"])
async def test_steps_of_an_hour_time_nothing_out(clock: Clock, tmp_path: Path, engine: Engine, free_port: Any) -> None:
    port = free_port()
    configuration = tmp_path / "service.toml"
    configuration.write_text(SERVED.format(engine=engine, port=port).replace("port = 0", f"port = {port}", 1))
    async with running(SERVE, configuration, env=clock.env) as service:
        await service.message("the service is ready")
        web = await service.message("the web side listens")
        async with running(ASK, port, engine, env=clock.env) as asking:
            walls = []
            for seconds in (0, HOUR, -HOUR):
                clock.step(seconds)
                before = len(asking.told)
                with anyio.fail_after(35):
                    # Some questions on either side of every step, and a moment in which timers could go off.
                    while len(asking.told) < before + 3:
                        assert asking.process.returncode is None, "".join(asking.other)
                        await anyio.sleep(0.01)
                    await anyio.sleep(0.3)
                walls.append(asking.told[-1]["wall"] - time.time())
            assert asking.process.stdin is not None
            asking.process.stdin.write(b"stop\n")
            with anyio.fail_after(35):
                await asking.process.wait()
            assert [told for told in asking.told if set(told.get("statuses", ["error"])) != {0}] == []
            assert asking.process.returncode == 0, "".join(asking.other)
            # The steps were there to be noticed.
            assert [round(wall / HOUR) for wall in walls] == [0, 1, -1]
        assert len(asking.told) > 9
        clock.step(HOUR)
        await anyio.sleep(0.4)
        async with httpx.AsyncClient(base_url=f"http://{web['host']}:{web['port']}", trust_env=False) as client:
            metrics = dict(
                line.rpartition(" ")[::2]
                for line in (await client.get("/metrics")).text.splitlines()
                if line[:1] not in ("#", "")
            )
        asked = {name: float(value) for name, value in metrics.items() if name.startswith("asyncdicom_")}
        assert asked['asyncdicom_operations_total{modality="itself",operation="echo"}'] > 4
        assert [name for name, value in asked.items() if "_failures_total" in name and value] == []
        assert [name for name, value in asked.items() if name.startswith("asyncdicom_scp_associations_aborted") and value] == []
        assert asked['asyncdicom_modality_up{modality="itself"}'] == 1
        assert asked['asyncdicom_modality_last_success_timestamp_seconds{modality="itself"}'] > time.time() + HOUR / 2
        assert [record for record in service.told if record["level"] not in ("info", "debug")] == []
        assert service.other == []
