"""A service that says what it holds whenever it gets a line: a process of its own, so that its memory is nobody else's."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import threading
from pathlib import Path

import anyio.to_thread

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asyncdicom.service.config import load
from asyncdicom.service.logs import logging_to
from asyncdicom.service.run import Service


def say(**fields: object) -> None:
    """Write a line of JSON at once."""
    os.write(1, json.dumps(fields).encode() + b"\n")


async def main(config: Path) -> None:
    """Serve until the input ends."""
    async with Service(load(config)) as service:
        assert service.scp is not None
        assert service.web is not None
        say(port=service.scp.port, web=service.web[1])
        while await anyio.to_thread.run_sync(sys.stdin.readline):
            gc.collect()
            say(
                tasks=len(asyncio.all_tasks()),
                threads=[thread.name for thread in threading.enumerate()],
                descriptors=[str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()],
                resident=int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(),
            )


if __name__ == "__main__":
    # As the command does it: what is logged, and what Python warns about, takes the way that it takes in a service.
    with logging_to(sys.stderr):
        asyncio.run(main(Path(sys.argv[1])))
