"""Events by command: no shell, no options from a peer, and nothing is left when it takes too long."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asyncdicom.errors import DeliveryFailed
from asyncdicom.events.command import Command, fill
from asyncdicom.events.contract import Message
from tests.conftest import Baseline
from tests.events.conftest import eventually

MESSAGE = Message("abc-7-1", "study.complete", 1.5, {"StudyInstanceUID": "1.2.3", "path": "/a b/$(id);x", "duplicate": None})


def command(*run: str, timeout: float = 10, folder: Path | None = None) -> Command:
    return Command("command", run, on=["study.complete"], timeout=timeout, folder=folder)


async def deliver(*run: str, timeout: float = 10, folder: Path | None = None) -> None:
    async with command(*run, timeout=timeout, folder=folder) as target:
        await target.deliver(MESSAGE)


def running(marker: str) -> list[int]:
    """The processes that have a word in their command line. Blocks."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def test_a_program_gets_its_arguments_as_they_are_and_the_event_on_its_standard_input(
    no_leaks: Baseline, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    program = (
        "import json,os,sys; e=os.environ; json.dump([sys.argv[2:], json.load(sys.stdin),"
        " e['ASYNCDICOM_EVENT_ID'], e['ASYNCDICOM_EVENT_KIND']], open(sys.argv[1], 'w'))"
    )
    await deliver(sys.executable, "-c", program, str(said), "{StudyInstanceUID}", "x={path}", "{duplicate}", "{not one}")
    arguments, event, event_id, kind = json.loads(await anyio.Path(said).read_text())
    assert arguments == ["1.2.3", "x=/a b/$(id);x", "", "{not one}"]
    assert event == json.loads(MESSAGE.encoded())
    assert (event_id, kind) == (MESSAGE.id, MESSAGE.kind)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (["false"], "exit status 1"),
        (["sh", "-c", "kill -SEGV $$"], "ended by signal 11, Segmentation fault"),
        (["sh", "-c", "kill -40 $$"], "ended by signal 40"),
        (["there-is-no-such-program"], "cannot be started: No such file or directory"),
        (["/"], "cannot be started: Permission denied"),
    ],
)
async def test_anything_but_exit_status_0_is_a_failure_that_says_why(no_leaks: Baseline, run: list[str], words: str) -> None:
    with pytest.raises(DeliveryFailed, match=words) as raised:
        await deliver(*run)
    assert not raised.value.final


async def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(no_leaks: Baseline, tmp_path: Path) -> None:
    marker = f"{os.getpid()}0001"
    script = f"trap '' TERM; sh -c 'trap \"\" TERM; sleep {marker}; sleep {marker}' & sleep {marker}; sleep {marker}"
    with pytest.raises(DeliveryFailed, match=r"did not end in 0\.3 s"):
        await deliver("sh", "-c", script, timeout=0.3)
    # Killed is not yet gone, for those whose parent is not us.
    await eventually(lambda: not running(marker), 2)


async def test_a_program_may_clean_up_when_it_takes_too_long(tmp_path: Path) -> None:
    with pytest.raises(DeliveryFailed):
        await deliver("sh", "-c", 'trap "echo cleaned > $0; exit 0" TERM; sleep 30 & wait', str(tmp_path / "said"), timeout=0.3)
    assert await anyio.Path(tmp_path / "said").read_text() == "cleaned\n"


async def test_a_cancelled_delivery_leaves_no_process(no_leaks: Baseline) -> None:
    marker = f"{os.getpid()}0002"
    async with command("sleep", marker) as target:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(target.deliver, MESSAGE)
            await eventually(lambda: len(running(marker)) == 3)
            tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(running, marker) == []


async def test_a_delivery_that_is_cancelled_while_it_starts_leaves_no_process(no_leaks: Baseline) -> None:
    marker = f"{os.getpid()}0003"
    async with command("sleep", marker) as target:
        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(target.deliver, MESSAGE)
                await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(running, marker) == []


@pytest.mark.parametrize("late", [False, True], ids=["cancelled", "timeout"])
async def test_a_program_that_takes_long_to_start_keeps_nobody_waiting_and_is_ended_when_it_does(
    no_leaks: Baseline, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    marker, begin, popen = f"{os.getpid()}0005", threading.Event(), subprocess.Popen

    def on_a_file_system_that_hangs(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        begin.wait(10)
        return popen(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", on_a_file_system_that_hangs)
    async with command("sleep", marker, timeout=0.2) as target:
        if late:
            with pytest.raises(DeliveryFailed, match=r"did not start in 0\.2 s"):
                await target.deliver(MESSAGE)
            begin.set()
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(target.deliver, MESSAGE)
                await anyio.sleep(0.05)
                tasks.cancel_scope.cancel()
                begin.set()
        await anyio.sleep(0.1)
        await eventually(lambda: not running(marker), 2)


async def test_a_program_that_goes_on_in_the_background_has_taken_the_event(no_leaks: Baseline) -> None:
    with anyio.fail_after(2):
        await deliver("sh", "-c", "sleep 3 & exit 0")


async def test_output_is_read_bounded_and_told_at_level_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(DeliveryFailed, match="2048 bytes of output"):
        await deliver("sh", "-c", "head -c 1000000 /dev/zero; echo DOE^JOHN; exit 3")
    (record,) = [record for record in caplog.records if "wrote" in record.message]
    assert record.levelno == logging.DEBUG
    assert str(vars(record)["output"]).endswith("DOE^JOHN\n")


async def test_a_relative_program_is_found_beside_the_configuration(tmp_path: Path) -> None:
    program = anyio.Path(tmp_path / "run.sh")
    await program.write_text("#!/bin/sh\nexit 0\n")
    await program.chmod(0o755)
    await deliver("./run.sh", folder=tmp_path)


def test_a_value_that_could_be_an_option_is_refused_for_good() -> None:
    for run in (["rm", "{path}"], ["rm", "{path}x"], ["prog", "-x", "{path}"]):
        with pytest.raises(DeliveryFailed, match="could be taken for an option") as raised:
            fill(run, {"path": "-rf"})
        assert raised.value.final
        assert "-rf" not in str(raised.value)
    assert fill(["prog", "--", "{path}"], {"path": "-rf"}) == ["prog", "--", "-rf"]
    assert fill(["prog", "--path={path}"], {"path": "-rf"}) == ["prog", "--path=-rf"]
    assert fill(["prog", "-{path}"], {"path": "x"}) == ["prog", "-x"]


def test_a_value_with_a_nul_is_refused_for_good() -> None:
    with pytest.raises(DeliveryFailed, match="NUL") as raised:
        fill(["prog", "{path}"], {"path": "a\0b"})
    assert raised.value.final


async def test_a_value_that_no_argument_can_have_is_refused_for_good(no_leaks: Baseline) -> None:
    async with command("true", "{StudyInstanceUID}") as target:
        with pytest.raises(DeliveryFailed, match="cannot be an argument") as raised:
            await target.deliver(Message("i", "study.complete", 1.5, {"StudyInstanceUID": "\ud800"}))
    assert raised.value.final


def test_a_value_with_a_placeholder_in_it_is_not_filled_again() -> None:
    assert fill(["prog", "{path}"], {"path": "{size}", "size": 1}) == ["prog", "{size}"]
