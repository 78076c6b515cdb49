"""The programs of a benchmark: started, seen to be ready, looked at while they run, and ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_READY = 60.0
_END = 10.0
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - folders of our own inside of it

Environment = Mapping[str, str]
Words = Sequence[str | Path]

# What DCMTK's programs take from the environment.
NODELAY = {"TCP_NODELAY": "1"}
# Their default leaves Nagle's algorithm on.
NAGLE = {"TCP_NODELAY": "0"}


class Failed(Exception):
    """A side did not do what it is measured for."""


# Running


def module(name: str, *words: object) -> list[str]:
    """The command that runs a module of ours."""
    return [sys.executable, "-m", name, *(str(word) for word in words)]


@contextmanager
def serving(argv: Words, port: int, environment: Environment | None = None, host: str = "127.0.0.1") -> Iterator[int]:
    """A server that listens on a port while the block runs.

    :return: its process ID
    :raises Failed: when it does not listen, with the end of what it wrote
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(_texts(argv), stdout=log, stderr=log, env=_environment(environment))
        try:
            deadline = time.monotonic() + _READY
            while not _listens(host, port):
                if process.poll() is not None:
                    raise Failed(f"{argv[0]} ended at once, with {process.returncode}: {_end_of(log.fileno())}")
                if time.monotonic() > deadline:
                    raise Failed(f"{argv[0]} does not listen on port {port}: {_end_of(log.fileno())}")
                time.sleep(0.02)
            yield process.pid
        finally:
            end(process, signal.SIGTERM)


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def end(process: subprocess.Popen[bytes], by: signal.Signals) -> None:
    """End a process of ours, by force when it does not end by itself."""
    process.send_signal(by)
    try:
        process.wait(_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def seconds(commands: Sequence[Words], environment: Environment | None = None, limit: float = 600.0) -> float:
    """Seconds that commands take, all at once.

    :param limit: seconds until they are killed
    :raises Failed: when one of them fails
    """
    with tempfile.TemporaryFile() as complaints:
        started = time.monotonic()
        running = [
            subprocess.Popen(_texts(command), stdout=subprocess.DEVNULL, stderr=complaints, env=_environment(environment))
            for command in commands
        ]
        # Not by a timeout of `wait`: that looks every 50 ms, a tenth of what some of these take.
        watchdog = threading.Timer(limit, _kill, [running])
        watchdog.start()
        try:
            for process in running:
                process.wait()
        finally:
            spent = time.monotonic() - started
            watchdog.cancel()
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        for command, process in zip(commands, running, strict=True):
            if process.returncode != 0:
                raise Failed(f"{command[0]} ended with {process.returncode}: {_end_of(complaints.fileno())}")
    return spent


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()


def told_by(argv: Words, limit: float = 600.0) -> dict[str, float]:
    """The readings that a side in a process of its own writes as JSON.

    :param limit: seconds until it is killed
    :raises Failed: when it fails
    """
    ended = subprocess.run(_texts(argv), capture_output=True, text=True, timeout=limit, check=False)
    if ended.returncode != 0:
        raise Failed(f"{' '.join(_texts(argv)[1:5])} ended with {ended.returncode}: {ended.stderr.strip()[-400:]}")
    try:
        readings: dict[str, float] = json.loads(ended.stdout)
    except ValueError:
        raise Failed(f"{' '.join(_texts(argv)[1:5])} told no readings: {ended.stdout.strip()[-400:]}") from None
    return readings


def tell(**readings: float) -> None:
    """Write readings for :func:`told_by`."""
    print(json.dumps(readings))


def _texts(argv: Words) -> list[str]:
    return [str(word) for word in argv]


def _environment(more: Environment | None) -> dict[str, str]:
    return os.environ | dict(more or {})


def _end_of(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, 400, max(0, size - 400)).decode(errors="replace").strip()


# Looking at them


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all that it started, those that have ended included.

    It returns once the figure stands still: what has just been served may still be ending.

    :raises Failed: when it does not stand still
    """
    deadline = time.monotonic() + 5.0
    before = -1.0
    while (now := _cpu_seconds(pid)) > before + 1.5 * _TICK:
        if time.monotonic() > deadline:
            raise Failed("the receiver goes on working after its senders have ended")
        before = now
        time.sleep(0.1)
    return now


def _cpu_seconds(pid: int) -> float:
    children: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The name of the program stands in parentheses and may hold anything.
        fields = text.rpartition(")")[2].split()
        number = int(stat.parent.name)
        children.setdefault(int(fields[1]), []).append(number)
        # utime, stime, and those of the children that were waited for; a zombie still has its own (proc(5)).
        spent[number] = sum(int(field) for field in fields[11:15]) * _TICK
    total, waiting = 0.0, [pid]
    while waiting:
        number = waiting.pop()
        total += spent.get(number, 0.0)
        waiting += children.get(number, [])
    return total


def resident(pid: int) -> int:
    """Bytes of a process that are in memory now."""
    return _status(pid, "VmRSS")


def peak_resident(pid: int | str) -> int:
    """Bytes of a process that were in memory at most, since it began or :func:`forget_peak`; ``self`` for this one.

    Not ``ru_maxrss``: a process inherits that of the one that started it.
    """
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Begin anew with :func:`peak_resident` (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int | str, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise Failed(f"the kernel tells no {name} of a process")


# Folders


@contextmanager
def memory_folder(size: int = 0) -> Iterator[Path]:
    """A folder in memory, so that the disk does not decide; on the disk where memory has no room.

    :param size: bytes that it has to hold
    """
    fits = _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > size
    with tempfile.TemporaryDirectory(dir=_SHARED_MEMORY if fits else None, prefix="asyncdicom-bench-") as folder:
        yield Path(folder)


def is_in_memory(folder: Path) -> bool:
    """Whether :func:`memory_folder` found room there."""
    return folder.is_relative_to(_SHARED_MEMORY)
