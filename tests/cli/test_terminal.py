"""What people see: the commands on a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from asyncdicom.testing import Fault, SimulatedModality
from tests.cli.conftest import PROGRAM

# The commands run in processes of their own, and a terminal is read without blocking.
pytestmark = pytest.mark.blocking


@dataclass
class Terminal:
    """A command with a terminal of 110 columns."""

    process: asyncio.subprocess.Process
    descriptor: int
    screen: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """What was written so far, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.screen.decode("utf-8", "replace")).replace("\r", "")

    async def shows(self, what: str) -> None:
        """Return once something was written."""
        async with asyncio.timeout(20):
            while what not in self.text:
                await asyncio.sleep(0.05)

    def types(self, text: str) -> None:
        """Type something."""
        os.write(self.descriptor, text.encode())

    async def ends(self) -> int:
        """Return the exit status."""
        return await asyncio.wait_for(self.process.wait(), 20)


@asynccontextmanager
async def terminal(folder: Path, *words: str) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = await asyncio.create_subprocess_exec(
        PROGRAM, *words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder,
        env={**os.environ, "COLUMNS": "110", "LINES": "40", "TERM": "xterm-256color", "ASYNCDICOM_CONFIG": ""},
        # Whoever runs the tests has a terminal, too, and it is not that one which shall be asked.
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = Terminal(process, ours)

    def read() -> None:
        try:
            shown.screen.extend(os.read(ours, 1 << 16))
        except OSError:
            # The other side is closed: it ended.
            loop.remove_reader(ours)

    loop = asyncio.get_running_loop()
    loop.add_reader(ours, read)
    try:
        yield shown
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()


def address(modality: SimulatedModality) -> str:
    return f"{modality.ae_title}@{modality.host}:{modality.port}"


async def test_results_stand_in_a_table_in_the_order_asked(folder: Path) -> None:
    async with (
        SimulatedModality(Fault.SLOW, ae_title="SLOW") as slow,
        SimulatedModality(Fault.REJECTING, ae_title="BAD") as bad,
    ):
        async with terminal(folder, "echo", address(slow), address(bad)) as shown:
            assert await shown.ends() == 1
            await shown.shows("1 of 2 answered; 1 did not: 1 rejected_permanent")
    assert re.search(r"modality +address +result +time +what happened", shown.text)
    assert shown.text.index(address(slow)) < shown.text.index(address(bad))
    assert "check both AE titles" in " ".join(shown.text.split())


async def test_what_takes_long_shows_progress_and_leaves_no_trace_of_it(folder: Path) -> None:
    async with SimulatedModality("slow:1.5") as slow, terminal(folder, "echo", address(slow)) as shown:
        await shown.shows("0/1")
        assert await shown.ends() == 0


async def test_a_watch_asks_again_and_again_and_ctrl_c_ends_it(folder: Path) -> None:
    async with SimulatedModality() as sim, SimulatedModality(Fault.ABORTING) as bad:
        async with terminal(folder, "echo", address(sim), address(bad), "--watch", "--every", "0.3") as shown:
            await shown.shows("1 of 2 answer; 1 aborted")
            async with asyncio.timeout(20):
                # More often than a breaker would allow: a watch shows when a modality comes back.
                while bad.requests_received < 7:
                    await asyncio.sleep(0.05)
            shown.process.send_signal(signal.SIGINT)
            assert await shown.ends() == 130
    assert "breaker_open" not in shown.text
    assert "Traceback" not in shown.text
    # The screen that was there before comes back, and the cursor.
    assert b"\x1b[?1049l" in shown.screen
    assert b"\x1b[?25h" in shown.screen


async def test_a_demo_tells_how_it_goes(folder: Path) -> None:
    async with terminal(folder, "demo", "--for", "2") as shown:
        await shown.shows("instances stored")
        await shown.shows("all is as it should be")
        assert await shown.ends() == 0
