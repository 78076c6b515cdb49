"""Running foreign programs: to their end, or as servers, always with a deadline and always ended by their id."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

Completed = subprocess.CompletedProcess[str]

# Below the range from which the kernel picks ports for outgoing connections: none of those can take the port away
# between this look and the program's own bind.
_PORTS = range(20_000, 32_000)
_START_DEADLINE = 30.0
_END_DEADLINE = 5.0
_POLL = 0.03


class ProgramTimeout(Exception):
    """A foreign program did not end by its deadline, and was killed."""


class ProgramDied(Exception):
    """A foreign server ended, or never served; the message carries the end of its log."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens.

    :raises OSError: when a hundred tries found none
    """
    for _ in range(100):
        port = random.choice(_PORTS)
        # On all interfaces, because foreign programs bind there.
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("no free port was found")


def run_program(
    argv: Sequence[str | Path],
    timeout: float = 30.0,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
) -> Completed:
    """Run a program to its end and return its exit status and output.

    :param timeout: seconds until it is killed, with everything that it started
    :param env: variables on top of this process's own
    :param stdin: what it reads
    :raises ProgramTimeout: when it did not end in time
    """
    command = [str(word) for word in argv]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            _kill(process.pid)
            out, err = process.communicate()
            raise ProgramTimeout(_report(command, timeout, out, err)) from None
        except BaseException:
            _kill(process.pid)
            raise
    return _completed(command, process.returncode, out, err)


async def run_program_async(
    argv: Sequence[str | Path],
    timeout: float = 30.0,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
) -> Completed:
    """The same without blocking the event loop; cancelling it kills the program.

    :raises ProgramTimeout: when it did not end in time
    """
    command = [str(word) for word in argv]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    out = err = b""
    try:
        with anyio.move_on_after(timeout) as scope:
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            _kill(process.pid)
            with anyio.CancelScope(shield=True):
                out, err = await process.communicate()
    if scope.cancelled_caught:
        raise ProgramTimeout(_report(command, timeout, out, err))
    assert process.returncode is not None
    return _completed(command, process.returncode, out, err)


@dataclass(frozen=True)
class Command:
    """A foreign program with its arguments and environment, ready to run.

    :ivar argv: the program and its arguments
    :ivar env: variables on top of this process's own
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None

    def run(self, timeout: float = 30.0) -> Completed:
        """Run it to its end."""
        return run_program(self.argv, timeout, env=self.env, cwd=self.cwd)

    async def run_async(self, timeout: float = 30.0) -> Completed:
        """Run it to its end without blocking the event loop."""
        return await run_program_async(self.argv, timeout, env=self.env, cwd=self.cwd)


class Server:
    """A foreign program that serves until its owner ends it.

    :ivar log: the file that takes its standard output and error
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, grace: float = _END_DEADLINE) -> None:
        self._process = process
        self._grace = grace
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def wait_until(self, serves: Callable[[], object], deadline: float = _START_DEADLINE) -> None:
        """Ask again and again until ``serves`` answers truly.

        :param serves: a question to the server; an ``OSError`` or :class:`ProgramTimeout` stands for "not yet"
        :param deadline: seconds until the answer must come
        :raises ProgramDied: when the program ended, or the deadline passed
        """
        end = time.monotonic() + deadline
        while True:
            answer: object = None
            try:
                answer = serves()
            except (OSError, ProgramTimeout) as error:
                answer, last = None, repr(error)
            else:
                last = repr(answer)
            if self._process.poll() is not None:
                raise ProgramDied(f"{self._process.args!r} ended with {self._process.returncode}:\n{self.output[-2000:]}")
            if answer:
                return
            if time.monotonic() > end:
                raise ProgramDied(f"{self._process.args!r} does not serve ({last}):\n{self.output[-2000:]}")
            time.sleep(_POLL)

    def end(self) -> None:
        """End it and everything that it started: politely first, then by force."""
        if self._process.poll() is None:
            _signal(self.pid, signal.SIGTERM)
            try:
                self._process.wait(self._grace)
            except subprocess.TimeoutExpired:
                _kill(self.pid)
                self._process.wait(_END_DEADLINE)
        # Children that outlived it (one for each association, with DCMTK's --fork) are still in its group.
        _kill(self.pid)


@contextmanager
def serving(
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    grace: float = _END_DEADLINE,
) -> Iterator[Server]:
    """Start a server, and end it on the way out.

    :param log: where its output goes
    :param grace: seconds between asking it to end and killing it
    """
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    server = Server(process, log, grace)
    try:
        yield server
    finally:
        server.end()


def _completed(command: list[str], returncode: int, out: bytes, err: bytes) -> Completed:
    # DICOM programs print attribute values as they are, in whatever character set.
    return subprocess.CompletedProcess(command, returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def _report(command: list[str], timeout: float, out: bytes, err: bytes) -> str:
    tail = (out + err).decode(errors="replace")[-2000:]
    return f"{' '.join(command)} did not end within {timeout} s:\n{tail}"


def _kill(group: int) -> None:
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        # It ended by itself in the meantime.
        return
