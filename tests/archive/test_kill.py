"""Killed at any moment (R1): what was acknowledged is there, intact and indexed, and nothing else is visible."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncdicom.archive import Archive
from tests.archive.dying import campaign
from tests.archive.instances import everything_in
from tests.archive.tracing import running, storing

_ROUNDS = 5


def _killed(archive: Path, index: Path, seed: str, parts: bool, wait: float) -> dict[str, str]:
    """What a program acknowledged that was killed at work."""
    options = ["--index", f"sqlite:{index}", "--endless", "--callers", "4", "--count", "40", "--seed", seed]
    acknowledged = {}
    with running(storing(archive, *options, *(["--parts"] if parts else []))) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(wait)
        process.kill()
        # A line is written at once, so it is there whole or not at all.
        for line in [first, *process.stdout]:
            status, uid, sha256 = line.split()
            assert status == "0000"
            acknowledged[uid] = sha256
    return acknowledged


async def _open_and_close(archive: Path, index: Path) -> None:
    async with Archive(archive, index=f"sqlite:{index}", outbox=True):
        pass


@pytest.mark.parametrize("parts", [False, True], ids=["unnamed", "temporary-names"])
def test_rows_and_events_are_those_of_what_was_acknowledged(tmp_path: Path, parts: bool) -> None:
    archive, index = tmp_path / "archive", tmp_path / "index.db"
    moments = random.Random(parts)
    acknowledged: dict[str, str] = {}
    for number in range(_ROUNDS):
        acknowledged |= _killed(archive, index, str(number), parts, moments.uniform(0, 0.15))
        started = time.monotonic()
        asyncio.run(_open_and_close(archive, index))
        assert time.monotonic() - started < 5
        found = {}
        for path, encoded in everything_in(archive).items():
            assert path.endswith(".dcm")
            offset = 144 + int.from_bytes(encoded[140:144], "little")
            found[Path(path).stem] = hashlib.sha256(encoded[offset:]).hexdigest()
        assert {uid: found.get(uid) for uid in acknowledged} == acknowledged
        with sqlite3.connect(index) as connection:
            rows = dict(connection.execute("SELECT sop_instance_uid, sha256 FROM instances").fetchall())
            (told,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
        connection.close()
        assert {uid: rows.get(uid) for uid in acknowledged} == acknowledged
        assert told == len(rows)
        # No row without its file; a file without a row is one that was under way, whole, and not acknowledged.
        assert rows.items() <= found.items()
        assert len(found) - len(rows) <= 4 * (number + 1)
    assert len(acknowledged) > 20


@pytest.mark.timeout(180)
def test_what_a_service_acknowledged_survives_a_hundred_kills(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = campaign(tmp_path / "killed", "--deaths", "100", timeout=170)
    record_property("SIGKILL", str(found))
    found.check(100)
    # The moments were not all harmless.
    assert found.swept
    assert found.while_starting


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize(
    ("durability", "duplicates", "campaigns"),
    [("full", "keep-first", 10), ("file", "keep-first", 1), ("none", "keep-first", 1), ("full", "replace", 2)],
)
def test_what_a_service_acknowledged_survives_a_thousand_kills(
    tmp_path: Path, record_property: Callable[[str, object], None], durability: str, duplicates: str, campaigns: int
) -> None:
    for seed in range(campaigns):
        options = ("--deaths", "100", "--durability", durability, "--duplicates", duplicates, "--seed", f"{durability} {seed}")
        found = campaign(tmp_path / str(seed), *options, timeout=300)
        record_property(f"SIGKILL, {durability}, {duplicates}", str(found))
        found.check(100)
