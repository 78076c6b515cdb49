"""``asyncdicom simulate``."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRAM, Run

# The commands run in processes of their own: what blocks here are the files that a test writes for them.
pytestmark = pytest.mark.blocking


@asynccontextmanager
async def simulated(folder: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command, once it serves; it is ended by Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "simulate", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder
    )
    try:
        assert process.stderr is not None
        said = b""
        async with asyncio.timeout(30):
            while b"Ctrl-C ends" not in said:
                line = await process.stderr.readline()
                assert line, said
                said += line
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, err) == (0, b"")


async def test_the_inventory_is_csv_on_standard_output(folder: Path) -> None:
    async with simulated(folder, "--count", "20", "--faults", "silent=10%,refuse=3") as process:
        assert process.stdout is not None
        lines = [(await process.stdout.readline()).decode() for _ in range(21)]
    rows = list(csv.DictReader(lines))
    kinds = Counter(row["groups"] for row in rows)
    assert kinds == {"simulated healthy": 15, "simulated silent": 2, "simulated refusing": 3}
    assert len({row["host"] for row in rows}) == 20
    assert len({row["port"] for row in rows}) == 1


async def test_the_inventory_in_a_file_is_a_configuration_of_the_other_commands(asyncdicom: Run, folder: Path) -> None:
    async with simulated(folder, "--count", "6", "--faults", "refusing=1", "--inventory", "fleet.csv"):
        echo = await asyncdicom("echo", "--all", "--config", "fleet.csv", "--json")
        find = await asyncdicom("find", "@healthy", "--config", "fleet.csv", "-k", "PatientID=*-2", "--json")
    assert Counter(json.loads(line)["reason"] for line in echo.lines) == {"ok": 5, "connect_refused": 1}
    assert len(find.rows) == 5
    assert {row["00100020"]["Value"][0][-2:] for row in find.rows} == {"-2"}


async def test_modalities_that_speak_tls_stand_in_a_toml_inventory(asyncdicom: Run, folder: Path) -> None:
    async with simulated(folder, "--count", "3", "--faults", "tls=2", "--inventory", "fleet.toml"):
        result = await asyncdicom("echo", "@tls", "--config", "fleet.toml", "--json")
    assert result.status == 0, result.out
    assert all(json.loads(line)["phases_ms"]["tls"] > 0 for line in result.lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "0"], "--count 0"),
        (["--port", "70000"], "--port 70000"),
        (["--faults", "haunted=3"], "no such fault"),
        (["--faults", "silent=200%"], "a share in percent"),
        (["--count", "2", "--faults", "silent=3"], "add up to 3 of 2"),
        (["--host", "10.0.0.1"], "leave 127.0.0.0/8"),
    ],
)
async def test_a_mistake_of_usage_is_told(asyncdicom: Run, words: list[str], said: str) -> None:
    result = await asyncdicom("simulate", *words)
    assert (result.status, result.out) == (2, "")
    assert said in result.err


async def test_a_port_that_is_taken_is_told(asyncdicom: Run, folder: Path) -> None:
    async with simulated(folder, "--count", "1", "--inventory", "fleet.csv"):
        (row,) = csv.DictReader((folder / "fleet.csv").read_text().splitlines())
        result = await asyncdicom("simulate", "--count", "1", "--port", row["port"])
    assert result.status == 2
    assert f"--port {row['port']}: cannot listen there" in result.err
