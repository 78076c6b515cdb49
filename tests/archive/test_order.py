"""What the kernel was asked for, in which order (R3), and how often."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.archive.instances import everything_in
from tests.archive.tracing import Call, calls, storing

pytestmark = pytest.mark.peer("strace")

# In each of four forms: two hundred in all.
_STORES = 52
_WATCHED = "openat,writev,pwrite64,write,fdatasync,fsync,link,linkat,rename,renameat,renameat2,mkdirat"


def _trace(tmp_path: Path, *options: str) -> tuple[list[Call], list[str]]:
    """The calls of a program that stores, and what it acknowledged."""
    trace = tmp_path / "trace"
    command = storing(tmp_path / "archive", *options)
    strace = ["strace", "-f", "-y", "-s", "400", "-e", f"trace={_WATCHED}", "-o", str(trace), *command]
    done = subprocess.run(strace, capture_output=True, text=True, timeout=50, check=True)
    return calls(trace), done.stdout.splitlines()


def _only(found: list[Call]) -> Call:
    assert len(found) == 1, found
    return found[0]


def _folder_syncs(made: list[Call], folder: str) -> list[Call]:
    return [call for call in made if call.name == "fsync" and call.arguments.endswith(f"<{folder}>")]


@pytest.mark.parametrize("parts", [False, True], ids=["unnamed", "temporary-names"])
@pytest.mark.parametrize("callers", [1, 4])
def test_success_follows_data_then_name_then_folder_then_index(tmp_path: Path, callers: int, parts: bool) -> None:
    options = ["--index", f"sqlite:{tmp_path}/index.db", "--count", str(_STORES // callers), "--callers", str(callers)]
    made, lines = _trace(tmp_path, *options, *(["--parts"] if parts else []))
    archive = tmp_path / "archive"
    paths = {Path(path).stem: path for path in everything_in(archive)}
    assert len(lines) == len(paths) == _STORES
    log_syncs = [call for call in made if call.name in ("fdatasync", "fsync") and "index.db-wal>" in call.arguments]
    for line in lines:
        status, uid, _ = line.split()
        assert status == "0000"
        path = paths[uid]
        folder = archive / path.rpartition("/")[0]
        acknowledged = _only([call for call in made if call.name == "write" and line in call.arguments])
        named = _only([call for call in made if call.name == "linkat" and f'"{path}"' in call.arguments])
        written = [call for call in made if call.name == "writev" and call.pid == named.pid and call.ended < named.begun][-1]
        descriptor = written.arguments.partition("<")[0]
        synced = [
            call
            for call in made
            if call.name == "fdatasync"
            and call.pid == named.pid
            and call.arguments.startswith(f"{descriptor}<")
            and written.ended < call.begun
            and call.ended < named.begun
        ]
        assert _only(synced).result == 0
        folder_synced = next(
            call for call in _folder_syncs(made, str(folder)) if call.pid == named.pid and named.ended < call.begun
        )
        assert folder_synced.ended < acknowledged.begun
        assert [call for call in log_syncs if folder_synced.ended < call.begun and call.ended < acknowledged.begun], line
        # The folders above were synced too: a synced folder whose own entry is lost is lost with it.
        for parent in (folder.parent, archive):
            assert [call for call in _folder_syncs(made, str(parent)) if call.ended < acknowledged.begun]


def test_the_parents_of_the_archive_and_of_its_index_are_synced_when_they_are_made(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    index = tmp_path / "other" / "deep" / "index.db"
    command = storing(tmp_path / "new" / "deep" / "archive", "--count", "1", "--index", f"sqlite:{index}")
    strace = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(trace), *command]
    subprocess.run(strace, capture_output=True, timeout=50, check=True)
    made = calls(trace)
    for folder in ("", "new", "new/deep", "new/deep/archive", "other"):
        assert _folder_syncs(made, str(tmp_path / folder)), folder
    # SQLite itself syncs where its files lie.
    assert [call for call in made if call.name == "fdatasync" and call.arguments.endswith(f"<{index.parent}>")]


@pytest.mark.parametrize(("durability", "data_syncs"), [("file", 5), ("none", 0)])
def test_less_durability_syncs_less(tmp_path: Path, durability: str, data_syncs: int) -> None:
    options = ["--index", f"sqlite:{tmp_path}/index.db", "--durability", durability, "--count", "5"]
    made, lines = _trace(tmp_path, *options)
    assert [line.split()[0] for line in lines] == ["0000"] * 5
    here = [call for call in made if f"<{tmp_path}/archive" in call.arguments]
    assert len([call for call in here if call.name == "fdatasync"]) == data_syncs
    assert not [call for call in here if call.name == "fsync"]
    if durability == "none":
        assert not [call for call in made if call.name in ("fsync", "fdatasync")]


def test_an_instance_that_comes_again_is_neither_written_nor_synced(tmp_path: Path) -> None:
    options = ["--index", f"sqlite:{tmp_path}/index.db", "--count", "5"]
    _trace(tmp_path, *options)
    made, lines = _trace(tmp_path, *options)
    assert [line.split()[0] for line in lines] == ["0000"] * 5
    assert not [
        call for call in made if call.name in ("writev", "linkat") and call.result >= 0 and ".incoming" not in call.arguments
    ]
    assert not [call for call in made if call.name == "fdatasync" and "index.db" not in call.arguments]
