"""The real command as a child process."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.peers.running import run_program_async

PROGRAM = Path(sysconfig.get_path("scripts"), "asyncdicom")


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of standard output."""
        return self.out.splitlines()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The objects of standard output, the summary left out."""
        rows = [json.loads(line) for line in self.lines]
        return [row for row in rows if "_summary" not in row]

    @property
    def summary(self) -> dict[str, Any]:
        """The summary, which is the last line."""
        summary: dict[str, Any] = json.loads(self.lines[-1])["_summary"]
        return summary


Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands run: a folder without a configuration."""
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def asyncdicom(folder: Path) -> Run:
    """Run a command to its end: ``await asyncdicom("echo", "--all")``."""

    async def run(*words: object, stdin: str | None = None, env: dict[str, str] | None = None, timeout: float = 30.0) -> Result:
        completed = await run_program_async(
            [str(PROGRAM), *map(str, words)],
            timeout,
            env={"ASYNCDICOM_CONFIG": "", "COLUMNS": "100", **(env or {})},
            cwd=folder,
            stdin=None if stdin is None else stdin.encode(),
        )
        assert "Traceback" not in completed.stderr, completed.stderr
        return Result(completed.returncode, completed.stdout, completed.stderr)

    return run
