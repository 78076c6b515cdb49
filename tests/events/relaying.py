"""A program that puts events into an outbox and delivers them to a webhook and a command, to be killed at work.

It writes a line with the number of every event once that is committed, in one write. With ``--finish`` it adds none, and ends
when everything is delivered.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asyncdicom.archive.sqlite import SQLiteIndex
from asyncdicom.events.command import Command
from asyncdicom.events.courier import Backoff
from asyncdicom.events.relay import Bell, Relay
from asyncdicom.events.webhook import Webhook
from tests.events.receiving import TAKE


async def main(arguments: argparse.Namespace) -> None:
    """Add and deliver for ever, or deliver what is there."""
    index, bell = SQLiteIndex(Path(arguments.index)), Bell()
    await index.open()
    webhook = Webhook("webhook", arguments.url, on=["instance.stored"], key=b"of the tests", timeout=5)
    command = Command("command", ["sh", "-c", TAKE, arguments.kept], on=["instance.stored"], timeout=5)
    backoff = Backoff(first=0.05, longest=0.2, longest_pause=0.2)
    async with Relay(index, [webhook, command], bell=bell, backoff=backoff):
        if arguments.finish:
            while (await index.outbox_pending())[0]:
                await anyio.sleep(0.02)
            await index.close()
            return
        for number in itertools.count(arguments.first):
            await index.outbox_add("instance.stored", {"number": number, "StudyInstanceUID": f"1.2.{number % 7}"})
            os.write(1, b"%d\n" % number)
            bell.ring()
            await anyio.sleep(0.01)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("index")
    parser.add_argument("--url")
    parser.add_argument("--kept")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--finish", action="store_true")
    anyio.run(main, parser.parse_args())
