"""What all commands have in common: help, start-up, usage."""

from __future__ import annotations

import sys

import pytest

from asyncdicom import __version__
from tests.cli.conftest import Run
from tests.peers.running import run_program_async

COMMANDS = (
    "echo",
    "find",
    "move",
    "get",
    "send",
    "probe",
    "serve",
    "check-config",
    "hash-passcode",
    "verify",
    "simulate",
    "demo",
)

# What a command needs only when it does its work.
HEAVY = ("pynetdicom", "pydicom", "pydantic", "anyio", "asyncio", "starlette", "uvicorn", "prometheus_client", "rich.live")


async def test_help_names_every_command(asyncdicom: Run) -> None:
    result = await asyncdicom("--help")
    assert (result.status, result.err) == (0, "")
    for command in COMMANDS:
        assert f"│ {command} " in result.out


@pytest.mark.parametrize("command", COMMANDS)
async def test_the_help_of_each_command_has_examples(asyncdicom: Run, command: str) -> None:
    result = await asyncdicom(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"\n    asyncdicom {command}" in result.out or f"&& asyncdicom {command}" in result.out


@pytest.mark.parametrize("words", [["--help"], ["find", "--help"], ["--version"]])
async def test_help_imports_nothing_that_it_does_not_need(words: list[str]) -> None:
    source = (
        "import sys; from asyncdicom.cli import main; main(sys.argv[1:])\n"
        "print(*sorted({name for name in sys.modules}), sep='\\n', file=sys.stderr)"
    )
    done = await run_program_async([sys.executable, "-c", source, *words])
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.splitlines())
    assert "asyncdicom.cli.commands" in imported
    assert imported.isdisjoint(HEAVY)


async def test_the_version_is_that_of_the_package(asyncdicom: Run) -> None:
    for words in (["--version"], ["echo", "--version"]):
        result = await asyncdicom(*words)
        assert (result.status, result.out) == (0, f"{__version__}\n")


async def test_without_a_command_the_help_is_shown_and_the_exit_status_is_2(asyncdicom: Run) -> None:
    result = await asyncdicom()
    assert result.status == 2
    assert "check-config" in result.out


async def test_an_unknown_command_is_told_with_what_to_do_next(asyncdicom: Run) -> None:
    result = await asyncdicom("eco")
    assert (result.status, result.out) == (2, "")
    assert '"eco"' in result.err
    assert "Try 'asyncdicom --help'." in result.err
