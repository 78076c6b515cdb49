"""Five thousand modalities, one in twenty silent, swept by the whole service while people look at its pages: bar P7.

The service and the simulated modalities are processes of their own, so that memory and delays are those of the service.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx
import pytest

from tests.measuring import percentile
from tests.peers.running import free_port

_COUNT, _FAULTS, _CONCURRENCY, _TIMEOUT = 5_000, "silent=5%", 500, 2.0
_FIRST = "127.112.0.1"
# Seconds from one page to the next: whoever looks on clicks fast, and sweeps follow each other without a pause.
_PERIOD = 0.1
# The bars are for a machine of their own, and times on another say nothing.
_STARVED = 0.1
_SWEEPS = 3
# What people look at, to which the bar holds; and what programs ask for.
_PAGES = ("/", "/modalities/{name}", "/storage")
_ASKED = (*_PAGES, "/-/healthy", "/metrics", "/api/modalities")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


@dataclass
class Seen:
    """What one service did.

    :ivar sweeps: seconds of each
    :ivar pages: seconds of each answer, by address
    :ivar peak: bytes of its memory at the most
    :ivar cpu: cores that it took
    :ivar starved: the share of the time that its loop was ready and had no processor
    :ivar lag: seconds that its loop was late, by quantile
    """

    sweeps: list[float] = field(default_factory=list)
    pages: dict[str, list[float]] = field(default_factory=dict)
    peak: int = 0
    cpu: float = 0.0
    starved: float = 0.0
    lag: dict[str, float] = field(default_factory=dict)


@asynccontextmanager
async def started(*words: object) -> AsyncIterator[anyio.abc.Process]:
    command = [sys.executable, "-m", "asyncdicom", *map(str, words)]
    async with await anyio.open_process(command, stdout=None, stderr=None, stdin=None) as process:
        try:
            yield process
        finally:
            process.terminate()
            with anyio.move_on_after(20, shield=True):
                await process.wait()


async def simulated(folder: Path) -> Path:
    """Wait for the inventory, which is written once all of them listen."""
    inventory = anyio.Path(folder / "inventory.csv")
    with anyio.fail_after(60):
        while not await inventory.exists() or len((await inventory.read_text()).splitlines()) <= _COUNT:
            await anyio.sleep(0.1)
    return Path(inventory)


def configuration(inventory: Path, port: int, targets: str) -> str:
    timeouts = ", ".join(f"{name} = {_TIMEOUT}" for name in ("connect", "associate", "operation", "release"))
    return f"""
[scp]
port = 0
[archive]
directory = "archive-{targets}"
index = "sqlite:index-{targets}.db"
min_free = "0 B"
[web]
port = {port}
[fleet]
concurrency = {_CONCURRENCY}
deadline = 0
timeouts = {{ {timeouts} }}
[[sweep]]
every = 1.0
targets = ["@{targets}"]
[modalities]
files = ["{inventory.name}"]
"""


def value_of(text: str, name: str) -> float:
    match = re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    assert match is not None, name
    return float(match[1])


def lag_of(text: str) -> dict[str, float]:
    """Upper bounds of the quantiles of the loop's lag."""
    buckets = [
        (float(bound), float(count))
        for bound, count in re.findall(r'^asyncdicom_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', text, re.MULTILINE)
    ]
    whole = buckets[-1][1]
    return {f"p{share:g}": next(bound for bound, count in buckets if count >= whole * share / 100) for share in (50, 99, 99.9)}


async def watch(inventory: Path, targets: str) -> Seen:
    """Run a service until it has swept twice, and ask for its pages meanwhile.

    :param targets: a group of the inventory
    """
    seen, port = Seen(pages={page: [] for page in _ASKED}), free_port()
    config = inventory.with_name(f"{targets}.toml")
    await anyio.Path(config).write_text(configuration(inventory, port, targets))
    name = quote((await anyio.Path(inventory).read_text()).splitlines()[1].partition(",")[0], safe="")
    async with (
        started("serve", "--config", config) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
        anyio.create_task_group() as tasks,
    ):
        with anyio.fail_after(30):
            while True:
                try:
                    if (await client.get("/-/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    await anyio.sleep(0.05)

        async def ask() -> None:
            for page in itertools.cycle(_ASKED):
                begun = time.monotonic()
                answer = await client.get(page.replace("{name}", name))
                assert answer.status_code == 200
                seen.pages[page].append(time.monotonic() - begun)
                await anyio.sleep(max(0.0, begun + _PERIOD - time.monotonic()))

        begun = time.monotonic()
        tasks.start_soon(ask)
        last = 0.0
        while len(seen.sweeps) < _SWEEPS:
            text = (await client.get("/metrics")).text
            at = value_of(text, "asyncdicom_sweep_last_run_timestamp_seconds")
            if at != last:
                last = at
                seen.sweeps.append(value_of(text, "asyncdicom_sweep_duration_seconds"))
            await anyio.sleep(0.5)
        conditions = [state["state"] for state in (await client.get("/api/modalities")).json()]
        assert conditions.count("down") == (_COUNT // 20 if targets == "all" else 0)
        status = await anyio.Path(f"/proc/{process.pid}/status").read_text()
        seen.peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        seen.lag = lag_of(text)
        waited = int((await anyio.Path(f"/proc/{process.pid}/schedstat").read_text()).split()[1])
        seen.starved = waited / 1e9 / (time.monotonic() - begun)
        times = (await anyio.Path(f"/proc/{process.pid}/stat").read_text()).rpartition(")")[2].split()
        seen.cpu = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begun)
        tasks.cancel_scope.cancel()
    return seen


async def test_5000_modalities_are_swept_in_time_while_pages_are_looked_at(tmp_path: Path) -> None:
    simulate = ("simulate", "--host", _FIRST, "--count", _COUNT, "--port", free_port(), "--faults", _FAULTS)
    async with started(*simulate, "--inventory", tmp_path / "inventory.csv"):
        inventory = await simulated(tmp_path)
        healthy = await watch(inventory, "healthy")
        everybody = await watch(inventory, "all")
    pages = {page: [percentile(seconds, share) for share in (50, 95)] for page, seconds in everybody.pages.items()}
    beyond = min(everybody.sweeps) - min(healthy.sweeps)
    told = {
        "sweep of the healthy, s": [round(seconds, 2) for seconds in healthy.sweeps],
        "sweep of all, s": [round(seconds, 2) for seconds in everybody.sweeps],
        "median and p95 of pages, ms": {page: [round(1000 * one, 1) for one in both] for page, both in pages.items()},
        "peak RSS, MB": round(everybody.peak / 1e6, 1),
        "cores": round(everybody.cpu, 2),
        "without a processor, %": round(100 * everybody.starved),
        "loop lag, s": everybody.lag,
    }
    print(json.dumps(told, indent=1))
    assert everybody.peak <= 150e6
    if max(healthy.starved, everybody.starved) > _STARVED:
        pytest.skip("others took the processor: the times are not those of the service")
    assert beyond <= 2.5
    assert {page: median for page, (median, _) in pages.items() if page in _PAGES and median > 0.05} == {}
