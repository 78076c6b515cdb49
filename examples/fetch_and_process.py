"""Fetch a study by C-GET and look at each image as it arrives, without a file in between.

    python examples/fetch_and_process.py PACS@10.1.2.3:11112 1.2.840.1.2.3

The handler's return value is the status that the archive is told: what it does not take, the archive counts as failed.
"""

from __future__ import annotations

import argparse
import sys

import anyio

from asyncdicom import Fleet, Modality, Query, Received


async def look(received: Received) -> int:
    # Decoded on first use: a handler that only wants the bytes reads received.encoded instead.
    dataset = received.dataset
    print(received.sop_instance_uid, dataset.get("Modality"), f"{dataset.get('Rows')}x{dataset.get('Columns')}", received.size)
    return 0x0000


async def main(archive: Modality, study: str) -> int:
    async with Fleet([archive]) as fleet:
        async for outcome in fleet.get(Query(level="study", keys={"StudyInstanceUID": study}), into=look):
            print(f"{outcome.reason}: {outcome.received} instances {outcome.detail}")
            return 0 if outcome.ok else 1
    return 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch a study and look at its images.")
    parser.add_argument("archive", type=Modality.parse, metavar="AET@host:port")
    parser.add_argument("study", help="a Study Instance UID")
    arguments = parser.parse_args()
    sys.exit(anyio.run(main, arguments.archive, arguments.study))
