"""An index that hangs or fails: the pages say so at once, and the rest of the service goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest

from asyncdicom.service import run
from asyncdicom.testing import SimulatedModality
from tests.conftest import Baseline
from tests.service.test_service import SCP, WEB, client_of, condition_of, entry, made, until

# Takes every lock of the write-ahead log of a database, as another program can: readers find none that they could share.
_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 8, 120)
print("held", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def held(shared: Path) -> AsyncIterator[None]:
    """Have another process hold the index for the length of the block."""
    async with await anyio.open_process([sys.executable, "-c", _HOLD, str(shared)], stderr=None) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert (await process.stdout.receive()).startswith(b"held")
        try:
            yield
        finally:
            await process.stdin.aclose()
            await process.wait()


async def failures(client: httpx.AsyncClient, *, known_until_then: bool = False) -> dict[str, httpx.Response]:
    """What the pages answer.

    :param known_until_then: readers may still answer from what they have in memory
    """
    answers = {}
    for path in ("/storage", "/storage?fragment=1", "/api/studies"):
        with anyio.fail_after(10):
            while True:
                started = time.monotonic()
                answers[path] = await client.get(path)
                assert time.monotonic() - started < 1.5
                if answers[path].status_code == 503 or not known_until_then:
                    break
        assert answers[path].status_code == 503
        assert answers[path].headers["retry-after"]
    problem = answers["/api/studies"].json()
    assert problem["where"] == "archive.index"
    assert "archive.index" in problem["remedy"]
    page = answers["/storage"].text
    assert page.startswith("<!doctype html>")
    assert problem["error"].removeprefix("the") in page
    assert "Next: " in page
    return answers


@pytest.mark.parametrize("how", ["hangs", "is closed", "is corrupt"])
async def test_an_index_that_does_not_answer_is_told_of_in_time(
    no_leaks: Baseline, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_INDEX_DEADLINE", 0.5)
    async with SimulatedModality() as sim:
        service = await made(tmp_path / "a.toml", SCP + WEB + "[[sweep]]\nevery = 0.2\n" + entry(sim, "sim"))
        async with service, client_of(service) as client:
            assert (await client.get("/storage")).status_code == 200
            database = tmp_path / "data/index.db"
            if how == "hangs":
                async with held(database.with_name("index.db-shm")):
                    answers = await failures(client)
                    assert "the index did not answer in 0.5 s" in answers["/api/studies"].json()["error"]
                    # Nothing else waits with it.
                    started = time.monotonic()
                    assert (await client.get("/")).status_code == 200
                    assert (await client.get("/api/modalities")).status_code == 200
                    assert time.monotonic() - started < 1.0
                await until(lambda: condition_of(service, "sim") == "up")
                assert (await client.get("/storage")).status_code == 200
            elif how == "is closed":
                assert service.archive is not None
                assert service.archive.index is not None
                await service.archive.index.close()
                await failures(client)
            else:
                for name in ("index.db", "index.db-wal"):
                    path = anyio.Path(database.with_name(name))
                    size = (await path.stat()).st_size
                    await path.write_bytes(b"\xa5" * size)
                await failures(client, known_until_then=True)
