"""Killed at any moment, we or the receiver (R16): no event is lost, and one that comes again has the same id."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.events.receiving import lines_of, posted, running_receiver

_PROGRAM = Path(__file__).with_name("relaying.py")


def _relaying(folder: Path, port: int, *more: str) -> list[str]:
    return [
        *(sys.executable, str(_PROGRAM), str(folder / "index.db"), "--url", f"http://127.0.0.1:{port}/"),
        *("--kept", str(folder / "by-command"), *more),
    ]


@contextlib.contextmanager
def _killed(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def _lose_nothing(folder: Path, port: int, rounds: int, moments: random.Random) -> None:
    committed: list[int] = []
    kept = folder / "by-webhook"
    for number in range(rounds):
        with running_receiver(kept, port=port, secret="of the tests") as receiver:
            with _killed(_relaying(folder, port, "--first", str(number * 100_000))) as process:
                assert process.stdout is not None
                first = process.stdout.readline()
                time.sleep(moments.uniform(0, 0.4))
                if number % 2:
                    receiver.process.kill()
                    time.sleep(moments.uniform(0, 0.2))
                process.kill()
                # A line is written at once, so it is there whole or not at all.
                committed += [int(line) for line in [first, *process.stdout] if line.endswith(b"\n")]
    with running_receiver(kept, port=port, secret="of the tests"):
        subprocess.run(_relaying(folder, port, "--finish"), check=True, timeout=30)
    with contextlib.closing(sqlite3.connect(folder / "index.db")) as connection:
        assert connection.execute("SELECT count(*) FROM deliveries").fetchone() == (0,)
        (added,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    assert len(committed) > 3 * rounds
    ids: dict[str, dict[int, set[str]]] = {}
    for target, events in (("webhook", posted(kept)), ("command", lines_of(folder / "by-command"))):
        seen: dict[int, set[str]] = {}
        for event in events:
            seen.setdefault(event["data"]["number"], set()).add(event["id"])
        assert not set(committed) - seen.keys(), f"lost by {target}"
        assert len(seen) == added
        assert all(len(each) == 1 for each in seen.values()), f"another id at {target}"
        ids[target] = seen
    assert ids["webhook"] == ids["command"]
    assert len({next(iter(each)) for each in ids["webhook"].values()}) == added


def test_no_event_is_lost_by_being_killed(tmp_path: Path, free_port: Callable[[], int]) -> None:
    _lose_nothing(tmp_path, free_port(), 10, random.Random(16))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_event_is_lost_by_being_killed_many_times(tmp_path: Path, free_port: Callable[[], int]) -> None:
    _lose_nothing(tmp_path, free_port(), 200, random.Random())
