"""Receive what scanners send, until Ctrl-C.

    python examples/receive.py --port 11112 --archive data/archive     # keep everything, as safely as can be
    python examples/receive.py --port 11112                            # or hand each instance to a function of your own

Try it with: asyncdicom send ASYNCDICOM@127.0.0.1:11112 study/
"""

from __future__ import annotations

import argparse
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import anyio

from asyncdicom import Archive, Received, StorageSCP


async def handle(received: Received, prefix: str) -> int:
    """Say what came. What is returned is the status that the sender gets; an exception would be 0xC211."""
    print(prefix, received.calling_ae_title, received.sop_instance_uid, received.size, "bytes", flush=True)
    return 0x0000


async def main(port: int, folder: Path | None) -> None:
    async with AsyncExitStack() as stack:
        if folder is None:
            scp = StorageSCP(handle, args=("received from",), port=port)
        else:
            # A success is answered when bytes, name, folder and index row are on the disk.
            archive = await stack.enter_async_context(Archive(folder, index=f"sqlite:{folder}.db"))
            scp = StorageSCP(archive, port=port)
        await stack.enter_async_context(scp)
        print(f"listening on port {scp.port}", flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Receive instances.")
    parser.add_argument("--port", type=int, default=11112, help="0 takes a free one")
    parser.add_argument("--archive", type=Path, help="keep them in this folder")
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        anyio.run(main, arguments.port, arguments.archive)
