"""Ask every device of an inventory, and say which ones are down and what to look at.

    python examples/who_is_down.py asyncdicom.toml
    python examples/who_is_down.py fleet.csv --concurrency 500

The exit status is the number of devices that are down, at most 100.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anyio

from asyncdicom import Fleet


async def main(inventory: Path, concurrency: int) -> int:
    down = 0
    async with Fleet.load(inventory, concurrency=concurrency, deadline=30.0) as fleet:
        async for outcome in fleet.echo():
            if outcome.ok:
                continue
            down += 1
            print(f"{outcome.modality} ({outcome.ae_title}@{outcome.host}:{outcome.port}) {outcome.reason}: {outcome.remedy}")
        print(f"{down} of {len(fleet.modalities)} are down")
    return min(down, 100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Say which devices are down.")
    parser.add_argument("inventory", type=Path, help="a configuration, or a CSV file name,ae_title,host,port,groups")
    parser.add_argument("--concurrency", type=int, default=64, help="associations at once")
    arguments = parser.parse_args()
    sys.exit(anyio.run(main, arguments.inventory, arguments.concurrency))
