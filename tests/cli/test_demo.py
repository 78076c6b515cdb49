"""``asyncdicom demo``."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from asyncdicom.cli.demo.cast import ROLES
from asyncdicom.cli.demo.senders import Ledger, verify
from asyncdicom.cli.demo.verdict import Finding, report
from asyncdicom.outcome import Outcome, Reason
from asyncdicom.testing import synthetic_study
from tests.cli.conftest import PROGRAM, Run

# The commands run in processes of their own: what blocks here are the files that a test writes for them.
pytestmark = pytest.mark.blocking


async def test_a_demo_ends_by_itself_with_a_verdict_and_leaves_nothing_behind(
    asyncdicom: Run, folder: Path, tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    result = await asyncdicom("demo", "--for", "3", env={"TMPDIR": str(temporary)}, timeout=50)
    assert result.status == 0, result.out + result.err
    assert re.search(r"fleet page +http://127\.0\.0\.1:\d+/\n", result.out)
    assert re.search(r"metrics +http://127\.0\.0\.1:\d+/metrics\n", result.out)
    assert result.lines[-1] == "all is as it should be"
    assert f"{len(ROLES)} modalities: 10 up, 12 down, each as it should be" in result.out
    stored = re.search(r"(\d+) instances sent, (\d+) different ones acknowledged, (\d+) verified by SHA-256", result.out)
    assert stored is not None
    assert int(stored[1]) == int(stored[2]) == int(stored[3]) > 0
    assert list(temporary.iterdir()) == []
    assert list(folder.iterdir()) == []


async def test_ctrl_c_ends_a_demo_cleanly(folder: Path, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "demo",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(40):
        page = urlsplit((await process.stdout.readline()).split()[-1].decode())
        while b"Ctrl-C ends it" not in await process.stdout.readline():
            continue

        def look() -> str:
            with closing(HTTPConnection(page.netloc, timeout=10)) as connection:
                connection.request("GET", page.path)
                with connection.getresponse() as answer:
                    return answer.read().decode()

        text = await asyncio.get_running_loop().run_in_executor(None, look)
        assert all(role.name in text for role in ROLES)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 0, err
    assert b"verified by SHA-256" in err
    assert b"Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


async def test_the_length_of_a_demo_is_above_0(asyncdicom: Run) -> None:
    result = await asyncdicom("demo", "--for", "0")
    assert result.status == 2
    assert "--for 0" in result.err


# -- the verdict itself -----------------------------------------------------------------------------------------------


def kept(tmp_path: Path) -> Ledger:
    """A ledger of two instances, and the archive that it speaks of."""
    ledger = Ledger()
    for uid, file in synthetic_study(2, 8, 8):
        (tmp_path / f"{uid}.dcm").write_bytes(file)
        from hashlib import sha256

        from asyncdicom.testing import HeldInstance

        ledger.note(Outcome("us", "store", Reason.OK, instance=uid), sha256(HeldInstance.read(file).dataset).hexdigest())
    return ledger


def right() -> list[Finding]:
    return [Finding(role, "up" if role.expected == (Reason.OK,) else "down", role.expected[0]) for role in ROLES]


def test_what_is_as_it_should_be_is_said_to_be(tmp_path: Path) -> None:
    ledger = kept(tmp_path)
    assert verify(ledger, tmp_path) == []
    assert report(right(), ledger, [], [])[1]


def test_an_instance_that_is_lost_damaged_or_unknown_is_found(tmp_path: Path) -> None:
    ledger = kept(tmp_path)
    lost, damaged = sorted(tmp_path.iterdir())
    lost.rename(tmp_path / "1.2.3.dcm")
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    wrong = verify(ledger, tmp_path)
    assert len(wrong) == 3
    assert any(line == f"{lost.stem}: acknowledged, and not in the archive" for line in wrong)
    assert any(line.startswith(f"{damaged.stem}: its bytes") for line in wrong)
    assert any(line.startswith("1.2.3: in the archive, and never acknowledged") for line in wrong)
    text, fine = report(right(), ledger, wrong, [])
    assert not fine
    assert "NOT all is as it should be" in text


@pytest.mark.parametrize(("condition", "reason"), [("up", Reason.OK), ("down", Reason.CONNECT_REFUSED), ("unknown", None)])
def test_a_modality_that_is_not_as_it_should_be_is_a_surprise(tmp_path: Path, condition: str, reason: Reason | None) -> None:
    found = right()
    index = next(index for index, finding in enumerate(found) if finding.role.name == "mg2")
    found[index] = Finding(found[index].role, condition, reason)
    text, fine = report(found, kept(tmp_path), [], [])
    assert not fine
    assert "NO, expected tls_failed" in text


@pytest.mark.parametrize(
    ("name", "is_quiet", "silence", "fine"),
    [
        ("cr2", True, True, True),
        ("cr2", False, True, False),
        ("cr2", False, False, True),
        ("cr2", True, False, True),
        ("ct1", True, False, False),
        ("ct1", True, True, False),
    ],
)
def test_who_falls_silent_is_to_be_found_quiet_once_there_was_time_and_nobody_else(
    tmp_path: Path, name: str, is_quiet: bool, silence: bool, fine: bool
) -> None:
    found = right()
    index = next(index for index, finding in enumerate(found) if finding.role.name == name)
    found[index] = Finding(found[index].role, "up", Reason.OK, is_quiet, silence)
    text, verdict = report(found, kept(tmp_path), [], [])
    assert verdict is fine
    assert ("up, quiet" in text) is is_quiet
    assert ("NO, expected ok" in text) is not fine


def test_a_demo_in_which_nothing_was_stored_or_something_refused_is_no_success(tmp_path: Path) -> None:
    assert not report(right(), Ledger(), [], [])[1]
    ledger = kept(tmp_path)
    ledger.note(Outcome("us", "store", Reason.ABORTED, instance="1.2"), "")
    assert not report(right(), ledger, [], [])[1]
    assert not report(right(), kept(tmp_path), [], ["GET / answers 500"])[1]
