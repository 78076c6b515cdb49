"""``asyncdicom hash-passcode``: what it prints is what the storage SCP reads, and the passcode is shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncdicom import Users
from tests.cli.conftest import Run
from tests.cli.test_terminal import terminal

# The command runs in a process of its own: what blocks here is the file that a test writes.
pytestmark = pytest.mark.blocking


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
async def test_a_passcode_of_standard_input_becomes_a_line_of_the_file(asyncdicom: Run, folder: Path, end: str) -> None:
    result = await asyncdicom("hash-passcode", "ct1", stdin=f"p\xe4ss:word {end}")
    assert (result.status, result.err) == (0, "")
    assert len(result.lines) == 1
    assert "word" not in result.out
    (folder / "users").write_text(result.out)
    assert Users.read(folder / "users").knows(b"ct1", "p\xe4ss:word ".encode())


@pytest.mark.parametrize(
    ("name", "passcode", "said"),
    [
        ("ct1", "", "the passcode is empty"),
        ("ct1", "one\ntwo\n", "more than one line"),
        ("ct1", "x" * 70_000, "at most 65535 bytes"),
        ("#ct1", "x", "a user name is"),
        (" ct1", "x", "a user name is"),
        ("ct\n1", "x", "a user name is"),
        ("", "x", "a user name is"),
    ],
)
async def test_what_makes_no_line_is_refused(asyncdicom: Run, name: str, passcode: str, said: str) -> None:
    result = await asyncdicom("hash-passcode", name, stdin=passcode)
    assert (result.status, result.out) == (2, "")
    assert said in result.err


async def test_on_a_terminal_it_is_asked_for_twice_and_not_shown(folder: Path) -> None:
    async with terminal(folder, "hash-passcode", "ct1") as shown:
        await shown.shows("Passcode: ")
        shown.types("hunter2\n")
        await shown.shows("Again: ")
        shown.types("hunter2\n")
        assert await shown.ends() == 0
        await shown.shows("ct1:scrypt1$")
    assert "hunter2" not in shown.text
    (folder / "users").write_text(shown.text.split("Again: ")[1].strip() + "\n")
    assert Users.read(folder / "users").knows(b"ct1", b"hunter2")
