"""Good and bad peers for a long time (R12): nothing is held afterwards that was not held before, and memory does not grow."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx
import pytest

from asyncdicom.archive.verification import Progress, verify
from asyncdicom.errors import OperationError
from asyncdicom.testing import HeldInstance, Wire, synthetic_instance
from asyncdicom.upper_layer.context import VERIFICATION, PresentationContext
from tests.scp.test_fuzz import play

# Minutes; an hour is the long form of the bar.
_MINUTES = float(os.environ.get("ASYNCDICOM_SOAK_MINUTES", "60"))
_PROGRAM = Path(__file__).with_name("soaking.py")
_ARTIM = 0.5
_IDLE = 2.0
_GOOD, _MUTATED, _CUT, _SILENT = 8, 6, 2, 4
# A service that has received for a while holds its pools and caches.
_WARM_UP = 20.0
_MAX_SLOPE = 1 << 20
# The largest pool is that of the archive.
_POOL = 8
# Database and log for each of them, for three that read and one that writes; shared memory, and the lock.
_INDEX_DESCRIPTORS = 2 * (_POOL + 3 + 1) + 2
# Most instances come again, so that it is not the index that grows.
_INSTANCES = 200
_HELD = [HeldInstance.read(synthetic_instance(16, 16, number=number + 1)) for number in range(_INSTANCES)]
_CONTEXTS = [PresentationContext(VERIFICATION), PresentationContext(_HELD[0].sop_class_uid, (_HELD[0].transfer_syntax_uid,))]

# What the service warns about is what it was sent.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


@dataclass
class Held:
    """What a service holds at one moment."""

    tasks: int
    threads: list[str]
    descriptors: list[str]
    resident: int

    @property
    def pools(self) -> Counter[str]:
        """Threads by their names, without their numbers."""
        return Counter(re.sub(r"[-_ ]?\d+$", "", name) for name in self.threads)

    @property
    def others(self) -> Counter[str]:
        """Descriptors but those of the index, of which each of its threads has its own from when it is first needed."""
        kinds = (re.sub(r"\[\d+\]$", "", name) for name in self.descriptors)
        return Counter(kind for kind in kinds if "/index.db" not in kind)


class Soaked:
    """A service under load.

    :ivar associations: those of good peers that were released
    :ivar trouble: what a good peer saw that it should not have seen
    """

    def __init__(self, process: asyncio.subprocess.Process, port: int, web: int) -> None:
        self._process = process
        self.port = port
        self._metrics = f"http://127.0.0.1:{web}/metrics"
        self.associations = 0
        self.others = 0
        self.trouble: Counter[str] = Counter()
        self._seeds = iter(range(10**9))

    async def held(self) -> Held:
        """What it holds now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        with anyio.fail_after(10):
            return Held(**json.loads(await self._process.stdout.readline()))

    async def quiet(self) -> Held:
        """What it holds once nobody is there: gauges are back to exactly 0."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            with anyio.fail_after(_IDLE + _ARTIM + 10):
                while True:
                    lines = (await client.get(self._metrics)).text.splitlines()
                    if {"asyncdicom_scp_associations 0.0", "asyncdicom_ingest_in_flight_bytes 0.0"} <= set(lines):
                        break
                    await anyio.sleep(0.1)
        await anyio.sleep(_ARTIM + 1.0)
        return await self.held()

    async def load(self, seconds: float) -> list[tuple[int, int]]:
        """Let all of them come, for so many seconds.

        :return: associations so far and bytes of memory, every second
        """
        samples: list[tuple[int, int]] = []
        until = time.monotonic() + seconds
        async with anyio.create_task_group() as tasks:
            for number in range(_GOOD):
                tasks.start_soon(self._repeat, self._good, random.Random(number), until)
            for _ in range(_MUTATED):
                tasks.start_soon(self._repeat, self._mutated, random.Random(), until)
            for number in range(_CUT):
                tasks.start_soon(self._repeat, self._cut, random.Random(number), until)
            for number in range(_SILENT):
                tasks.start_soon(self._repeat, self._silent, random.Random(number), until)
            async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
                while time.monotonic() < until:
                    await anyio.sleep(1.0)
                    await client.get(self._metrics)
                    samples.append((self.associations, (await self.held()).resident))
        return samples

    async def _repeat(self, once: Callable[[random.Random], object], chance: random.Random, until: float) -> None:
        while time.monotonic() < until:
            await once(chance)  # type: ignore[misc]

    async def _good(self, chance: random.Random) -> None:
        try:
            async with await Wire.connect("127.0.0.1", self.port, timeout=20) as wire:
                await wire.associate(_CONTEXTS)
                if await wire.echo():
                    self.trouble["an echo that failed"] += 1
                for _ in range(chance.randrange(4)):
                    if await wire.store(chance.choice(_HELD)):
                        self.trouble["a store that failed"] += 1
                if not await wire.release():
                    self.trouble["no answer to a release"] += 1
        except (OSError, OperationError) as error:
            self.trouble[repr(error)] += 1
        else:
            self.associations += 1

    async def _mutated(self, chance: random.Random) -> None:
        self.others += 1
        await play(self.port, next(self._seeds))

    async def _cut(self, chance: random.Random) -> None:
        """It is gone in the middle of an instance."""
        self.others += 1
        with suppress(OSError, OperationError):
            async with await Wire.connect("127.0.0.1", self.port) as wire:
                await wire.associate(_CONTEXTS)
                sending = asyncio.create_task(wire.store(chance.choice(_HELD)))
                await anyio.sleep(chance.uniform(0.0, 0.003))
                sending.cancel()
                await asyncio.wait([sending])
                wire.reset()

    async def _silent(self, chance: random.Random) -> None:
        """It says nothing, or the beginning of something, and waits until it is closed."""
        self.others += 1
        async with await Wire.connect("127.0.0.1", self.port) as wire:
            await wire.send(b"\x01\x00\x00\x00\x00\xff"[: chance.randrange(7)])
            if await wire.closed(10) > _ARTIM + 1.0:
                self.trouble["a silent peer that was not closed in time"] += 1


@asynccontextmanager
async def soaked(folder: Path) -> AsyncIterator[Soaked]:
    config = folder / "asyncdicom.toml"
    await anyio.Path(config).write_text(
        f"[scp]\nport = 0\nartim_timeout = {_ARTIM}\nidle_timeout = {_IDLE}\nmax_pdu = 16384\n"
        'max_object_size = "1 MiB"\n[archive]\nmin_free = "0 B"\n[web]\nport = 0\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(_PROGRAM), str(config), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        yield Soaked(process, **json.loads(await process.stdout.readline()))
        assert process.stdin is not None
        process.stdin.close()
        with anyio.fail_after(20):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def soak(folder: Path, warm_up: float, seconds: float) -> tuple[str, list[tuple[int, int]]]:
    """Warm it up, look, load it, and look again."""
    async with soaked(folder) as service:
        await service.load(warm_up)
        before = await service.quiet()
        samples = await service.load(seconds)
        after = await service.quiet()
        assert (after.tasks, after.others) == (before.tasks, before.others)
        assert after.pools.keys() == before.pools.keys()
        # Pools start their threads as they are needed, and keep them.
        assert max(after.pools.values()) <= _POOL
        assert len(after.descriptors) - after.others.total() <= _INDEX_DESCRIPTORS
        assert not service.trouble
        assert service.associations
    archive = folder / "data/archive"
    assert {path.suffix for path in await anyio.to_thread.run_sync(_files, archive)} == {".dcm"}
    progress = Progress()
    assert [difference async for difference in verify(archive, folder / "data/index.db", progress)] == []
    return (
        f"{seconds:.0f} s, {service.associations} associations of good peers, {service.others} bad peers,"
        f" {progress.read} instances verified, {after.tasks} tasks and {after.others.total()} descriptors beside the index as"
        f" before, {len(after.threads)} threads",
        samples,
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


async def test_nothing_is_held_of_good_and_bad_peers_that_are_gone(tmp_path: Path) -> None:
    await soak(tmp_path, 1.0, 2.0)


@pytest.mark.soak
@pytest.mark.timeout(_MINUTES * 60 + 600)
async def test_memory_does_not_grow_with_the_associations_of_an_hour(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    told, samples = await soak(tmp_path, _WARM_UP, 60 * _MINUTES)
    slope = statistics.linear_regression(*zip(*samples, strict=True)).slope * 10_000
    growth = samples[-1][1] - samples[0][1]
    record_property("R12", f"{told}; {slope / 1e3:+.0f} kB for 10,000 associations ({growth / 1e3:+.0f} kB in all)")
    assert slope <= _MAX_SLOPE
