"""A disk that fails (R5): no false acknowledgement, no hang, nothing left, and a sync that failed is never tried again."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.archive.instances import everything_in, folders_in
from tests.archive.tracing import calls, running, storing, traced

pytestmark = pytest.mark.peer("strace")


class Stored:
    """What the program said in one part."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        self.lines: list[list[str]] = []
        for line in process.stdout:
            words = line.split()
            if words[0] == "done":
                self.descriptors = int(words[1])
                return
            self.lines.append(words)
        raise AssertionError("the program ended")

    def with_status(self, status: str) -> dict[str, str]:
        return {uid: sha256 for each, uid, sha256 in self.lines if each == status}

    @property
    def statuses(self) -> set[str]:
        return {words[0] for words in self.lines}


def _ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def _check(archive: Path, index: Path | None, acknowledged: dict[str, str]) -> None:
    """What was acknowledged is there and intact, and nothing else is."""
    found = everything_in(archive)
    assert {Path(path).stem for path in found} == set(acknowledged)
    for path, encoded in found.items():
        assert path.endswith(".dcm")
        offset = 144 + int.from_bytes(encoded[140:144], "little")
        assert hashlib.sha256(encoded[offset:]).hexdigest() == acknowledged[Path(path).stem]
    if index is not None:
        with sqlite3.connect(index) as connection:
            rows = dict(connection.execute("SELECT sop_instance_uid, sha256 FROM instances").fetchall())
        connection.close()
        assert rows == acknowledged


FAULTS = [
    ("openat", "EMFILE"),
    ("openat", "ENOSPC"),
    ("mkdirat", "ENOSPC"),
    ("writev", "EIO"),
    ("writev", "EDQUOT"),
    ("fdatasync", "EIO"),
    ("linkat", "ENOSPC"),
    ("fsync", "EIO"),
    ("pwrite64", "EIO"),
    ("newfstatat", "EIO"),
]


@pytest.mark.parametrize("parts", [False, True], ids=["unnamed", "temporary-names"])
@pytest.mark.parametrize(("call", "error"), FAULTS)
def test_what_fails_is_refused_and_leaves_nothing(tmp_path: Path, call: str, error: str, parts: bool) -> None:
    archive, index = tmp_path / "archive", tmp_path / "index.db"
    options = ["--index", f"sqlite:{index}", "--paused", "--callers", "3", "--count", "8", "--threads", "2"]
    with running(storing(archive, *options, *(["--parts"] if parts else []))) as process:
        _ready(process)
        before = Stored(process)
        trace = tmp_path / "trace"
        # Per thread: the second, the fifth, the eighth ... of each.
        fault = f"inject={call}:error={error}:when=2+3"
        with traced(process, trace, "-e", f"trace={call}", "-e", fault):
            during = Stored(process)
        after = Stored(process)
        assert [each for each in calls(trace) if each.injected]
        assert before.statuses == after.statuses == {"0000"}
        assert "A700" in during.statuses
        assert during.statuses <= {"0000", "A700"}
        assert after.descriptors == before.descriptors
        acknowledged = before.with_status("0000") | during.with_status("0000") | after.with_status("0000")
        _check(archive, index, acknowledged)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parts", [False, True], ids=["unnamed", "temporary-names"])
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EDQUOT", "EMFILE"])
@pytest.mark.parametrize("call", ["openat", "mkdirat", "writev", "fdatasync", "linkat", "fsync", "pwrite64", "newfstatat"])
def test_whichever_call_fails_its_instance_is_refused_and_leaves_nothing(
    tmp_path: Path, call: str, error: str, parts: bool
) -> None:
    archive, index = tmp_path / "archive", tmp_path / "index.db"
    options = ["--index", f"sqlite:{index}", "--paused", "--callers", "3", "--count", "4", "--threads", "2"]
    with running(storing(archive, *options, *(["--parts"] if parts else []))) as process:
        _ready(process)
        before = Stored(process)
        acknowledged = before.with_status("0000")
        injected = 0
        for number in range(1, 21):
            trace = tmp_path / "trace"
            with traced(process, trace, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={number}"):
                during = Stored(process)
            assert during.statuses <= {"0000", "A700"}
            acknowledged |= during.with_status("0000")
            injected += sum(each.injected for each in calls(trace))
            _check(archive, index, acknowledged)
        after = Stored(process)
        assert injected
        assert after.statuses == {"0000"}
        assert after.descriptors == before.descriptors
        _check(archive, index, acknowledged | after.with_status("0000"))


@pytest.mark.parametrize("parts", [False, True], ids=["unnamed", "temporary-names"])
def test_a_failed_sync_is_final(tmp_path: Path, parts: bool) -> None:
    archive = tmp_path / "archive"
    options = ["--paused", "--count", "6", "--threads", "1", *(["--parts"] if parts else [])]
    with running(storing(archive, *options)) as process:
        _ready(process)
        trace = tmp_path / "trace"
        with traced(process, trace, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=3"):
            stored = Stored(process)
    assert [words[0] for words in stored.lines] == ["0000", "0000", "A700", "0000", "0000", "0000"]
    # One for each store: none for a second try.
    assert len(calls(trace)) == 6
    _check(archive, None, stored.with_status("0000"))


def test_a_failed_sync_of_the_index_is_final_and_takes_the_file_back(tmp_path: Path) -> None:
    archive, index = tmp_path / "archive", tmp_path / "index.db"
    options = ["--index", f"sqlite:{index}", "--paused", "--count", "6", "--threads", "1"]
    with running(storing(archive, *options)) as process:
        _ready(process)
        first = Stored(process)
        trace = tmp_path / "trace"
        watched = ["-P", f"{index}-wal", "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO:when=3"]
        with traced(process, trace, *watched):
            second = Stored(process)
        assert [words[0] for words in second.lines] == ["0000", "0000", "A700", "0000", "0000", "0000"]
        # One for each store: none for a second try.
        assert len(calls(trace)) == 6
        _check(archive, index, first.with_status("0000") | second.with_status("0000"))


def test_a_file_system_without_links_is_served_by_renaming(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with running(storing(archive, "--paused", "--parts", "--count", "6")) as process:
        _ready(process)
        trace = tmp_path / "trace"
        with traced(process, trace, "-e", "trace=linkat", "-e", "inject=linkat:error=EPERM"):
            stored = Stored(process)
    assert stored.statuses == {"0000"}
    assert len([call for call in calls(trace) if call.injected]) == 6
    _check(archive, None, stored.with_status("0000"))


def test_an_archive_that_cannot_be_written_gets_0xa700_and_works_again_afterwards(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with running(storing(archive, "--paused", "--count", "3")) as process:
        _ready(process)
        trace = tmp_path / "trace"
        for error in ("EROFS", "EACCES", "EIO", "ENOENT"):
            with traced(process, trace, "-e", "trace=mkdirat,openat", "-e", f"inject=mkdirat,openat:error={error}"):
                assert Stored(process).statuses == {"A700"}
        assert folders_in(archive) == []
        stored = Stored(process)
        assert stored.statuses == {"0000"}
        _check(archive, None, stored.with_status("0000"))
