"""``asyncdicom serve`` and ``asyncdicom check-config``."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRAM, Run

# The commands run in processes of their own: what blocks here are the files that a test writes for them.
pytestmark = pytest.mark.blocking

GOOD = """
[scp]
port = 0
[archive]
min_free = "0 B"
[web]
port = 0
[[modality]]
name = "ct1"
ae_title = "CT1"
host = "127.0.0.1"
groups = ["scanners"]
[[sweep]]
operation = "echo"
every = 60.0
"""
BAD = """
[scp]
port = 99999
prot = 1
[[modality]]
name = "ct1"
ae_title = "A TITLE THAT IS TOO LONG"
host = "127.0.0.1"
[[modality]]
name = "ct1"
ae_title = "CT1"
host = "127.0.0.1"
"""


async def test_a_configuration_without_mistakes_is_summed_up(asyncdicom: Run, folder: Path) -> None:
    (folder / "site.toml").write_text(GOOD)
    result = await asyncdicom("check-config", "site.toml")
    assert (result.status, result.err) == (0, "")
    assert result.lines[0] == "site.toml: no mistakes"
    assert "1 in 1 groups, 1 sweeps" in result.out


async def test_who_may_in_is_summed_up_without_names(asyncdicom: Run, folder: Path) -> None:
    (folder / "users").write_text((await asyncdicom("hash-passcode", "jane", stdin="hunter2\n")).out)
    (folder / "site.toml").write_text('[scp]\nuser_identity = { users_file = "users" }\n')
    result = await asyncdicom("check-config", "site.toml")
    assert (result.status, result.err) == (0, "")
    assert "  identities  1 users; required" in result.lines
    assert "jane" not in result.out


async def test_every_mistake_stands_on_a_line_with_path_value_and_remedy(asyncdicom: Run, folder: Path) -> None:
    (folder / "site.toml").write_text(BAD)
    result = await asyncdicom("check-config", "site.toml")
    assert result.status == 2
    told = {line.partition(" ")[0]: line for line in result.lines}
    assert set(told) == {"scp.port", "scp.prot", "modality[0].ae_title", "modality[1].name"}
    assert told["scp.port"] == "scp.port = 99999: write a TCP port from 1 to 65535; 0 takes a free one"
    assert "did you mean port?" in told["scp.prot"]


async def test_mistakes_are_objects_too(asyncdicom: Run, folder: Path) -> None:
    (folder / "site.toml").write_text(BAD)
    result = await asyncdicom("check-config", "site.toml", "--json")
    assert result.status == 2
    mistakes = [json.loads(line) for line in result.lines]
    assert all(set(mistake) == {"path", "value", "remedy"} for mistake in mistakes)
    assert "scp.port" in {mistake["path"] for mistake in mistakes}


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "there is no such file"), ("[scp\n", "line 1"), ("\udcff", "not UTF-8")],
    ids=["missing", "not TOML", "not UTF-8"],
)
async def test_a_file_that_cannot_be_read_is_told(asyncdicom: Run, folder: Path, text: str | None, said: str) -> None:
    if text is not None:
        (folder / "site.toml").write_text(text, errors="surrogateescape")
    result = await asyncdicom("check-config", "site.toml")
    assert result.status == 2
    assert said in result.out


@pytest.mark.parametrize("command", ["serve", "check-config"])
async def test_without_a_configuration_it_is_told_where_one_may_be(asyncdicom: Run, command: str) -> None:
    result = await asyncdicom(command)
    assert (result.status, result.out) == (2, "")
    assert "there is no configuration" in result.err


async def test_a_service_with_mistakes_does_not_start(asyncdicom: Run, folder: Path) -> None:
    (folder / "asyncdicom.toml").write_text(BAD)
    result = await asyncdicom("serve")
    assert result.status == 2
    assert "scp.port = 99999" in result.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_service_runs_until_a_signal_and_ends_with_0(folder: Path, number: signal.Signals) -> None:
    (folder / "asyncdicom.toml").write_text(GOOD)
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "serve", "--log-format", "json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder
    )
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while json.loads(await process.stderr.readline())["message"] != "the service is ready":
            continue
        process.send_signal(number)
        out, err = await process.communicate()
    assert process.returncode == 0, err
    assert out == b""
