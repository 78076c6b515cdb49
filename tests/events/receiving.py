"""The other side of events: a receiver of webhooks in a process of its own, and what a command keeps."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

_RECEIVER = Path(__file__).with_name("receiver.py")
# A program that keeps the event it is given, in one write, and then reports with its exit status.
TAKE = 'line=$(cat); printf "%s\\n" "$line" >> "$0"'


class Receiver:
    """A running receiver.

    :ivar port: where it listens
    :ivar kept: the file that it writes to
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, kept: Path) -> None:
        self.process = process
        self.port = port
        self.kept = kept

    @property
    def url(self) -> str:
        """Where to post to."""
        return f"http://127.0.0.1:{self.port}/hook"


@contextlib.contextmanager
def running_receiver(kept: Path, *options: str, port: int = 0, secret: str | None = None) -> Iterator[Receiver]:
    """A receiver; it is killed at the end. Blocks."""
    signed = ["--secret", secret] if secret is not None else []
    command = [sys.executable, str(_RECEIVER), str(kept), "--port", str(port), *signed, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield Receiver(process, int(process.stdout.readline().split()[1]), kept)
        finally:
            process.kill()


@contextlib.asynccontextmanager
async def receiver(kept: Path, *options: str, port: int = 0, secret: str | None = None) -> AsyncIterator[Receiver]:
    """A receiver; it is killed at the end."""
    context = running_receiver(kept, *options, port=port, secret=secret)
    running = await anyio.to_thread.run_sync(context.__enter__)
    try:
        yield running
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(context.__exit__, None, None, None)


def lines_of(kept: Path) -> list[dict[str, Any]]:
    """What is in a file of JSON lines. Blocks."""
    return [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []


def posted(kept: Path) -> list[dict[str, Any]]:
    """The events that a receiver kept, in the order in which they came. Blocks."""
    return [json.loads(line["body"]) for line in lines_of(kept)]
