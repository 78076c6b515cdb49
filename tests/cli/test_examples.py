"""The examples, run as they are."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from asyncdicom.testing import SimulatedModality, simulate, synthetic_study, synthetic_uid
from tests.cli.conftest import PROGRAM
from tests.peers.running import Completed, run_program_async

# The examples run in processes of their own: what blocks here are the files that a test writes for them.
pytestmark = pytest.mark.blocking

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


async def run(name: str, *words: object, cwd: Path) -> Completed:
    return await run_program_async([sys.executable, EXAMPLES / name, *map(str, words)], cwd=cwd)


def address(modality: SimulatedModality) -> str:
    return f"{modality.ae_title}@{modality.host}:{modality.port}"


async def test_who_is_down_names_those_that_are(tmp_path: Path) -> None:
    async with simulate(5, faults="refusing=2") as fleet:
        (tmp_path / "fleet.csv").write_text(fleet.inventory_csv())
        done = await run("who_is_down.py", "fleet.csv", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("connect_refused: ") == 2
    assert done.stdout.endswith("2 of 5 are down\n")


async def test_a_study_in_two_archives_is_found_once(tmp_path: Path) -> None:
    matches = [{"StudyInstanceUID": "1.2.3", "StudyDate": "20260101", "StudyDescription": "Thorax"}]
    async with SimulatedModality(matches=matches) as one, SimulatedModality(matches=matches) as two:
        done = await run("find_across_archives.py", address(one), address(two), "--patient", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("20260101 Thorax 1.2.3 ")
    assert address(one) in line
    assert address(two) in line


async def test_a_study_is_fetched_into_a_handler(tmp_path: Path) -> None:
    files = [file for _, file in synthetic_study(2, 16, 16)]
    async with SimulatedModality(instances=files) as archive:
        done = await run("fetch_and_process.py", address(archive), synthetic_uid("study", 0), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" CT 16x16 ") == 2
    assert "ok: 2 instances" in done.stdout


@pytest.mark.parametrize("archive", [False, True], ids=["handler", "archive"])
async def test_what_is_sent_is_received(tmp_path: Path, archive: bool) -> None:
    for uid, file in synthetic_study(2, 16, 16):
        (tmp_path / f"{uid}.dcm").write_bytes(file)
    words = ["--archive", tmp_path / "kept"] if archive else []
    receiver = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLES / "receive.py", "--port", "0", *words, stdout=asyncio.subprocess.PIPE, cwd=tmp_path
    )
    assert receiver.stdout is not None
    async with asyncio.timeout(30):
        line = await receiver.stdout.readline()
        port = int(line.split()[-1])
        sent = await run_program_async([PROGRAM, "send", f"ASYNCDICOM@127.0.0.1:{port}", *sorted(tmp_path.glob("*.dcm"))])
        assert sent.returncode == 0, sent.stderr
        receiver.send_signal(signal.SIGINT)
        out, _ = await receiver.communicate()
    assert receiver.returncode == 0
    if archive:
        assert len(list((tmp_path / "kept").rglob("*.dcm"))) == 2
    else:
        assert len(re.findall(rb"received from ASYNCDICOM 2\.25\.\d+ \d+ bytes", out)) == 2


async def test_the_tests_of_the_example_pass(tmp_path: Path) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", tmp_path]
    done = await run_program_async([sys.executable, *words, EXAMPLES / "test_my_worklist.py"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


async def test_the_nightly_script_fetches_each_study_from_an_archive_that_has_it(tmp_path: Path) -> None:
    files = [file for _, file in synthetic_study(2, 16, 16)]
    match = {"StudyInstanceUID": synthetic_uid("study", 0)}
    async with (
        SimulatedModality(instances=files, matches=[match]) as one,
        SimulatedModality(instances=files, matches=[match]) as two,
    ):
        tables = (
            f'[[modality]]\nname = "{name}"\nae_title = "SIM"\nhost = "127.0.0.1"\nport = {sim.port}\ngroups = ["archives"]\n'
            for name, sim in (("one", one), ("two", two))
        )
        (tmp_path / "asyncdicom.toml").write_text("".join(tables))
        path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
        done = await run_program_async([EXAMPLES / "nightly.sh", "kept"], cwd=tmp_path, env={"PATH": path, "DAY": "20000101"})
        assert one.gets + two.gets == 1
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "kept").rglob("*.dcm"))) == 2
