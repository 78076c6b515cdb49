"""The programs of a benchmark: started, seen to be ready, and ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_READY = 30.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(argv: Sequence[str | Path], port: int, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server that listens on a port while the block runs.

    :return: its process ID
    """
    process = subprocess.Popen(
        [str(word) for word in argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | (environment or {}),
    )
    try:
        deadline = time.monotonic() + _READY
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{argv[0]} ended at once, with {process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{argv[0]} does not listen on port {port}")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def seconds(commands: Sequence[Sequence[str | Path]], environment: dict[str, str] | None = None, limit: float = 300.0) -> float:
    """Seconds that commands take, all at once.

    :raises RuntimeError: when one of them fails
    """
    started = time.monotonic()
    running = [
        subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | (environment or {}),
        )
        for command in commands
    ]
    try:
        for process in running:
            _, complaints = process.communicate(timeout=limit)
            if process.returncode != 0:
                raise RuntimeError(f"{process.args[0]} failed: {complaints.decode(errors='replace')[-400:]}")  # type: ignore[index]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    return time.monotonic() - started


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one, so that the disk does not decide."""
    shared = Path("/dev/shm")  # noqa: S108 - a folder of our own inside of it
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def module(name: str, *words: object) -> list[str]:
    """The command that runs a module of ours."""
    return [sys.executable, "-m", name, *(str(word) for word in words)]
