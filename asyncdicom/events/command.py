"""A target that is a program: started once for each event, without a shell.

What an argument takes from an event may come from a peer: a UID, an AE title. It is one argument whatever is in it, and never
the program; one that begins with ``-`` is refused where a program could take it for an option.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import anyio

from asyncdicom.background import to_its_end
from asyncdicom.errors import DeliveryFailed
from asyncdicom.events.contract import Message
from asyncdicom.events.kinds import PLACEHOLDER

logger = logging.getLogger(__name__)

# Seconds from TERM to KILL.
_GRACE = 2.0
# The end of what a program writes, in bytes; the rest is read and dropped.
_OUTPUT_KEPT = 2048
# They speak of us to systemd; a program that got them could speak in our name.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def fill(run: Sequence[str], data: Mapping[str, Any]) -> list[str]:
    """The argument vector for an event. A value that is not there (null) becomes empty.

    :param run: the program and its arguments, with ``{Keyword}`` in place of values
    :raises DeliveryFailed: for good, when a value cannot be passed on safely
    """
    filled: list[str] = []
    for argument in run:

        def value_of(match: re.Match[str]) -> str:
            value = data.get(match[1])
            return "" if value is None else str(value)

        text = PLACEHOLDER.sub(value_of, argument)
        if "\0" in text:
            raise DeliveryFailed(f"the value for {argument} has a NUL character, which no argument can have", final=True)
        if text.startswith("-") and not argument.startswith("-") and "--" not in filled:
            why = f'the value for {argument} begins with "-" and could be taken for an option'
            raise DeliveryFailed(f'{why}: put "--" before it in run, or read it from standard input', final=True)
        filled.append(text)
    return filled


@dataclass(frozen=True, slots=True)
class _Running:
    """A program that was started, until :meth:`close`.

    :ivar process: the leader of its group. It is reaped at the end only: until then nobody else can have its number
    :ivar over: a descriptor that can be read when the leader is over
    :ivar output: what the group writes
    """

    process: subprocess.Popen[bytes]
    over: int
    output: IO[bytes]

    def close(self) -> None:
        """Give its descriptors back. Whoever goes on in the background and writes gets SIGPIPE."""
        os.close(self.over)
        self.output.close()


class Command:
    """Runs a program for each event; exit status 0 means that it took the event.

    The event is on its standard input as JSON, its id and kind in ``ASYNCDICOM_EVENT_ID`` and ``ASYNCDICOM_EVENT_KIND``. It
    leads a process group of its own, which is ended when it takes too long.

    :param run: the program and its arguments, with ``{Keyword}`` in place of values
    :param folder: where the program is looked for when its name is a relative path
    :param timeout: seconds for one run
    :param concurrency: runs at once
    """

    def __init__(
        self,
        name: str,
        run: Sequence[str],
        *,
        on: Collection[str],
        folder: Path | None = None,
        timeout: float = 30.0,
        concurrency: int = 4,
    ) -> None:
        self.name = name
        self.on = frozenset(on)
        self.concurrency = concurrency
        # There is nobody between us and the program: nothing is signed.
        self.key: bytes | None = None
        program, *arguments = run
        # As the shell does it: a name without a slash is looked for in PATH.
        self._run = [str(folder / program) if folder is not None and "/" in program else program, *arguments]
        self._timeout = timeout
        self._starters: ThreadPoolExecutor | None = None
        # For programs that nobody wants any more and that have not started yet.
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._starters = ThreadPoolExecutor(self.concurrency, thread_name_prefix=f"event-{self.name}")
        return self

    async def __aexit__(self, *exception: Any) -> None:
        if self._ending:
            await to_its_end(asyncio.wait(self._ending, timeout=_GRACE))
        for task in self._ending:
            task.cancel()
        if self._starters is not None:
            # A program on a file system that hangs keeps its thread; nobody waits for it.
            self._starters.shutdown(wait=False, cancel_futures=True)
            self._starters = None

    async def deliver(self, message: Message) -> None:
        """Run the program.

        :raises DeliveryFailed: when it cannot be started, does not end in time, or ends with another status than 0
        """
        if self._starters is None:
            raise RuntimeError("this works inside of its `async with` block only")
        arguments = fill(self._run, message.data)
        starting = asyncio.get_running_loop().run_in_executor(self._starters, self._start, arguments, message)
        try:
            with anyio.fail_after(self._timeout):
                running = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # It may start all the same: then it is ended at once.
            await to_its_end(asyncio.wait([self._end_later(starting)], timeout=_GRACE))
            raise
        except TimeoutError:
            self._end_later(starting)
            raise DeliveryFailed(f"{self._run[0]} did not start in {self._timeout:g} s") from None
        except OSError as error:
            raise DeliveryFailed(f"{self._run[0]} cannot be started: {error.strerror}") from error
        except ValueError as error:
            # Characters that the system's encoding does not have.
            raise DeliveryFailed("a value cannot be an argument on this system", final=True) from error
        status, output = await _until_its_end(running, self._timeout)
        fields = {"target": self.name, "event": message.id, "output": output.decode(errors="replace")}
        if output:
            # As the program wrote it, patients perhaps included: only for who asks for it.
            logger.debug("what the program wrote last", extra=fields)
        if status is None:
            raise DeliveryFailed(f"it did not end in {self._timeout:g} s, and was ended")
        if status:
            how = f"exit status {status}" if status > 0 else f"ended by signal {-status}, {signal.strsignal(-status)}"
            raise DeliveryFailed(f"{how}; {len(output)} bytes of output are logged at level debug")

    def _end_later(self, starting: asyncio.Future[_Running]) -> asyncio.Task[None]:
        """End a program that is still to start as soon as it has."""
        task = asyncio.get_running_loop().create_task(_end_once_started(starting))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    def _start(self, arguments: list[str], message: Message) -> _Running:
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        environment |= {"ASYNCDICOM_EVENT_ID": message.id, "ASYNCDICOM_EVENT_KIND": message.kind}
        reading, writing = os.pipe()
        output = os.fdopen(reading, "rb", buffering=0)
        try:
            # A file in memory, not a pipe: a program that does not read it stops nobody.
            with os.fdopen(os.memfd_create("event"), "w+b") as said:
                said.write(message.encoded())
                said.seek(0)
                process = subprocess.Popen(
                    arguments, stdin=said, stdout=writing, stderr=writing, env=environment, start_new_session=True
                )
            try:
                over = os.pidfd_open(process.pid)
            except OSError:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        except BaseException:
            output.close()
            raise
        finally:
            os.close(writing)
        return _Running(process, over, output)

    def __repr__(self) -> str:
        return f"<Command {self.name}: {self._run[0]}>"


async def _end_once_started(starting: asyncio.Future[_Running]) -> None:
    try:
        running = await starting
    except (OSError, ValueError, asyncio.CancelledError):
        # It was not started.
        return
    try:
        await _end(running)
    finally:
        running.close()


async def _until_its_end(running: _Running, timeout: float) -> tuple[int | None, bytes]:
    """Wait for a program, and end it when it takes too long or nobody wants it any more.

    :return: its exit status, None when it was ended; the end of what it wrote
    """
    tail = _Tail(running.output)
    try:
        with anyio.move_on_after(timeout):
            await _leader_is_over(running)
            tail.read()
            return running.process.poll(), tail.kept
        await to_its_end(_end(running))
        tail.read()
        return None, tail.kept
    except BaseException:
        await to_its_end(_end(running))
        raise
    finally:
        tail.close()
        running.close()


async def _end(running: _Running) -> None:
    """End a program's whole group: TERM, then KILL."""
    process = running.process
    for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        try:
            os.killpg(process.pid, number)
        except PermissionError:
            # It runs as somebody else now. Nobody waits for it any longer than for others.
            logger.error("a program may not be ended by this user", extra={"pid": process.pid})
        with anyio.move_on_after(seconds):
            await _leader_is_over(running)
    if process.poll() is None:
        logger.error("a program that was killed does not end", extra={"pid": process.pid})


async def _leader_is_over(running: _Running) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(running.over, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(running.over)


class _Tail:
    """Reads what a program writes, so that it never waits for us, and keeps the end of it."""

    def __init__(self, output: IO[bytes]) -> None:
        self.kept = b""
        self._output = output
        self._loop = asyncio.get_running_loop()
        flags = fcntl.fcntl(output, fcntl.F_GETFL)
        fcntl.fcntl(output, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        self._loop.add_reader(output, self.read)

    def read(self) -> None:
        """Take what is there."""
        data: bytes | None = self._output.read(65_536)
        if data:
            self.kept = (self.kept + data)[-_OUTPUT_KEPT:]
        elif data is not None:
            # Everybody has closed it.
            self._loop.remove_reader(self._output)

    def close(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._output)
