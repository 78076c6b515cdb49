"""A program that stores synthetic instances and says what it acknowledged, to be traced, hampered or killed.

It writes a line ``status uid sha256`` for every store that returned, in one write. With ``--paused`` it says ``ready`` when
the archive is open, and begins when it gets a line; after each ``--count`` instances it says ``done`` with the number of its
open descriptors, and goes on with the next when it gets another, until its input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import functools
import os
import sys
from pathlib import Path

import anyio.to_thread

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import asyncdicom.archive.archive as composition
from asyncdicom.archive import Archive
from asyncdicom.archive.directory import Directory
from tests.archive.instances import sha256, study


def say(line: str) -> None:
    """Write a line at once."""
    os.write(1, line.encode() + b"\n")


def is_open(descriptor: int) -> bool:
    """Whether a number stands for something; asked in a way that no test hampers."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


async def resumed() -> bool:
    """Whether there is another line."""
    return bool(await anyio.to_thread.run_sync(sys.stdin.readline))


async def main(arguments: argparse.Namespace) -> None:
    """Store until there are no more, or for ever."""
    if arguments.parts:
        composition.Directory = functools.partial(Directory, unnamed=False)  # type: ignore[assignment,misc]
    archive = Archive(
        arguments.directory,
        durability=arguments.durability,
        duplicates=arguments.duplicates,
        outbox=True,
        index=arguments.index,
        threads=arguments.threads,
    )
    async with archive:
        if arguments.paused:
            # anyio imports what it needs when it is first used: not while the disk fails.
            await anyio.to_thread.run_sync(bool)
            say("ready")
        part = 0
        while not arguments.paused or await resumed():
            # A series for each caller, so that folders are made all the time.
            offers = [study(arguments.count, seed=f"{arguments.seed} {part} {n}") for n in range(arguments.callers)]

            async def store(caller: int) -> None:
                for instance in offers[caller]:  # noqa: B023 - done with before the next part
                    stored = await archive.store(instance)
                    say(f"{int(stored.status):04X} {instance.sop_instance_uid} {sha256(instance)}")

            await asyncio.gather(*(store(caller) for caller in range(arguments.callers)))
            part += 1
            if arguments.paused:
                say(f"done {sum(is_open(descriptor) for descriptor in range(256))}")
            elif not arguments.endless:
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--index")
    parser.add_argument("--durability", default="full")
    parser.add_argument("--duplicates", default="keep-first")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", default="")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--paused", action="store_true")
    parser.add_argument("--endless", action="store_true")
    asyncio.run(main(parser.parse_args()))
